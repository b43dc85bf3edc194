"""The environment in which every test runs, whoever calls and from wherever: this is the one place that sets it.

`make test` starts Python isolated (-I -X utf8), so that no PYTHON* variable, user site or locale reaches the interpreter of
the tests themselves; what their programs inherit is set here, before anything is imported that looks at it.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Final

_KEPT: Final = ("CI", "LD_LIBRARY_PATH")
_KEPT_PREFIXES: Final = ("LIMITERD_", "PYTEST_XDIST_", "COVERAGE_")
"""What the caller decides by intention; pytest-xdist and coverage tell their own processes something by the others."""

_SET: Final = {"LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "TZ": "UTC", "TERM": "xterm"}
_PROGRAMS: Final = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
_DESCRIPTORS: Final = 4096
"""Some tests hold five hundred connections, both ends of them."""


class Environment:
    """Set when made. Its place is a directory that all workers of a run share: an empty HOME, and what tests write.

    Its name is short and has no user's in it: the path of a socket may have no more than 107 bytes.
    """

    def __init__(self, place: str | None) -> None:
        """Make the place, or, in a worker, use the run's."""
        self._made = place is None
        self.place = place or tempfile.mkdtemp(prefix="limiterd-tests-", dir="/tmp")
        self.files = Path(self.place) / "files"
        home = Path(self.place) / "home"
        home.mkdir(exist_ok=True)
        path = [*os.environ.get("PATH", "").split(os.pathsep), *_PROGRAMS]
        kept = {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith(_KEPT_PREFIXES)}
        os.environ.clear()
        os.environ.update(kept, **_SET, HOME=str(home), PATH=os.pathsep.join(dict.fromkeys(filter(None, path))))
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(Path(self.place) / "hypothesis")  # not in the checkout, as root's
        time.tzset()
        tempfile.tempdir = None
        os.umask(0o022)  # files' modes are among what is tested
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell script makes deaf to it what it starts beside itself
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        enough = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))

    def close(self) -> None:
        """Remove the place, if it is this process's."""
        if self._made:
            shutil.rmtree(self.place, ignore_errors=True)
