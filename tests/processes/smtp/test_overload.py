"""Too many clients, slow clients, no descriptors: 421 or 452, no crash, nothing half accepted, all well afterwards."""

from __future__ import annotations

import os
import resource
import selectors
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import pytest

from harness.remote_mx.process import RemoteMX
from mta_under_test.wire import proxy
from tests.processes.daemon import Smtpd, until

StartSmtpd = Callable[..., Smtpd]

CONFIGURATION = """
listen on 127.0.0.1 port 0
listen on 127.0.0.1 port 0 proxy-v2
action "out" relay host smtp://127.0.0.1:{home}
match from any for any action "out"
"""
FEW_DESCRIPTORS = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))"
HASTY = (
    "from mta_under_test.processes.smtp import session; session.SESSION_TIMEOUT_S = {idle}; "
    "session.SESSION_TOTAL_S = {total}"
)
IDLE = 2000
# Whose limits are changed while it runs must not be another user, or this machine may not allow it.
AS_WE_ARE = ("--user", "root") if os.geteuid() == 0 else ()


@pytest.fixture(autouse=True)
def descriptors_for_the_test() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = IDLE + 500
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"RLIMIT_NOFILE allows {hard} descriptors, and {wanted} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def crowd(port: int, count: int) -> Iterator[list[bytes]]:
    """So many connections that say nothing; gives the first line that each was told."""
    sockets = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(count)]
    try:
        with selectors.DefaultSelector() as selector:
            for sock in sockets:
                selector.register(sock, selectors.EVENT_READ)
            said = []
            deadline = time.monotonic() + 30
            while len(said) < count:
                assert time.monotonic() < deadline, f"only {len(said)} of {count} were answered"
                for key, _ in selector.select(1):
                    said.append(key.fileobj.recv(200))  # type: ignore[union-attr]
                    selector.unregister(key.fileobj)
        yield said
    finally:
        for sock in sockets:
            sock.close()


def works(smtpd: Smtpd, mx: RemoteMX, number: int) -> None:
    smtpd.send("x@example.org", text=f"Message-ID: <{number}@sender.test>\r\n\r\nbody {number}\r\n")
    until(lambda: f"{number}@sender.test" in mx.ledger().delivered, "delivery")


def test_two_thousand_idle_clients_keep_nobody_from_sending(start_smtpd: StartSmtpd, mx: RemoteMX) -> None:
    smtpd = start_smtpd(CONFIGURATION.format(**mx.ports))
    works(smtpd, mx, 1)
    before = len(smtpd.descriptors("smtp"))
    with crowd(smtpd.ports[0], IDLE) as said:
        assert Counter(line[:4] for line in said) == {b"220 ": IDLE}
        assert smtpd.stats()["smtp.session"] == IDLE
        works(smtpd, mx, 2)
    until(lambda: not smtpd.stats()["smtp.session"], "the sessions end")
    until(lambda: len(smtpd.descriptors("smtp")) == before, "no descriptor more")


def test_with_few_descriptors_the_rest_is_turned_away_and_comes_back(start_smtpd: StartSmtpd, mx: RemoteMX) -> None:
    smtpd = start_smtpd(CONFIGURATION.format(**mx.ports), change=FEW_DESCRIPTORS)
    works(smtpd, mx, 1)
    before = len(smtpd.descriptors("smtp"))
    with crowd(smtpd.ports[0], IDLE) as said:
        told = Counter(line[:4] for line in said)
        assert set(told) == {b"220 ", b"421 "}
        assert 50 < told[b"220 "] < 256
        assert all(b" 4.7.0 " in line for line in said if line.startswith(b"421"))
        assert smtpd.process.poll() is None
    until(lambda: not smtpd.stats()["smtp.session"], "the sessions end")
    until(lambda: len(smtpd.descriptors("smtp")) == before, "no descriptor more")
    works(smtpd, mx, 2)


def test_one_source_may_not_have_all(start_smtpd: StartSmtpd, mx: RemoteMX) -> None:
    smtpd = start_smtpd(CONFIGURATION.format(**mx.ports))

    def connect(source: str) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", smtpd.ports[1]), timeout=20)
        sock.sendall(proxy.encode((source, 1), ("192.0.2.2", 25)))
        return sock

    sockets = [connect("203.0.113.9") for _ in range(101)]
    try:
        told = [sock.recv(200)[:4] for sock in sockets]
        assert Counter(told) == {b"220 ": 100, b"421 ": 1}
        sockets.append(connect("203.0.113.10"))
        assert sockets[-1].recv(200)[:4] == b"220 "
        sockets.pop(told.index(b"220 ")).close()
        until(lambda: smtpd.stats()["smtp.session"] == 100, "one session less, and the one turned away")
        greeted = connect("203.0.113.9")
        sockets.append(greeted)
        assert greeted.recv(200)[:4] == b"220 "
    finally:
        for sock in sockets:
            sock.close()


def test_descriptors_that_run_out_under_way_accept_no_message_by_half(start_smtpd: StartSmtpd, mx: RemoteMX) -> None:
    smtpd = start_smtpd(CONFIGURATION.format(**mx.ports), *AS_WE_ARE)
    works(smtpd, mx, 1)
    pid = smtpd.pid_of("smtp")
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    clients = [smtpd.smtp() for _ in range(5)]
    for client in clients:
        client.ehlo()
        client.mail("a@sender.test")
        client.rcpt("x@example.org")
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(smtpd.descriptors("smtp")), hard))
    accepted = 0
    for number, client in enumerate(clients, 10):
        code, _ = client.docmd("DATA")
        if code == 354:
            client.send(f"Message-ID: <{number}@sender.test>\r\n\r\nbody {number}\r\n.\r\n".encode())
            code, _ = client.getreply()
        assert code in (250, 451, 452, 421)
        accepted += code == 250
    refused = socket.create_connection(("127.0.0.1", smtpd.ports[0]), timeout=20)
    assert refused.recv(200)[:4] in (b"421 ", b"220 ")
    refused.close()
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
    for client in clients:
        client.close()
    works(smtpd, mx, 2)
    until(smtpd.at_rest, "rest")
    assert len(mx.ledger().delivered) == 2 + accepted


def test_who_is_turned_away_without_descriptors_is_told(start_smtpd: StartSmtpd, mx: RemoteMX) -> None:
    smtpd = start_smtpd(CONFIGURATION.format(**mx.ports), *AS_WE_ARE)
    works(smtpd, mx, 1)
    pid = smtpd.pid_of("smtp")
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    until(lambda: not smtpd.stats()["smtp.session"], "rest")
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(smtpd.descriptors("smtp")), hard))
    with crowd(smtpd.ports[0], 20) as said:
        assert b"421 " in {line[:4] for line in said}
        assert b"" not in said
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
    works(smtpd, mx, 2)
    assert psutil.Process(pid).is_running()


def test_silence_is_ended(start_smtpd: StartSmtpd, mx: RemoteMX) -> None:
    smtpd = start_smtpd(CONFIGURATION.format(**mx.ports), change=HASTY.format(idle=0.3, total=20))
    with smtpd.smtp() as client:
        client.ehlo()
        began = time.monotonic()
        assert client.getreply()[0] == 421
        assert 0.2 < time.monotonic() - began < 5
        client.close()
    until(lambda: not smtpd.stats()["smtp.session"], "the session ends")


def test_slow_senders_are_ended_too_and_nothing_of_theirs_is_kept(start_smtpd: StartSmtpd, mx: RemoteMX) -> None:
    smtpd = start_smtpd(CONFIGURATION.format(**mx.ports), change=HASTY.format(idle=1.0, total=1.5))
    client = smtpd.smtp()
    client.ehlo()
    client.mail("a@sender.test")
    client.rcpt("x@example.org")
    assert client.docmd("DATA")[0] == 354
    assert client.sock is not None
    client.sock.settimeout(0.1)
    told = b""
    deadline = time.monotonic() + 10
    while not told:
        assert time.monotonic() < deadline, "the trickle goes on"
        client.send(b"x")
        try:
            told = client.sock.recv(200)
        except TimeoutError:
            continue
    assert told.startswith(b"421 4.4.2 ")
    client.close()
    until(lambda: not smtpd.stats()["smtp.session"], "the session ends")
    assert not smtpd.stats()["scheduler.envelope"]
    assert not [path for path in (smtpd.spool / "incoming").rglob("*") if path.is_file()]
