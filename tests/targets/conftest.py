"""What the tests of foreign servers share: the remote MX, and directories that a server's user can reach."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.remote_mx.process import RemoteMX


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary directories are made meanwhile; a server's user must be able to pass it."""
    with tempfile.TemporaryDirectory(prefix="sb-") as name:
        Path(name).chmod(0o711)
        monkeypatch.setattr(tempfile, "tempdir", name)
        yield Path(name)


@pytest.fixture
def mx() -> Iterator[RemoteMX]:
    with RemoteMX({"refusing": "", "home": ""}) as server:
        yield server
