"""A real smtpd for each test, and a remote MX that it relays to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from harness.remote_mx.process import RemoteMX
from tests.processes.daemon import CONFIGURATION, Smtpd
from tests.processes.local import Place


@pytest.fixture
def mx() -> Iterator[RemoteMX]:
    with RemoteMX({"refusing": "", "home": ""}) as server:
        yield server


@pytest.fixture
def start_smtpd(tmp_path: Path) -> Iterator[Callable[..., Smtpd]]:
    """Start a daemon with a configuration of one's own."""
    started: list[Smtpd] = []

    def start(configuration: str, *arguments: str, change: str = "", defects: Sequence[str] = ()) -> Smtpd:
        directory = tmp_path / f"smtpd{len(started)}"
        directory.mkdir()
        started.append(Smtpd(directory, configuration, *arguments, change=change, defects=defects))
        return started[-1]

    yield start
    for daemon in started:
        if daemon.process.poll() is None:
            daemon.stop()


@pytest.fixture
def smtpd(start_smtpd: Callable[..., Smtpd], mx: RemoteMX) -> Smtpd:
    return start_smtpd(CONFIGURATION.format(**mx.ports))


@pytest.fixture
def place() -> Iterator[Place]:
    homes = Place()
    yield homes
    homes.close()
