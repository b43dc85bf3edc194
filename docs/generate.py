"""`make docs`: writes everything that is made from other texts, so that it cannot lag behind them.

config/limiterd.yaml and the tables of docs/configuration.md from the declarations of the keys (docs/build_config.py),
docs/man/limiterctl.1 (docs/man.py) and the shell completions (docs/build_completion.py) from the command line's own
description, docs/man/limiterd.yaml.5 from docs/configuration.md (docs/build_man.py), the fault table of docs/reliability.md
(docs/build_reliability.py), the tables of modules in docs/architecture.md (docs/build_modules.py).
tests/test_config_docs.py, tests/test_cli_docs.py, tests/test_cli_completion.py, tests/faults/test_catalogue.py and
tests/test_architecture.py hold that what is committed is what this writes.
"""

from __future__ import annotations

import build_completion  # a neighbour of this script
import build_config  # likewise
import build_man  # likewise
import build_modules  # likewise
import build_reliability  # likewise
import man  # likewise


def main() -> None:
    """Write them."""
    build_completion.main()
    build_config.main()
    man.main([])
    build_man.main()
    build_reliability.main([])
    build_modules.main()


if __name__ == "__main__":
    main()
