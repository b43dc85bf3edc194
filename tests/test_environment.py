"""Nothing of the caller's environment decides a test: some that once did are run by `make test` for the worst of callers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parent.parent

TOUCHY: Final = (
    "tests/test_cli.py::test_approving_says_what_is_granted",  # SUDO_USER
    "tests/test_cli.py::test_explain_shows_whatever_it_gets",  # the locale
    "tests/test_cli_completion.py::test_the_shell_accepts_the_script",  # HOME
    "tests/test_config.py::test_a_file_that_others_may_write_is_refused",  # the umask
    "tests/test_metrics.py::test_healthz_follows_the_loop",  # a proxy
    "tests/test_overrides.py::test_a_record_is_kept_privately",  # the umask
    "tests/test_recording.py::test_a_live_server_is_asked_in_pieces",  # a proxy
    "tests/faults/test_links.py::test_odd_names",  # the locale, and the log's form
    "tests/system/test_requests.py::test_who_may_do_what",  # SUDO_USER
    "tests/system/test_surface.py::test_the_log_as_text_for_the_journal",  # JOURNAL_STREAM
)


@pytest.mark.skipif(Path(sys.prefix) != ROOT / ".venv", reason="the tests run outside make's virtual environment")
def test_the_worst_of_callers_gets_the_same_verdicts(tmp_path: Path) -> None:
    """SUDO_*, locale, zone, terminal, proxies, PYTHON*, PYTEST_*, HOME, TMPDIR, umask, few descriptors: all pass."""
    (tmp_path / "sitecustomize.py").write_text("raise SystemExit('the caller decides')\n")
    (tmp_path / "yaml.py").write_text("raise SystemExit('the caller decides')\n")
    caller = {
        "PATH": os.environ["PATH"],
        "HOME": "/proc/self",
        "TMPDIR": "/proc/self",
        "SUDO_USER": "alice",
        "SUDO_UID": "1000",
        "SUDO_COMMAND": "/usr/bin/make test",
        "LANG": "tr_TR.ISO-8859-9",
        "LC_ALL": "POSIX",
        "TZ": "Asia/Kathmandu",
        "TERM": "dumb",
        "COLUMNS": "20",
        "LINES": "5",
        "NO_COLOR": "1",
        "FORCE_COLOR": "1",
        "http_proxy": "http://127.0.0.1:1",
        "XDG_CONFIG_HOME": "/proc/self",
        "JOURNAL_STREAM": "8:1",
        "NOTIFY_SOCKET": "/proc/self/none",
        "WATCHDOG_USEC": "1000",
        "PYTHONPATH": str(tmp_path),
        "PYTHONOPTIMIZE": "2",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONWARNINGS": "error",
        "PYTEST_ADDOPTS": "--no-such-option",
    }
    asked = f"-n 0 -q -p no:cacheprovider {' '.join(TOUCHY)}"
    command = ["make", "-o", ".venv/.ready", "-o", ".venv/.tools", "test", f"PYTEST_ARGS={asked}"]
    limited = ["sh", "-c", 'umask 077 && ulimit -Sn 256 && exec "$@"', "sh", *command]
    done = subprocess.run(limited, cwd=ROOT, env=caller, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d\d passed", done.stdout), done.stdout
