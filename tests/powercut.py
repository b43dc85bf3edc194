"""A disk that keeps only what was fsynced, under a daemon that is killed: what a power cut leaves.

The daemon's os.fsync is replaced from outside (the daemon knows nothing of it). A file's content counts from its fsync on, a name
in a directory from the directory's fsync on; nothing else survives `cut`. Each place that fsyncs has a name, (thread, what), and
can be taken out, as if the call were missing in the program.
"""

from __future__ import annotations

import base64
import json
import shutil
import signal
from collections.abc import Collection
from pathlib import Path
from typing import Final

from tests.faults.harness import plant
from tests.rig import Rig

_SHIM: Final = """
import base64, json, os, stat, threading, time
HOME, DELAY_S, MISSING = {home!r}, {delay_s!r}, {missing!r}
whole, lock = os.fsync, threading.Lock()
content, names, held, places = {{}}, {{}}, [], set()

def take(path):
    listed = {{}}
    for name in os.listdir(path):
        try:
            found = os.lstat(f"{{path}}/{{name}}")
        except FileNotFoundError:
            continue
        listed[name] = "directory" if stat.S_ISDIR(found.st_mode) else found.st_ino
    names[path] = listed

def hold(descriptor):
    again = os.open(f"/proc/self/fd/{{descriptor}}", os.O_RDONLY)
    held.append(again)  # an inode that is held is not given to another file
    content[os.fstat(again).st_ino] = base64.b64encode(os.pread(again, 1 << 26, 0)).decode()

def tree(path):
    return {{
        name: tree(f"{{path}}/{{name}}") if of == "directory" else content.get(of, "")
        for name, of in names.get(path, {{}}).items()
    }}

def publish():
    with open(f"{{HOME}}/image.new", "w") as file:
        json.dump({{"tree": tree(HOME).get("state", {{}}), "places": sorted(places)}}, file)
    os.replace(f"{{HOME}}/image.new", f"{{HOME}}/image")

def fsync(descriptor):
    time.sleep(DELAY_S)
    whole(descriptor)
    path = os.readlink(f"/proc/self/fd/{{descriptor}}")
    thread = threading.current_thread().name.partition("-")[0]
    name = os.path.basename(path)
    what = "record" if ".record-" in name else "home" if path == HOME else name.removeprefix(".").removesuffix(".tmp")
    if not path.startswith(HOME):
        return
    with lock:
        places.add(f"{{thread}} {{what}}")
        if f"{{thread}} {{what}}" not in MISSING:
            take(path) if os.path.isdir(path) else hold(descriptor)
        publish()

for path, _, files in os.walk(f"{{HOME}}/state"):  # what an earlier run left has been there for long
    take(path)
    for name in files:
        opened = os.open(f"{{path}}/{{name}}", os.O_RDONLY)
        hold(opened)
        os.close(opened)
if os.path.isdir(f"{{HOME}}/state"):
    names[HOME] = {{"state": "directory"}}
publish()
os.fsync = fsync
"""


def arm(daemon: Rig, *, delay_s: float = 0.0, missing: Collection[str] = ()) -> None:
    """From the next start on: each fsync takes that much longer, and those at the missing places do nothing."""
    plant(daemon, _SHIM.format(home=str(daemon.home), delay_s=delay_s, missing=sorted(missing)), "powercut")


def places(daemon: Rig) -> set[str]:
    """Where the daemon has fsynced since its start: "thread what"."""
    return set(json.loads((daemon.home / "image").read_text())["places"])


def cut(daemon: Rig) -> None:
    """Kill the daemon at once; its state directory is then what was durable."""
    assert daemon.stop(signal.SIGKILL) == -signal.SIGKILL, daemon.log()[-2000:]
    image = json.loads((daemon.home / "image").read_text())["tree"]
    if daemon.state.exists():
        shutil.rmtree(daemon.state)
    daemon.state.mkdir()
    _put(daemon.state, image)


def _put(directory: Path, image: dict[str, object]) -> None:
    for name, content in image.items():
        if isinstance(content, dict):
            (directory / name).mkdir()
            _put(directory / name, content)
        else:
            (directory / name).write_bytes(base64.b64decode(str(content)))
