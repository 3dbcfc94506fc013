"""Places of one's own: what is bound is seen inside, all else is as it was, and nobody outside notices."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from harness.targets import TargetError, places
from harness.targets.places import Places, Program
from tests.targets.foreign import need_places


@pytest.fixture
def own(tmp_path: Path) -> Places:
    need_places("these tests")
    return Places(tmp_path)


def seen(own: Places, *argv: str) -> str:
    return subprocess.run(own.command(argv), capture_output=True, text=True, check=True).stdout


def test_users_are_its_own(own: Places) -> None:
    own.users({"postmistress": 64101}, "/nonexistent")
    assert seen(own, "id", "postmistress").startswith("uid=64101(postmistress) gid=64101(postmistress)")
    assert "postmistress" not in Path("/etc/passwd").read_text()


def test_a_directory_shows_what_else_is_there(own: Places, tmp_path: Path) -> None:
    ours = tmp_path / "spool"
    (ours / "only-here").mkdir(parents=True)
    own.bind(ours, "/var")
    there = {*os.listdir("/var"), "only-here"}
    assert set(seen(own, "ls", "/var").split()) == there
    assert set(seen(own, "ls", "/var/lib/").split()) == set(os.listdir("/var/lib"))
    assert not Path("/var/only-here").exists()


def test_an_unpacked_program_is_found_with_its_libraries(own: Places, tmp_path: Path) -> None:
    tree = tmp_path / "package"
    (tree / "usr/lib").mkdir(parents=True)
    (tree / "usr/lib/libseatbelt-test.so.1").write_bytes(Path("/bin/true").read_bytes())
    (tree / "usr/bin").mkdir()
    path = tree / "usr/bin/tool"
    path.write_text("#!/bin/sh\necho it runs\n")
    path.chmod(0o755)
    inside = own.program(Program(path, tree))
    assert inside != path
    assert seen(own, str(inside)) == "it runs\n"


def test_the_program_keeps_the_pid_that_it_was_started_with(own: Places) -> None:
    own.users({}, "/nonexistent")
    with subprocess.Popen(own.command(["sleep", "30"]), stdout=subprocess.PIPE) as process:
        inside = places.inside(process.pid, ["readlink", "/proc/self/ns/mnt"])
        theirs = subprocess.run(inside, capture_output=True, text=True, check=True).stdout.strip()
        assert theirs == os.readlink(f"/proc/{process.pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt")
        process.kill()


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(TargetError, match="run it as root"):
        places.check("opensmtpd")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TargetError, match="no unshare here"):
        places.check("opensmtpd")
    refusing = tmp_path / "unshare"
    refusing.write_text("#!/bin/sh\necho unshare: unshare failed: Operation not permitted >&2; exit 1\n")
    for name in places.TOOLS[1:]:
        (tmp_path / name).symlink_to("/bin/true")
    refusing.chmod(0o755)
    with pytest.raises(TargetError, match=r"no mount namespace .*Operation not permitted.*CAP_SYS_ADMIN"):
        places.check("opensmtpd")
