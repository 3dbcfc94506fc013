"""A real smtpd for each test, and a remote MX that it relays to; or one for all of a module that leave it as it was."""

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


@pytest.fixture(scope="module")
def lasting_smtpd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Smtpd]:
    """For tests that ask it and leave no trace in it. Its mail arrives."""
    with RemoteMX({"refusing": "", "home": ""}) as server:
        daemon = Smtpd(tmp_path_factory.mktemp("smtpd"), CONFIGURATION.format(**server.ports))
        yield daemon
        daemon.stop()


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


@pytest.fixture(scope="module")
def lasting_place() -> Iterator[Place]:
    homes = Place()
    yield homes
    homes.close()
