"""What a client takes, and how gladly: Accept and Accept-Encoding (RFC 9110, 12.4 and 12.5). Pure.

Of what can be offered the one with the highest weight is chosen, the first of equals. What is weighed 0 is refused; where all is
refused the first offer is sent all the same, which the RFC allows and which helps people more than a 406.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

_WEIGHT: Final = re.compile(r"(?:0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")
_MOST_ITEMS: Final = 64
"""More ranges than these are looked at by nobody."""


def _items(header: str) -> Iterator[tuple[str, Mapping[str, str], float]]:
    """(value, parameters, weight) of each item of a list, in lower case; an item with a malformed weight is left out."""
    for item in header.split(",", _MOST_ITEMS)[:_MOST_ITEMS]:
        value, *rest = (part.strip().lower() for part in item.split(";"))
        parameters = {key.strip(): text.strip().strip('"') for key, _, text in (part.partition("=") for part in rest)}
        weight = parameters.pop("q", "1")
        if value and _WEIGHT.fullmatch(weight):
            yield value, parameters, float(weight)


def media_type(header: str, offers: Sequence[tuple[str, str]]) -> int:
    """Which of the offers, each (type/subtype, version), the Accept header likes best; the first where there is no header.

    A range that names a version means that version alone; other parameters are not looked at.
    """
    ranges = list(_items(header)) or [("*/*", {}, 1.0)]

    def weight(offer: tuple[str, str]) -> float:
        kind, version = offer
        fits = {kind: 2, f"{kind.partition('/')[0]}/*": 1, "*/*": 0}
        matching = [
            (fits[value], "version" in parameters, q)
            for value, parameters, q in ranges
            if value in fits and parameters.get("version", version) == version
        ]
        return max(matching, default=(0, False, 0.0))[2]  # that of the most specific range

    return _best([weight(offer) for offer in offers])


def coding(header: str) -> str:
    """ "gzip" or "identity", whichever the Accept-Encoding header likes better; gzip of equals, if it is named at all."""
    weights = {value: q for value, _, q in _items(header)}
    gzip = weights.get("gzip", weights.get("x-gzip", weights.get("*", 0.0)))
    return "gzip" if gzip > 0 and gzip >= weights.get("identity", 0.0) else "identity"


def _best(weights: Sequence[float]) -> int:
    return max(range(len(weights)), key=lambda index: (weights[index], -index))
