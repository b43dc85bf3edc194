"""`make docs`: writes everything that is made from other texts, so that it cannot lag behind them.

docs/man/limiterctl.1 and completion/ from the command line's own description (docs/man.py, limiterd/ctl/completion.py),
docs/man/limiterd.yaml.5 from docs/configuration.md (docs/build_man.py), the fault table of docs/reliability.md
(docs/build_reliability.py), the tables of modules in docs/architecture.md (docs/build_modules.py). tests/test_cli_docs.py,
tests/faults/test_catalogue.py and tests/test_architecture.py hold that what is committed is what this writes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import build_man  # a neighbour of this script
import build_modules  # likewise
import build_reliability  # likewise
import man  # likewise

from limiterd.ctl.completion import script

COMPLETION: Final = Path(__file__).resolve().parent.parent / "completion"
FILES: Final = {"bash": "limiterctl.bash", "zsh": "_limiterctl", "fish": "limiterctl.fish"}


def main() -> None:
    """Write them."""
    COMPLETION.mkdir(exist_ok=True)
    for shell, name in FILES.items():
        (COMPLETION / name).write_text(script(shell), encoding="utf-8")
    man.main([])
    build_man.main()
    build_reliability.main([])
    build_modules.main()


if __name__ == "__main__":
    main()
