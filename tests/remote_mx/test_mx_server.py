"""The remote MX over real connections: every refusal, the gate, and what the ledger says of it."""

from __future__ import annotations

import smtplib
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.remote_mx.process import ListenerReport, RemoteMX

TIMEOUT_S = 10.0


@contextmanager
def serving(policy: str) -> Iterator[RemoteMX]:
    with RemoteMX({"mx": policy}) as mx:
        yield mx


def connect(mx: RemoteMX) -> smtplib.SMTP:
    return smtplib.SMTP("127.0.0.1", mx.ports["mx"], local_hostname="client.test", timeout=TIMEOUT_S)


def raw(mx: RemoteMX) -> socket.socket:
    return socket.create_connection(("127.0.0.1", mx.ports["mx"]), TIMEOUT_S)


def totals(mx: RemoteMX) -> ListenerReport:
    return mx.ledger().listeners["mx"]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


def message(number: int) -> str:
    return f"Message-ID: <{number}@load>\r\n\r\n.dots\r\n..\r\n"


def begin(client: smtplib.SMTP, sender: str = "a@b.test") -> None:
    client.ehlo_or_helo_if_needed()
    assert client.mail(sender)[0] == 250


def test_it_accepts_what_no_rule_refuses() -> None:
    with serving("") as mx:
        with connect(mx) as client:
            assert client.sendmail("a@b.test", ["c@d.test", "e@d.test"], message(1)) == {}
            assert client.sendmail("a@b.test", ["c@d.test"], message(2)) == {}
        until(lambda: mx.open_sessions() == 0)
        assert totals(mx) == ListenerReport(sessions=1, transactions=2, most_transactions_in_a_session=2, accepted=2)
        assert mx.ledger().delivered == {"1@load": ["c@d.test", "e@d.test"], "2@load": ["c@d.test"]}


def test_a_refused_connection() -> None:
    with serving("connect=554/2") as mx:
        connect(mx).close()
        with pytest.raises(smtplib.SMTPConnectError, match="554"):
            connect(mx)
        connect(mx).close()
        assert totals(mx).sessions == 3


def test_a_refused_ehlo_lets_the_client_fall_back_to_helo() -> None:
    with serving("ehlo=502") as mx, connect(mx) as client:
        client.sendmail("a@b.test", ["c@d.test"], message(1))
        assert client.esmtp_features == {}
        assert totals(mx).accepted == 1


@pytest.mark.parametrize(
    ("policy", "error", "refused_recipients"),
    [
        ("mail=451", smtplib.SMTPSenderRefused, 0),
        ("mail@b.test=550", smtplib.SMTPSenderRefused, 0),
        ("rcpt=550", smtplib.SMTPRecipientsRefused, 2),
        ("rcpt=450", smtplib.SMTPRecipientsRefused, 2),
        ("data=554", smtplib.SMTPDataError, 0),
        ("data@d.test=554", smtplib.SMTPDataError, 0),
        ("end=552", smtplib.SMTPDataError, 0),
    ],
)
def test_refused_messages(policy: str, error: type[Exception], refused_recipients: int) -> None:
    with serving(policy) as mx, connect(mx) as client:
        for number in range(3):
            with pytest.raises(error):
                client.sendmail("a@b.test", ["c@d.test", "e@d.test"], message(number))
            client.rset()  # smtplib does so itself, except after a refused DATA
        report = totals(mx)
        assert (report.transactions, report.refused_messages, report.accepted) == (3, 3, 0)
        assert report.refused_recipients == 3 * refused_recipients
        assert mx.ledger().delivered == {}


def test_every_third_recipient_over_all_sessions() -> None:
    with serving("rcpt=550/3") as mx:
        codes = []
        for _ in range(3):
            with connect(mx) as client:
                begin(client)
                codes += [client.rcpt(f"r{number}@d.test")[0] for number in range(3)]
        assert codes == [250, 250, 550] * 3
        assert totals(mx).refused_recipients == 3


def test_every_third_transaction_is_accepted_whole_and_in_whichever_session() -> None:
    with serving("mail=450/2 rcpt=550 data=554 end=554 spare=3") as mx:
        for number in range(1, 7):
            with connect(mx) as client:
                if number % 3 == 0:
                    assert client.sendmail("a@b.test", ["c@d.test", "e@d.test"], message(number)) == {}
                else:
                    with pytest.raises((smtplib.SMTPSenderRefused, smtplib.SMTPRecipientsRefused)):
                        client.sendmail("a@b.test", ["c@d.test"], message(number))
        assert mx.ledger().delivered.keys() == {"3@load", "6@load"}
        assert (totals(mx).accepted, totals(mx).refused_messages) == (2, 4)


def test_who_writes_the_dot_apart_does_not_wait_for_the_kernel() -> None:
    with serving("") as mx, raw(mx) as client:
        lines = client.makefile("rb")
        for command in ("", "EHLO client.test\r\n", "MAIL FROM:<a@b.test>\r\n", "RCPT TO:<c@d.test>\r\n"):
            client.sendall(command.encode())
            while lines.readline()[3:4] == b"-":
                continue
        began = time.monotonic()
        for number in range(10):
            if number:
                client.sendall(b"MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\n")
                assert [lines.readline()[:3] for _ in range(2)] == [b"250"] * 2
            client.sendall(b"DATA\r\n")
            assert lines.readline()[:3] == b"354"
            client.sendall(b"Subject: two pieces\r\n\r\n")
            client.sendall(b".\r\n")
            assert lines.readline()[:3] == b"250"
        assert time.monotonic() - began < 10 * 0.04, "the kernel's delay of an acknowledgement"


def test_a_domain_of_its_own() -> None:
    with serving("rcpt@refused.test=550 end@slow.test=451") as mx, connect(mx) as client:
        assert client.sendmail("a@b.test", ["c@Refused.test", "c@ok.test"], message(1)).keys() == {"c@Refused.test"}
        with pytest.raises(smtplib.SMTPDataError):
            client.sendmail("a@b.test", ["c@slow.test", "c@ok.test"], message(2))
        assert mx.ledger().delivered == {"1@load": ["c@ok.test"]}
        assert (totals(mx).refused_recipients, totals(mx).refused_messages) == (1, 1)


def test_a_refused_transaction_counts_once_however_it_ends() -> None:
    with serving("rcpt=550") as mx:
        ends: list[Callable[[smtplib.SMTP], object]] = [
            lambda client: client.rset(),
            lambda client: client.ehlo(),
            lambda client: client.quit(),
            lambda client: client.close(),
            lambda client: (client.docmd("DATA"), client.rset(), client.rset()),
        ]
        for count, end in enumerate(ends, 1):
            client = connect(mx)
            begin(client)
            client.rcpt("c@d.test")
            assert totals(mx).refused_messages == count - 1
            end(client)
            until(lambda count=count: totals(mx).refused_messages == count)  # type: ignore[misc]
            client.close()
        until(lambda: mx.open_sessions() == 0)
        assert totals(mx).refused_messages == len(ends)


DIALOGUE = {
    "connect": b"",
    "ehlo": b"EHLO x.test\r\n",
    "mail": b"MAIL FROM:<a@b.test>\r\n",
    "rcpt": b"RCPT TO:<c@d.test>\r\n",
    "data": b"DATA\r\n",
    "end": b"x\r\n.\r\n",
}


def last_words(mx: RemoteMX, last_phase: str) -> bytes:
    """What the server says in this phase."""
    with raw(mx) as client:
        lines = client.makefile("rb")
        for phase, command in DIALOGUE.items():
            client.sendall(command)
            if phase == last_phase:
                return client.recv(100)
            while lines.readline()[3:4] == b"-":
                continue
    raise AssertionError(f"no phase {last_phase}")


@pytest.mark.parametrize("phase", DIALOGUE)
def test_connections_closed_without_a_word(phase: str) -> None:
    with serving(f"{phase}=fin") as mx:
        assert last_words(mx, phase) == b""
        expect_one_dropped(mx)


@pytest.mark.parametrize("phase", DIALOGUE)
def test_connections_that_are_reset(phase: str) -> None:
    with serving(f"{phase}=drop") as mx:
        with pytest.raises(ConnectionResetError):
            last_words(mx, phase)
        expect_one_dropped(mx)


def expect_one_dropped(mx: RemoteMX) -> None:
    until(lambda: mx.open_sessions() == 0)
    report = totals(mx)
    assert (report.sessions, report.dropped_sessions) == (1, 1)
    assert (report.refused_messages, report.accepted) == (0, 0)


def test_a_stall_for_good_ends_when_the_client_gives_up() -> None:
    with serving("rcpt=stall") as mx:
        with raw(mx) as client:
            client.sendall(b"EHLO x.test\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\n")
            until(lambda: totals(mx).transactions == 1)
            assert mx.open_sessions() == 1
        until(lambda: mx.open_sessions() == 0)
        assert totals(mx).refused_messages == 0


def test_a_stall_for_a_while_answers_late_and_does_not_block_others() -> None:
    with serving("mail@slow.test=stall:0.3") as mx, connect(mx) as slow, connect(mx) as quick:
        slow.ehlo()
        began = time.monotonic()
        slow.putcmd("MAIL", "FROM:<a@slow.test>")
        quick.sendmail("a@b.test", ["c@d.test"], message(1))
        assert totals(mx).accepted == 1
        assert slow.getreply()[0] == 250
        assert time.monotonic() - began >= 0.3
        assert slow.rcpt("c@d.test")[0] == 250


def test_what_was_pipelined_behind_a_stall_is_void_when_the_client_has_gone() -> None:
    with serving("connect=stall:0.1") as mx:
        with raw(mx) as client:
            client.sendall(b"EHLO x.test\r\nMAIL FROM:<a@b.test>\r\n")
        until(lambda: totals(mx).sessions == 1 and mx.open_sessions() == 0)
        connect(mx).close()  # greeted after a stall of its own: the first would be over by now
        assert totals(mx).transactions == 0


def test_a_refused_data_may_be_tried_again() -> None:
    with serving("data=451") as mx, connect(mx) as client:
        begin(client)
        assert client.rcpt("c@d.test")[0] == 250
        assert client.docmd("DATA")[0] == 451
        mx.set_policy("mx", "")
        assert client.data(message(1))[0] == 250
        assert (totals(mx).accepted, totals(mx).refused_messages) == (1, 0)
        assert mx.ledger().delivered == {"1@load": ["c@d.test"]}


def test_a_client_may_reset_the_connection_during_a_stall() -> None:
    with serving("connect=stall:0.1") as mx:
        client = raw(mx)
        until(lambda: mx.open_sessions() == 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        until(lambda: mx.open_sessions() == 0)
        with connect(mx) as other:
            assert other.noop()[0] == 250


def test_a_session_of_one_message() -> None:
    with serving("messages=1") as mx:
        client = connect(mx)
        client.sendmail("a@b.test", ["c@d.test"], message(1))
        with pytest.raises(smtplib.SMTPServerDisconnected):
            client.noop()
        assert totals(mx).accepted == 1


def test_a_session_of_one_message_that_is_refused() -> None:
    with serving("messages=1 rcpt=550") as mx:
        client = connect(mx)
        begin(client)
        assert client.rcpt("c@d.test")[0] == 550
        assert client.rset()[0] == 250
        with pytest.raises(smtplib.SMTPServerDisconnected):
            client.noop()
        assert totals(mx).refused_messages == 1


def test_421_after_so_many_messages() -> None:
    with serving("quit-after=2") as mx:
        client = connect(mx)
        for number in range(2):
            client.sendmail("a@b.test", ["c@d.test"], message(number))
        assert client.mail("a@b.test")[0] == 421
        with pytest.raises(smtplib.SMTPServerDisconnected):
            client.noop()
        assert (totals(mx).transactions, totals(mx).refused_messages) == (2, 0)


def test_a_421_by_rule_closes_the_session() -> None:
    with serving("rcpt=421") as mx:
        client = connect(mx)
        begin(client)
        assert client.rcpt("c@d.test")[0] == 421
        with pytest.raises(smtplib.SMTPServerDisconnected):
            client.noop()
        until(lambda: totals(mx).refused_messages == 1)


def test_behind_a_shut_gate_everybody_waits_and_is_then_greeted() -> None:
    with serving("") as mx:
        mx.shut_gate("mx")
        waiting = [raw(mx) for _ in range(5)]
        until(lambda: mx.open_sessions() == 5)
        waiting[0].settimeout(0.2)
        with pytest.raises(TimeoutError):
            waiting[0].recv(1)
        waiting[1].close()
        until(lambda: mx.open_sessions() == 4)
        mx.open_gate("mx")
        for number in (0, 2, 3, 4):
            waiting[number].settimeout(TIMEOUT_S)
            assert waiting[number].recv(3) == b"220"
            waiting[number].close()
        until(lambda: mx.open_sessions() == 0)
        with connect(mx) as late:
            assert late.noop()[0] == 250


def test_a_session_that_was_greeted_goes_on_behind_a_shut_gate() -> None:
    with serving("") as mx, connect(mx) as client:
        mx.shut_gate("mx")
        client.sendmail("a@b.test", ["c@d.test"], message(1))
        assert totals(mx).accepted == 1


def test_a_new_policy_holds_in_open_sessions() -> None:
    with serving("rcpt=550/2") as mx, connect(mx) as client:
        begin(client)
        assert client.rcpt("c@d.test")[0] == 250
        mx.set_policy("mx", "rcpt=450/2")
        assert [client.rcpt("c@d.test")[0] for _ in range(2)] == [250, 450]


def test_pipelined_commands_are_answered_one_by_one() -> None:
    with serving("rcpt=550/2") as mx, raw(mx) as client:
        client.sendall(
            b"EHLO x.test\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nRCPT TO:<e@d.test>\r\nDATA\r\n"
            b"Message-ID: <1@load>\r\n\r\nx\r\n.\r\nMAIL FROM:<a@b.test>\r\nQUIT\r\n"
        )
        client.shutdown(socket.SHUT_WR)
        lines = client.makefile("rb").readlines()
        assert [line[:3] for line in lines if line[3:4] == b" "] == [
            *(b"220", b"250", b"250", b"250", b"550", b"354", b"250", b"250", b"221")
        ]
        assert mx.ledger().delivered == {"1@load": ["c@d.test"]}


def test_a_malformed_message_is_refused_and_counted() -> None:
    with serving("") as mx, raw(mx) as client:
        client.sendall(b"EHLO x\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\nx\n.\r\n\r\n.\r\nQUIT\r\n")
        assert client.makefile("rb").readlines()[-2].startswith(b"550 5.6.11")
        assert (totals(mx).accepted, totals(mx).refused_messages) == (0, 1)


def test_many_sessions_at_once_leave_nothing_behind() -> None:
    with serving("rcpt=550/2 end=451/3") as mx:
        descriptors = open_descriptors(mx.pid)
        for _ in range(3):
            clients = [connect(mx) for _ in range(20)]
            for client in clients[::2]:
                begin(client)
                client.rcpt("c@d.test")
            for client in clients:
                client.close()
            until(lambda: mx.open_sessions() == 0)
        until(lambda: open_descriptors(mx.pid) == descriptors)
        assert totals(mx).sessions == 60


def open_descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
