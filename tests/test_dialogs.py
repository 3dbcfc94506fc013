"""Every dialogue in tests/dialogs, with the real daemon over TCP; what it stored; and that it let go of everything."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mta_under_test import smtpctl
from mta_under_test.ipc.messages import Kind
from tests.dialogs.dialog import Client, Dialog, DialogError, Step, raw, read
from tests.processes.daemon import Smtpd, until

DIALOGS = Path(__file__).parent / "dialogs"
PATHS = sorted(DIALOGS.glob("*.smtp"))
CONFIGS = {
    tag: path
    for path in sorted(DIALOGS.glob("*.conf"))
    for tag in re.findall(r"(?m)^listen.* tag (\w+)", path.read_text())
}


class Server:
    """A daemon whose mail stays in the queue, and what its smtp process holds at rest."""

    def __init__(self, directory: Path, configuration: Path) -> None:
        directory.mkdir()
        text = configuration.read_text().replace("@DIALOGS@", str(DIALOGS))
        self.smtpd = Smtpd(directory, text)
        with self.smtpd.control() as control:
            control.ask(Kind.PAUSE, text="mta")
        found = re.findall(r"listening on \S+ port (\d+) tag (\w+)", self.smtpd.log())
        self.ports = {tag: int(port) for port, tag in found}
        # libuv opens a reserve descriptor at the first connection; what is counted comes after it.
        for port in self.ports.values():
            Client(port).close()  # with a proxy's listener this ends before it began
        until(lambda: self.smtpd.stats().get("smtp.session.total") == len(self.ports), "the first sessions")
        until(lambda: not self.smtpd.stats()["smtp.session"], "the first sessions are over")
        self.at_rest = sorted(self.smtpd.descriptors("smtp"))

    def queue(self) -> dict[str, list[str]]:
        """Envelopes' ids by their message's."""
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            assert smtpctl.main(["--socket", str(self.smtpd.socket), "show", "queue"]) == 0
        found: dict[str, list[str]] = {}
        for line in out.getvalue().splitlines():
            evpid = line.partition("|")[0]
            found.setdefault(evpid[:8], []).append(evpid)
        return found

    def envelopes(self) -> list[str]:
        evpids = [int(evpid, 16) for message in self.queue().values() for evpid in message]
        with self.smtpd.control() as control:
            return [control.ask(Kind.SHOW_ENVELOPE, evpid).text.decode() for evpid in evpids]

    def messages(self) -> list[bytes]:
        found = []
        with self.smtpd.control() as control:
            for msgid in self.queue():
                descriptor = control.ask(Kind.SHOW_MESSAGE, int(msgid, 16)).descriptor
                assert descriptor is not None
                found.append(os.pread(descriptor, os.fstat(descriptor).st_size, 0))
                os.close(descriptor)
        return found

    def clear(self) -> None:
        with self.smtpd.control() as control:
            control.ask(Kind.REMOVE, 0)
        until(lambda: not self.queue(), "the queue is empty")


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Path, Server]]:
    """Daemons by configuration, each started by the first dialogue that needs it."""
    started: dict[Path, Server] = {}
    yield started
    for server in started.values():
        server.smtpd.stop()


@pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])
def test_dialog(path: Path, servers: dict[Path, Server], tmp_path_factory: pytest.TempPathFactory) -> None:
    dialog = read(path)
    configuration = CONFIGS[dialog.config]
    if configuration not in servers:
        servers[configuration] = Server(tmp_path_factory.mktemp("dialogs") / "smtpd", configuration)
    server = servers[configuration]
    try:
        talk(dialog, server)
    finally:
        if server.queue():
            server.clear()
    until(lambda: sorted(server.smtpd.descriptors("smtp")) == server.at_rest, "smtp's descriptors are as before")


def talk(dialog: Dialog, server: Server) -> None:
    client = Client(server.ports[dialog.config])
    try:
        for step in dialog.steps:
            if step.verb in CHECKS:
                check(step, server)
            else:
                client.do(step)
    finally:
        client.close()


CHECKS = ("stored:", "line:", "no line:", "envelope:")


def check(step: Step, server: Server) -> None:
    match step.verb:
        case "stored:":
            until(lambda: len(server.queue()) == int(step.text), f"{step.where}: {step.text} messages stored", 5)
            return
        case "line:":
            found = all(raw(step.text) in message.split(b"\r\n") for message in server.messages())
        case "no line:":
            found = all(raw(step.text) not in message for message in server.messages())
        case _:
            found = any(step.text in text.splitlines() for text in server.envelopes())
    if not found:
        raise DialogError(f"{step.where}: {step.verb} {step.text}: stored are {server.envelopes()} {server.messages()}")


def test_there_are_many_of_them_and_all_end_with_what_was_stored() -> None:
    assert len(PATHS) >= 80
    for path in PATHS:
        dialog = read(path)
        assert dialog.config in CONFIGS, path
        assert any(step.verb == "stored:" for step in dialog.steps), f"{path.name} does not say what was stored"
