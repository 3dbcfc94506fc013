"""A new configuration for a running daemon."""

from __future__ import annotations

import os
import signal
import smtplib
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import agent
from harness.probes import agent as agent_probe
from harness.remote_mx.process import RemoteMX
from mta_under_test.ipc.messages import Kind
from tests.processes.daemon import CONFIGURATION, Smtpd, until
from tests.processes.delivery.test_local_delivery import LISTEN, MATCH, at_rest
from tests.processes.local import Place
from tests.processes.lookup.test_expansion import rcpt

StartSmtpd = Callable[..., Smtpd]
ROLES = ("parent", "control", "lookup", "queue", "scheduler", "smtp", "transfer", "delivery")


def write(smtpd: Smtpd, text: str) -> None:
    (smtpd.directory / "smtpd.conf").write_text(text)


def local(place: Place, domain: str = "here.test", more: str = "") -> str:
    return (
        f'{LISTEN}{more}{place.userbase("bob")}action "local" maildir userbase <users>\n'
        f'match from any for domain "{domain}" action "local"\n'
    )


def test_rules_change_and_the_port_stays(start_smtpd: StartSmtpd, place: Place) -> None:
    smtpd = start_smtpd(local(place))
    assert rcpt(smtpd, "bob@there.test")[0] == 550
    write(smtpd, local(place, "there.test"))
    assert smtpd.smtpctl("reload").stdout == "command succeeded\n"
    assert rcpt(smtpd, "bob@there.test")[0] == 250
    assert rcpt(smtpd, "bob@here.test")[0] == 550
    smtpd.send("bob@there.test")
    until(lambda: place.mail("bob"), "delivery")


def test_a_hangup_reloads(start_smtpd: StartSmtpd, place: Place) -> None:
    smtpd = start_smtpd(local(place))
    write(smtpd, local(place, "there.test"))
    os.kill(smtpd.process.pid, signal.SIGHUP)
    until(lambda: "configuration reloaded" in smtpd.log(), "the reload")
    assert rcpt(smtpd, "bob@there.test")[0] == 250
    for process in smtpd.family[1:]:
        process.send_signal(signal.SIGHUP)
    assert rcpt(smtpd, "bob@there.test")[0] == 250


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("nonsense", "smtpd.conf:1:"),
        ('table t file:"/no/such/file"', "cannot read the table"),
        ("listen on 192.0.2.1 port 0", "cannot listen on 192.0.2.1"),
    ],
)
def test_a_wrong_configuration_changes_nothing_and_says_why(
    start_smtpd: StartSmtpd, place: Place, change: str, reason: str
) -> None:
    smtpd = start_smtpd(local(place))
    rcpt(smtpd, "bob@here.test")
    before = [len(smtpd.descriptors(role)) for role in ROLES]
    wrong = local(place, "there.test", "listen on ::1 port 0\n")
    write(smtpd, f"{change}\n{wrong}")
    for _ in range(3):
        done = smtpd.smtpctl("reload")
        assert done.returncode == 1
        assert reason in done.stderr
    assert reason in smtpd.log()
    assert rcpt(smtpd, "bob@here.test")[0] == 250
    assert rcpt(smtpd, "bob@there.test")[0] == 550
    # Fewer may be: a connection of before was perhaps about to close.
    until(lambda: all(len(smtpd.descriptors(role)) <= old for role, old in zip(ROLES, before, strict=True)), "no more")


def test_listeners_come_and_go(start_smtpd: StartSmtpd, place: Place) -> None:
    smtpd = start_smtpd(local(place))
    write(smtpd, local(place, more="listen on 127.0.0.1 port 0 tag second hostname second.test\n"))
    smtpd.smtpctl("reload")
    old, new = (int(line.split("port ")[1].split()[0]) for line in smtpd.log().splitlines() if "listening" in line)
    assert old == smtpd.ports[0]
    with smtplib.SMTP("127.0.0.1", new, timeout=10) as client:
        assert b"second.test" in client.ehlo()[1]
        write(smtpd, local(place))
        smtpd.smtpctl("reload")
        assert client.noop()[0] == 250, "a session outlives its listener"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", new), timeout=10)
    assert rcpt(smtpd, "bob@here.test")[0] == 250


def test_running_sessions_and_messages_go_on(start_smtpd: StartSmtpd, mx: RemoteMX) -> None:
    smtpd = start_smtpd(CONFIGURATION.format(**mx.ports))
    mx.shut_gate("refusing")
    smtpd.send("x@accepted.test", text="Message-ID: <1@sender.test>\r\n\r\n\r\n")
    with smtpd.smtp() as client:
        client.ehlo()
        client.mail("a@sender.test")
        client.rcpt("x@accepted.test")
        assert smtpd.smtpctl("reload").returncode == 0
        assert client.data("Message-ID: <2@sender.test>\r\n\r\n\r\n")[0] == 250
    mx.open_gate("refusing")
    until(lambda: len(mx.ledger().delivered) == 2, "both messages")


def test_mail_for_an_action_that_is_gone_waits(start_smtpd: StartSmtpd, place: Place) -> None:
    smtpd = start_smtpd(local(place))
    smtpd.smtpctl("pause", "mda")
    smtpd.send("bob@here.test")
    write(smtpd, local(place).replace('"local"', '"other"'))
    smtpd.smtpctl("reload")
    smtpd.smtpctl("resume", "mda")
    until(lambda: "No local action named" in smtpd.smtpctl("show", "queue").stdout, "a temporary failure")
    write(smtpd, local(place))
    smtpd.smtpctl("reload")
    smtpd.try_again()
    until(lambda: place.mail("bob"), "delivery")


def test_tables_that_only_root_can_read_are_read_again(start_smtpd: StartSmtpd, place: Place, tmp_path: Path) -> None:
    table = tmp_path / "users"  # in a directory that only its owner can enter
    table.write_text(f"bob 1:1:{place.root}\n")
    table.chmod(0o600)
    text = f'{LISTEN}table users file:{table}\naction "local" maildir userbase <users>\n{MATCH}'
    smtpd = start_smtpd(text)
    assert rcpt(smtpd, "eve@here.test")[0] == 550
    table.write_text(f"eve 1:1:{place.root}\n")
    assert smtpd.smtpctl("reload").returncode == 0
    assert rcpt(smtpd, "eve@here.test")[0] == 250


def test_reloading_leaks_nothing(
    start_smtpd: StartSmtpd, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "agent"
    directory.mkdir()
    directory.chmod(0o1777)
    for name, value in agent.environment(directory).items():
        monkeypatch.setenv(name, value)
    aliases = place.file("aliases", "team: bob\n")
    one = local(place, more=f"table aliases file:{aliases}\n")
    other = local(place, more="listen on 127.0.0.1 port 0 tag second\n")
    smtpd = start_smtpd(one)

    def reload(count: int) -> tuple[list[int], dict[str, int]]:
        with smtpd.control() as client:
            for number in range(count):
                write(smtpd, other if number % 2 else one)
                client.ask(Kind.RELOAD)
            smtpd.send("bob@here.test")
            until(lambda: at_rest(smtpd), "rest")
        until(lambda: smtpd.stats()["control.session"] == 1, "one session")
        readings = agent_probe.ask(directory, [process.pid for process in smtpd.family]).readings
        roles = {process.pid: process.cmdline()[0] for process in smtpd.family}
        assert len(readings) == len(smtpd.family), "every process answers"
        return (
            [len(smtpd.descriptors(role)) for role in ROLES],
            {roles[pid]: reading.blocks for pid, reading in readings.items()},
        )

    reload(150)  # the method cache of CPython 3.11 fills with the parser's strings, ever more slowly (see wire.date)
    descriptors, blocks = reload(10)
    after_descriptors, after_blocks = reload(50)
    assert after_descriptors == descriptors
    grown = {role: after_blocks[role] - blocks[role] for role in blocks}
    assert all(growth < 50 for growth in grown.values()), grown  # less than one object a reload
