"""Which files count as written by trusted hands, and which links are followed to them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from limiterd.config import load as config
from limiterd.config import override_files
from limiterd.core.errors import ConfigError
from limiterd.core.model import OnExit
from limiterd.trusted_files import UntrustedError, open_trusted
from tests.test_config import RECORD

TENANT = 12_345


def refusal(path: Path) -> str:
    """Why a configuration file is refused."""
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    return str(caught.value)


def test_a_link_is_followed_within_trusted_directories(tmp_path: Path) -> None:
    """Relative, absolute, over several links and through directories that are links: the file at the end is read."""
    (tmp_path / "store/etc").mkdir(parents=True)
    (tmp_path / "store/etc/real.yaml").write_text("on_exit: remove\n")
    (tmp_path / "static").symlink_to("store/etc")
    (tmp_path / "one.yaml").symlink_to("static/real.yaml")
    (tmp_path / "two.yaml").symlink_to(tmp_path / "one.yaml")
    (tmp_path / "three.yaml").symlink_to("./store/../two.yaml")
    for name in ("one.yaml", "two.yaml", "three.yaml"):
        assert config.load(tmp_path / name).on_exit is OnExit.REMOVE


def test_the_layout_of_a_configmap(tmp_path: Path) -> None:
    """What a kubelet mounts: x.yaml → ..data/x.yaml, ..data → ..2026_11_23; an update turns one link over."""
    for stamp, record in (("..2026_11_23", "REQ-1"), ("..2026_11_24", "REQ-2")):
        (tmp_path / stamp).mkdir()
        (tmp_path / stamp / "x.yaml").write_text(RECORD.replace("REQ-1", record))
    (tmp_path / "x.yaml").symlink_to("..data/x.yaml")
    for stamp, record in (("..2026_11_23", "REQ-1"), ("..2026_11_24", "REQ-2")):
        (tmp_path / "..new").symlink_to(stamp)
        (tmp_path / "..new").rename(tmp_path / "..data")
        found = override_files.read_directory(str(tmp_path))
        assert (found.problems, [placed.record.id for placed in found.records]) == ([], [record])


def test_the_overrides_directory_itself_may_be_a_link(tmp_path: Path) -> None:
    """As /etc/static has it."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real/a.yaml").write_text(RECORD)
    (tmp_path / "overrides.d").symlink_to("real")
    found = override_files.read_directory(str(tmp_path / "overrides.d"))
    assert (found.problems, len(found.records)) == ([], 1)


def test_a_link_that_others_could_turn_is_not_followed(tmp_path: Path) -> None:
    """In a directory that others may write, or by way of one: refused, with the place and what to do."""
    (tmp_path / "real.yaml").write_text("{}\n")
    (tmp_path / "open").mkdir()
    (tmp_path / "open/link.yaml").symlink_to("../real.yaml")
    (tmp_path / "open/real.yaml").write_text("{}\n")
    (tmp_path / "through.yaml").symlink_to("open/real.yaml")
    (tmp_path / "open").chmod(0o777)
    assert "is a symbolic link in a directory that can be written by others (mode 0777)" in refusal(tmp_path / "open/link.yaml")
    assert "is a symbolic link by way of 'open', which can be written by others" in refusal(tmp_path / "through.yaml")
    assert config.load(tmp_path / "open/real.yaml") == config.load(tmp_path / "real.yaml")


def test_circles_and_voids_end(tmp_path: Path) -> None:
    """A link to itself, two to one another, to nothing, to a directory: refused at once."""
    for name, target in (("self", "self"), ("one", "two"), ("two", "one"), ("void", "none"), ("up", ".."), ("root", "/")):
        (tmp_path / name).symlink_to(target)
    assert "leads in a circle" in refusal(tmp_path / "self")
    assert "leads in a circle" in refusal(tmp_path / "one")
    assert "there is no such file" in refusal(tmp_path / "void")
    assert "not a regular file" in refusal(tmp_path / "up") or "a directory" in refusal(tmp_path / "up")
    assert "a directory" in refusal(tmp_path / "root")


@pytest.mark.root
def test_a_tenants_hands_are_no_trusted_ones(tmp_path: Path) -> None:
    """A link, a directory on its way or a file that belongs to somebody else is refused, and named."""
    (tmp_path / "real.yaml").write_text("{}\n")
    (tmp_path / "his").mkdir()
    (tmp_path / "his/real.yaml").write_text("{}\n")
    (tmp_path / "link.yaml").symlink_to("real.yaml")
    (tmp_path / "through.yaml").symlink_to("his/real.yaml")
    os.lchown(tmp_path / "link.yaml", TENANT, TENANT)
    os.chown(tmp_path / "his", TENANT, TENANT)
    assert f"by way of 'link.yaml', which belongs to uid {TENANT}" in refusal(tmp_path / "link.yaml")
    assert f"by way of 'his', which belongs to uid {TENANT}" in refusal(tmp_path / "through.yaml")
    with pytest.raises(UntrustedError):
        open_trusted(str(tmp_path / "link.yaml"))
    os.close(open_trusted(str(tmp_path / "link.yaml"), owners={TENANT}))


@pytest.mark.root
def test_nobody_writes_to_a_read_only_mount(tmp_path: Path) -> None:
    """A ConfigMap's directory is open to all by its mode, and mounted read-only: its files count."""
    directory = tmp_path / "mounted"
    directory.mkdir()
    script = f"""
mount -t tmpfs none {directory} && cp {tmp_path}/a.yaml {directory} && chmod 0777 {directory} {directory}/a.yaml
{{ "$@"; mount -o remount,ro {directory}; "$@"; }}
"""
    (tmp_path / "a.yaml").write_text(RECORD)
    judge = "from limiterd.config.override_files import read_directory as r; import sys; print(len(r(sys.argv[1]).records))"
    command = ["unshare", "--mount", "sh", "-ec", script, "sh", sys.executable, "-c", judge, str(directory)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["0", "1"]


def test_descriptors_are_closed(tmp_path: Path) -> None:
    """Links that are followed, and links that are not, leave none open."""
    (tmp_path / "real.yaml").write_text("{}\n")
    (tmp_path / "good.yaml").symlink_to("real.yaml")
    (tmp_path / "bad.yaml").symlink_to("bad.yaml")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        config.load(tmp_path / "good.yaml")
        refusal(tmp_path / "bad.yaml")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
