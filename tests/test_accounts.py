"""Subordinate ids count for the account that owns them."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from limiterd.serve.accounts import Accounts, ranges_of

OWNERS = {"alice": 1000, "1001": 1001, "root": 0}


def test_a_range_is_its_owners() -> None:
    """By name or by number; what is no range is left out; what root or nobody known owns is an account of its own."""
    text = "alice:100000:65536\n1001:200000:10\nroot:300000:10\ngone:400000:10\n# x\nalice:x:1\nalice:5\n:1:0\nalice:0:9\n"
    assert ranges_of(text, OWNERS.get) == [
        (100_000, 165_536, 1000),
        (200_000, 200_010, 1001),
        (300_000, 300_010, 300_000),
        (400_000, 400_010, 400_000),
    ]


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 30))), st.integers(0, 100))
def test_every_id_has_one_account(ranges: list[tuple[int, int]], uid: int) -> None:
    """Ranges that overlap or touch: an id is of the account whose range holds it and begins first, else of itself."""
    text = "".join(f"{1000 + number}:{first}:{count}\n" for number, (first, count) in enumerate(ranges))
    accounts = Accounts(Path("/nowhere"))
    accounts._ranges = ranges_of(text, int)
    holding = [(first, first + count, 1000 + n) for n, (first, count) in enumerate(ranges) if first <= uid < first + count]
    assert accounts.of(uid) == (min(holding)[2] if holding else uid)


def test_a_change_of_the_file_is_followed(tmp_path: Path) -> None:
    """A new file is read within seconds, one that is gone is none, one that cannot be read changes nothing."""
    now_s = [0.0]
    path = tmp_path / "subuid"
    accounts = Accounts(path, lambda: now_s[0])
    accounts.refresh()
    assert accounts.of(100_007) == 100_007
    path.write_text("4294967:100000:10\n")
    accounts.refresh()
    assert accounts._ranges == []  # looked a moment ago
    now_s[0] = 3.0
    accounts.refresh()
    assert accounts._ranges == [(100_000, 100_010, 100_000)]
    path.unlink()
    path.mkdir()
    now_s[0] = 6.0
    accounts.refresh()
    assert len(accounts._ranges) == 1
    path.rmdir()
    now_s[0] = 9.0
    accounts.refresh()
    assert accounts._ranges == []
