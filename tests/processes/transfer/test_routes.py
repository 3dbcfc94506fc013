"""transfer under a real daemon: sessions and their limits, routes that fail, sources, held envelopes, LMTP; and that
everything leaves when nobody needs it."""

from __future__ import annotations

import re
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.remote_mx.process import RemoteMX
from mta_under_test.processes.transfer.transfer import max_sessions
from tests.processes.daemon import Smtpd, until
from tests.processes.internet import HOME, Internet

StartSmtpd = Callable[..., Smtpd]

CONFIGURATION = """
listen on 127.0.0.1 port 0 hostname "relay.test"
{statements}
action "home" relay host smtp://127.0.0.1:{home}
action "out" relay host smtp://127.0.0.1:{refusing} {options}
match from any for domain "sender.test" action "home"
match from any for any action "out"
"""
MAP = ("session", "task", "task.running", "envelope", "relay", "domain", "host", "route", "source", "connector")


def message(number: int) -> str:
    return f"Message-ID: <{number}@sender.test>\r\nSubject: {number}\r\n\r\nhello\r\n"


@pytest.fixture
def start(start_smtpd: StartSmtpd, mx: RemoteMX) -> Callable[..., Smtpd]:
    def start(statements: str = "", options: str = "") -> Smtpd:
        return start_smtpd(CONFIGURATION.format(statements=statements, options=options, **mx.ports))

    return start


def on_the_map(smtpd: Smtpd) -> dict[str, int]:
    stats = smtpd.stats()
    return {name: stats[f"mta.{name}"] for name in MAP if stats[f"mta.{name}"]}


def submit(smtpd: Smtpd, count: int, recipient: str = "x@to.test") -> None:
    with smtpd.smtp() as client:
        for number in range(count):
            client.sendmail("a@sender.test", [recipient], message(number))


# ---- sessions


def test_an_idle_session_is_kept_for_the_next_message(start: Callable[..., Smtpd], mx: RemoteMX) -> None:
    smtpd = start("mta limit session-keepalive 3")
    for number in range(3):
        smtpd.send("x@to.test", text=message(number))
        until(lambda number=number: f"{number}@sender.test" in mx.ledger().delivered, "delivery")
    assert mx.ledger().listeners["refusing"].sessions == 1
    assert on_the_map(smtpd) == dict.fromkeys(("session", "relay", "domain", "host", "route", "source", "connector"), 1)
    until(lambda: on_the_map(smtpd) == {}, "an empty map")


def test_a_peer_that_ends_an_idle_session_costs_no_mail(start: Callable[..., Smtpd], mx: RemoteMX) -> None:
    mx.set_policy("refusing", "messages=1")
    smtpd = start("mta limit session-keepalive 30")
    for number in range(3):
        smtpd.send("x@to.test", text=message(number))
        until(lambda number=number: f"{number}@sender.test" in mx.ledger().delivered, "delivery")
    until(lambda: on_the_map(smtpd) == {}, "an empty map, long before the idle time is over")
    assert smtpd.stats().get("scheduler.delivery.tempfail", 0) == 0


def test_a_session_carries_as_many_messages_as_it_may(start: Callable[..., Smtpd], mx: RemoteMX) -> None:
    mx.shut_gate("refusing")
    smtpd = start("mta limit session-mail-max 3")
    submit(smtpd, 6)
    mx.open_gate("refusing")
    until(lambda: mx.ledger().listeners["refusing"].accepted == 6, "six messages")
    assert mx.ledger().listeners["refusing"].most_transactions_in_a_session == 3


def test_a_limit_of_failures_applies_when_it_is_set(start: Callable[..., Smtpd], mx: RemoteMX) -> None:
    mx.set_policy("refusing", "rcpt=550")
    mx.shut_gate("refusing")
    smtpd = start("mta limit max-failures-per-session 2")
    submit(smtpd, 6)
    mx.open_gate("refusing")
    until(lambda: mx.ledger().listeners["refusing"].refused_messages == 6, "six refusals")
    assert mx.ledger().listeners["refusing"].most_transactions_in_a_session == 2


def test_transactions_may_be_kept_apart(start: Callable[..., Smtpd], mx: RemoteMX) -> None:
    mx.shut_gate("refusing")
    smtpd = start("mta limit session-transaction-delay 1 max-conn-per-host 1")
    submit(smtpd, 3)
    mx.open_gate("refusing")
    began = time.monotonic()
    until(lambda: mx.ledger().listeners["refusing"].accepted == 3, "three messages")
    assert time.monotonic() - began > 1.8
    assert mx.ledger().listeners["refusing"].sessions == 1


def test_connections_may_be_kept_apart(start: Callable[..., Smtpd], mx: RemoteMX) -> None:
    smtpd = start('mta limit for domain "127.0.0.1" conn-delay-route 2')
    began = time.monotonic()
    for number in range(2):
        smtpd.send("x@to.test", text=message(number))
        until(lambda number=number: f"{number}@sender.test" in mx.ledger().delivered, "delivery")
    assert time.monotonic() - began > 1.8
    until(lambda: on_the_map(smtpd) == {}, "an empty map")


def test_a_host_that_takes_one_connection_at_a_time_is_not_given_up(start: Callable[..., Smtpd], mx: RemoteMX) -> None:
    mx.set_policy("refusing", "connect=421/2 end=stall:0.5")
    smtpd = start()
    submit(smtpd, 6)
    until(lambda: mx.ledger().listeners["refusing"].sessions >= 2, "a second connection, refused")
    until(lambda: mx.ledger().listeners["refusing"].accepted == 6, "all messages over the first one")
    assert smtpd.stats().get("scheduler.delivery.tempfail", 0) == 0


# ---- routes that fail


def test_a_route_that_failed_is_left_alone_until_it_is_resumed(start: Callable[..., Smtpd], mx: RemoteMX) -> None:
    mx.set_policy("refusing", "connect=554")
    smtpd = start()
    smtpd.send("x@to.test", text=message(1))
    until(lambda: smtpd.stats().get("scheduler.delivery.tempfail") == 1, "a temporary failure")
    (line,) = smtpd.smtpctl("show", "routes").stdout.splitlines()
    assert re.fullmatch(
        r"1\. \[\] <-> 127\.0\.0\.1 \(127\.0\.0\.1\) NDQ- nconn=0 nerror=1 penalty=1 timeout=1[0-5]s", line
    )
    smtpd.send("x@to.test", text=message(2))
    until(lambda: smtpd.stats().get("scheduler.delivery.tempfail") == 2, "another one")
    assert mx.ledger().listeners["refusing"].sessions == 1, "the second message was not worth a connection"
    assert on_the_map(smtpd) == {"host": 1, "route": 1, "source": 1}
    mx.set_policy("refusing", "")
    assert smtpd.smtpctl("resume", "route", "7").returncode == 1
    assert smtpd.smtpctl("resume", "route", "nonsense").returncode == 2
    assert smtpd.smtpctl("resume", "route", "1").stdout == "1 route resumed\n"
    assert on_the_map(smtpd) == {}
    smtpd.send("x@to.test", text=message(3))
    until(lambda: len(mx.ledger().delivered) == 3, "the third message, and with it those that waited for the host")


def test_what_waits_for_a_host_is_tried_as_soon_as_it_works(start: Callable[..., Smtpd], mx: RemoteMX) -> None:
    mx.set_policy("refusing", "connect=554")
    smtpd = start("mta max-deferred 2")
    submit(smtpd, 3)
    until(lambda: smtpd.stats().get("scheduler.delivery.tempfail") == 3, "three temporary failures")
    mx.set_policy("refusing", "")
    smtpd.smtpctl("resume", "route", "all")
    smtpd.send("y@to.test", text=message(9))
    until(lambda: len(mx.ledger().delivered) == 3, "the new message and two that waited")
    until(smtpd.at_rest, "rest")
    assert smtpd.stats()["scheduler.envelope"] == 1, "no more than max-deferred were remembered"


# ---- where mail comes from


def test_sources_are_taken_from_a_table_and_bad_ones_avoided(start: Callable[..., Smtpd], mx: RemoteMX) -> None:
    # 192.0.2.1 is nobody's (RFC 5737): it cannot be bound.
    smtpd = start("table us { 192.0.2.1, 127.0.0.77 }", "src <us>")
    smtpd.send("x@to.test", text=message(1))
    until(lambda: mx.ledger().delivered, "delivery from the address that is ours")
    assert "error on 192.0.2.1: 451 4.4.1 Cannot connect: Cannot assign requested address" in smtpd.log()


def test_without_a_good_source_mail_waits(start: Callable[..., Smtpd], mx: RemoteMX) -> None:
    smtpd = start("", "src 192.0.2.1")
    smtpd.send("x@to.test", text=message(1))
    until(lambda: "Cannot assign requested address" in smtpd.smtpctl("show", "queue").stdout, "a temporary failure")
    until(lambda: on_the_map(smtpd) == {}, "an empty map")


class Recorder:
    """One connection after the other, answered from a script of replies; keeps what clients said, and from where."""

    def __init__(self, replies: dict[str, str]) -> None:
        self.replies = replies
        self.lines: list[str] = []
        self.peers: list[str] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Recorder:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(10)

    def _serve(self) -> None:
        while True:
            try:
                connection, (address, _) = self._listening.accept()
            except OSError:
                return
            self.peers.append(address)
            with connection, connection.makefile("rwb") as stream:
                connection.settimeout(10)
                stream.write(b"220 recorder\r\n")
                stream.flush()
                in_data = False
                for raw in stream:
                    line = raw.decode().rstrip("\r\n")
                    self.lines.append(line)
                    if in_data and line != ".":
                        continue
                    verb = line.split(" ")[0].upper()
                    in_data = verb == "DATA"
                    stream.write(self.replies.get(verb, "354 go on" if in_data else "250 ok").encode() + b"\r\n")
                    stream.flush()
                    if verb == "QUIT":
                        break


def test_the_sender_and_the_greeting_are_as_configured(start_smtpd: StartSmtpd) -> None:
    with Recorder({}) as recorder:
        smtpd = start_smtpd(
            'listen on 127.0.0.1 port 0\ntable names { 127.0.0.77 = "seventy-seven.test" }\n'
            f'action "a" relay host smtp://127.0.0.1:{recorder.port} src 127.0.0.77 helo-src <names>'
            ' mail-from "@public.test"\n'
            f'action "b" relay host smtp://127.0.0.1:{recorder.port} helo "b.test" mail-from "list@public.test"\n'
            'match from any for domain "a.test" action "a"\nmatch from any for any action "b"\n'
        )
        smtpd.send("x@a.test")
        until(lambda: "QUIT" in recorder.lines, "the first message")
        assert recorder.lines[:2] == ["EHLO seventy-seven.test", "MAIL FROM:<a@public.test>"]
        assert recorder.peers == ["127.0.0.77"]
        recorder.lines.clear()
        smtpd.send("x@b.test")
        until(lambda: "QUIT" in recorder.lines, "the second message")
        assert recorder.lines[:2] == ["EHLO b.test", "MAIL FROM:<list@public.test>"]


def test_lmtp_has_a_reply_for_each_recipient(start_smtpd: StartSmtpd) -> None:
    replies = {
        "LHLO": "250 recorder",
        ".": "250 2.0.0 x is well\r\n550 5.7.1 y is not\r\n452 4.2.2 z is full",
    }
    with Recorder(replies) as recorder:
        smtpd = start_smtpd(
            "listen on 127.0.0.1 port 0\n"
            f'action "lmtp" relay host lmtp://127.0.0.1:{recorder.port}\nmatch from any for any action "lmtp"\n'
        )
        smtpd.send("x@to.test", "y@to.test", "z@to.test", sender="")
        until(lambda: smtpd.stats().get("scheduler.delivery.tempfail") == 1, "z's failure")
        stats = smtpd.stats()
        assert (stats["scheduler.delivery.ok"], stats["scheduler.delivery.permfail"]) == (1, 1)
        (line,) = smtpd.smtpctl("show", "queue").stdout.splitlines()
        assert line.endswith("452 4.2.2 z is full")
        last = [told for told in recorder.lines if told.startswith("RCPT")][2]
        assert f"<{line.split('|')[5]}>" in last
        assert recorder.lines[0].startswith("LHLO ")


# ---- more tasks than transfer wants


def test_a_relay_with_too_many_tasks_has_envelopes_held(start: Callable[..., Smtpd], mx: RemoteMX) -> None:
    mx.shut_gate("refusing")
    smtpd = start("mta limit task-hiwat 20 task-lowat 10 task-release 5")
    submit(smtpd, 70)
    until(lambda: smtpd.stats()["scheduler.envelope.held"] == 50, "held envelopes")
    stats = smtpd.stats()
    assert stats["mta.task"] == 20
    assert stats["scheduler.envelope.inflight"] == 20
    assert "ONHOLD" in smtpd.smtpctl("show", "relays").stdout
    rows = [line.split("|") for line in smtpd.smtpctl("show", "queue").stdout.splitlines()]
    assert sum(row[3] == "hold" for row in rows) == 50
    held = next(row[0] for row in rows if row[3] == "hold")
    assert smtpd.smtpctl("remove", held).returncode == 0
    assert smtpd.stats()["scheduler.envelope.held"] == 49
    mx.open_gate("refusing")
    until(lambda: mx.ledger().listeners["refusing"].accepted == 69, "all that were not removed")
    until(lambda: on_the_map(smtpd) == {}, "an empty map")
    stats = smtpd.stats()
    assert (stats["scheduler.envelope.held"], stats["scheduler.envelope"]) == (0, 0)
    assert not mx.ledger().duplicated


def test_a_session_waits_for_the_envelopes_that_are_released(start: Callable[..., Smtpd], mx: RemoteMX) -> None:
    mx.set_policy("refusing", "rcpt=550")
    mx.shut_gate("refusing")
    smtpd = start("mta limit task-hiwat 2 task-lowat 1 task-release 1 max-conn-per-host 1")
    submit(smtpd, 30)
    until(lambda: smtpd.stats()["scheduler.envelope.held"] == 28, "held envelopes")
    mx.open_gate("refusing")
    until(lambda: mx.ledger().listeners["refusing"].refused_messages == 30, "30 refusals")
    # Without waiting it is two. It is also two where a release takes longer than the second that a session waits.
    assert mx.ledger().listeners["refusing"].sessions == 1
    until(lambda: on_the_map(smtpd) == {}, "an empty map")


def test_held_envelopes_are_let_go_when_the_relay_is_given_up(start: Callable[..., Smtpd], mx: RemoteMX) -> None:
    mx.shut_gate("refusing")
    smtpd = start("mta limit task-hiwat 10 task-lowat 5 task-release 5")
    submit(smtpd, 40)
    until(lambda: smtpd.stats()["scheduler.envelope.held"] == 30, "held envelopes")
    mx.set_policy("refusing", "ehlo=421")
    mx.open_gate("refusing")
    until(lambda: smtpd.stats().get("scheduler.delivery.tempfail") == 40, "a temporary failure for each")
    until(smtpd.at_rest, "rest")
    stats = smtpd.stats()
    assert (stats["scheduler.envelope.held"], stats["scheduler.envelope"]) == (0, 40)


# ---- everything leaves


@pytest.fixture
def many_hosts() -> Iterator[Internet]:
    with Internet(*(f"h{number}" for number in range(200))) as internet:
        yield internet


@contextmanager
def descriptors(limit: int) -> Iterator[None]:
    """What is started now may open so many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("limit", [1024, 128])
def test_after_200_hosts_and_some_quiet_nothing_is_on_the_map(
    start_smtpd: StartSmtpd, many_hosts: Internet, tmp_path: Path, limit: int
) -> None:
    many_hosts.zone(
        **{f"d{number}": {"MX": [f"10 h{number}.mx.test."]} for number in range(200)},
        dead={"MX": ["10 down.mx.test."]},
    )
    configuration = f"""
listen on 127.0.0.1 port 0
mta limit session-keepalive 1
action "home" relay host smtp://127.0.0.1:{many_hosts.mx.ports[HOME]}
action "out" relay
match from any for domain "sender.test" action "home"
match from any for any action "out"
"""
    with descriptors(limit):
        smtpd = start_smtpd(configuration, *many_hosts.arguments(tmp_path))
    if limit == 128:
        for name in many_hosts.addresses:
            many_hosts.mx.shut_gate(name)
    with smtpd.smtp() as client:
        for first in range(0, 200, 50):
            client.sendmail(
                "a@sender.test", [f"x@d{number}.test" for number in range(first, first + 50)], message(first)
            )
    if limit == 128:
        until(lambda: smtpd.stats()["mta.session"] == max_sessions(limit), "as many sessions as there can be")
        until(lambda: smtpd.stats()["mta.domain"] == 200, "the rest waits")
        for name in many_hosts.addresses:
            many_hosts.mx.open_gate(name)
    smtpd.send("x@dead.test")
    until(lambda: sum(many_hosts.accepted().values()) == 200, "200 deliveries", 60)
    assert len(many_hosts.accepted()) == 200
    until(lambda: smtpd.stats().get("scheduler.delivery.tempfail") == 1, "a failure at the dead host")
    until(lambda: on_the_map(smtpd) == {"host": 1, "route": 1, "source": 1}, "what the dead host's penalty needs")
    assert len(smtpd.smtpctl("show", "hoststats").stdout.splitlines()) == 201
    assert smtpd.smtpctl("resume", "route", "all").stdout == "1 route resumed\n"
    assert on_the_map(smtpd) == {}
    assert smtpd.smtpctl("show", "routes").stdout == ""


def test_the_recipients_of_a_held_message_stay_together(start: Callable[..., Smtpd], mx: RemoteMX) -> None:
    mx.shut_gate("refusing")
    smtpd = start("mta limit task-hiwat 4 task-lowat 2 task-release 2")
    with smtpd.smtp() as client:
        for number in range(20):
            client.sendmail("a@sender.test", [f"{name}@to.test" for name in "xyz"], message(number))
    until(lambda: smtpd.stats()["scheduler.envelope.held"] == 48, "held envelopes")
    mx.open_gate("refusing")
    until(lambda: len(mx.ledger().delivered) == 20, "all messages")
    until(smtpd.at_rest, "rest")
    assert mx.ledger().listeners["refusing"].transactions == 20


@pytest.mark.parametrize(("descriptors", "sessions"), [(20, 1), (128, 44), (1024, 492), (1 << 20, 2000), (-1, 2000)])
def test_sessions_are_as_many_as_descriptors_allow(descriptors: int, sessions: int) -> None:
    assert max_sessions(descriptors) == sessions


def test_a_source_that_is_no_address_and_a_greeting_that_is_none_end_no_process(
    start: Callable[..., Smtpd], mx: RemoteMX
) -> None:
    smtpd = start("table us { 127.0.0.0/8 }", "src <us>")
    smtpd.send("x@to.test")
    until(lambda: "No source address in table <us>" in smtpd.smtpctl("show", "queue").stdout, "a temporary failure")
    smtpd = start('table names { 127.0.0.1 = "two words\u00e9" }', "helo-src <names>")
    smtpd.send("x@to.test")
    until(lambda: "a command is printable ASCII" in smtpd.smtpctl("show", "queue").stdout, "a temporary failure")
    smtpd = start('table names { 127.0.0.2 = "other.test" }', "helo-src <names>")
    smtpd.send("x@to.test")
    until(lambda: "No helo name for 127.0.0.1 in table <names>" in smtpd.smtpctl("show", "queue").stdout, "and another")
    assert mx.ledger().delivered == {}
