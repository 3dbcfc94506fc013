"""Where a server's sockets are, whatever the temporary directory is called."""

from __future__ import annotations

import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.remote_mx.process import RemoteMX
from harness.targets.embedded import Embedded
from harness.targets.room import make_room


@pytest.fixture
def far_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary directory with a long name, as build systems have them."""
    directory = tmp_path / ("t" * 100)
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    yield directory
    assert list(directory.iterdir()) == []


def test_it_is_where_temporary_files_are_and_every_user_may_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="sb-") as name:
        monkeypatch.setattr(tempfile, "tempdir", name)
        room = make_room()
        assert room.parent == Path(name)
        assert stat.S_IMODE(room.stat().st_mode) == 0o711


def test_it_is_nearer_where_that_is_too_far_for_sockets(far_away: Path) -> None:
    room = make_room()
    try:
        assert room.is_dir()
        assert len(str(room)) < len(str(far_away))
    finally:
        shutil.rmtree(room)


def test_a_server_starts_all_the_same(tmp_path: Path, far_away: Path) -> None:
    assert far_away.is_dir()
    with RemoteMX({"refusing": "", "home": ""}) as mx:
        embedded = Embedded(tmp_path, mx.ports, version="test")
        embedded.start()
        embedded.stop()
