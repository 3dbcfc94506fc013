"""What tiny_smtp keeps of the mail that it was given: nothing, it is hoped."""

import smtplib
import subprocess
import sys
from pathlib import Path

import pytest

SERVER = Path(__file__).parents[1] / "tiny_smtp.py"
MESSAGE = "Subject: hello\r\n\r\nhello\r\n"


@pytest.fixture
def server(leak_check, tmp_path):
    """A Popen with a port. Seatbelt's environment lets it count the server's Python objects."""
    command = [sys.executable, SERVER, tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=leak_check.environment) as process:
        process.port = int(process.stdout.readline())
        yield process
        process.terminate()


def test_an_accepted_message_leaves_nothing(leak_check, server):
    def deliver():
        with smtplib.SMTP("127.0.0.1", server.port) as client:
            client.sendmail("me@there.test", "you@here.test", MESSAGE)

    leak_check(deliver, of=server, unit="message")


def test_a_refused_message_leaves_nothing(leak_check, server):
    with smtplib.SMTP("127.0.0.1", server.port) as client:
        for _ in leak_check.turns(of=server, unit="refused message"):
            client.mail("me@there.test")
            client.rcpt("you@elsewhere.test")
            client.rset()
