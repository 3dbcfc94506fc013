"""`seatbelt mx` in a terminal: the address, a line a message, the dialogue, the totals."""

from __future__ import annotations

import re
import signal
import smtplib
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from harness.remote_mx.__main__ import run_foreground

TIMEOUT_S = 10.0


@contextmanager
def running(*options: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The command, and the port that it says it listens on."""
    command = [sys.executable, "-m", "harness.remote_mx", "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        found = re.match(r"listening on 127\.0\.0\.1 port (\d+), policy: ", first)
        assert found, first
        yield process, int(found[1])
    finally:
        process.kill()
        process.communicate()


def send(port: int) -> None:
    with smtplib.SMTP("127.0.0.1", port, local_hostname="x.test", timeout=TIMEOUT_S) as client:
        client.sendmail("a@b.test", ["c@d.test"], "Message-ID: <1@load>\r\n\r\nx\r\n")
        with pytest.raises(smtplib.SMTPRecipientsRefused):
            client.sendmail("a@b.test", ["c@refused.test"], "x")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_line_a_message_and_the_totals_at_the_end(number: signal.Signals) -> None:
    with running("--policy", "rcpt@refused.test=550") as (process, port):
        send(port)
        process.send_signal(number)
        out, err = process.communicate(timeout=TIMEOUT_S)
        assert out.splitlines() == [
            "accepted from <a@b.test> to <c@d.test>: 27 bytes, Message-ID 1@load",
            "refused from <a@b.test> to <c@refused.test>: 550 5.1.1 No such user here, as told",
            "",
            "1 sessions, 2 transactions: 1 accepted, 1 refused; 1 recipients refused; "
            "at most 2 transactions in a session",
        ]
        assert (err, process.returncode) == ("", 0)


def test_the_dialogue() -> None:
    with running("-v", "--policy", "rcpt@refused.test=550", "--hostname", "mx.example") as (process, port):
        send(port)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=TIMEOUT_S)
        lines = [line.strip() for line in out.splitlines()]
        assert lines[0] == "1 S: 220 mx.example ESMTP Seatbelt remote MX"
        for line in ("1 C: EHLO x.test", "1 C: (message) .", "1 C: RCPT TO:<c@refused.test>", "1 S: 221 2.0.0 Bye"):
            assert line in lines


def test_a_taken_port_and_a_bad_policy_are_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run_foreground("", "127.0.0.1", port, False) == 2
    captured = capsys.readouterr()
    assert captured.err == f"seatbelt mx: 127.0.0.1:{port}: Address already in use; choose with --listen and --port\n"
    assert run_foreground("rcpt=twice", "127.0.0.1", 0, False) == 2
    assert "'twice' is no action" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "Ctrl-C is the caller's again"
