"""Filter programs: asked, told, trusted with the message's lines; and ended with the daemon, or it with them."""

from __future__ import annotations

import os
import smtplib
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from mta_under_test.ipc.messages import Kind
from tests.processes import sample_filter
from tests.processes.daemon import Smtpd, until

StartSmtpd = Callable[..., Smtpd]

# Started by root, programs become a user without rights, who may not even be allowed to run this Python.
USER = "user root" if os.geteuid() == 0 else ""
CONFIGURATION = """
filter "one" proc-exec "{python} {program} '{log}' one" {user}
filter "two" proc-exec "{python} {program} '{log}.two' two" {user}
filter "builtin" phase mail-from match mail-from "@blocked.test" reject "550 5.7.1 blocked"
listen on 127.0.0.1 port 0 filter {{ "builtin", "one" }}
listen on 127.0.0.1 port 0 filter {{ "one", "two" }}
action "out" relay host smtp://127.0.0.1:9
match from any for any action "out"
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    directory = tmp_path / "filter log"  # the blank tests how the command is split
    directory.mkdir()
    directory.chmod(0o777)
    tmp_path.chmod(0o755)
    return directory / "log"


@pytest.fixture
def smtpd(start_smtpd: StartSmtpd, log: Path) -> Smtpd:
    program = Path(sample_filter.__file__)
    daemon = start_smtpd(CONFIGURATION.format(python=sys.executable, program=program, log=log, user=USER))
    with daemon.control() as control:
        control.ask(Kind.PAUSE, text="mta")
    return daemon


def submit(smtpd: Smtpd, sender: str, text: str, listener: int = 0) -> None:
    with smtplib.SMTP("127.0.0.1", smtpd.ports[listener], local_hostname="client.test", timeout=20) as client:
        client.sendmail(sender, ["x@example.org"], text)


def stored(smtpd: Smtpd) -> str:
    (line,) = smtpd.smtpctl("show", "queue").stdout.splitlines()
    return smtpd.smtpctl("show", "message", line[:8]).stdout


def filter_pids(smtpd: Smtpd) -> list[int]:
    return [
        one.pid for one in psutil.Process(smtpd.process.pid).children() if "sample_filter.py" in " ".join(one.cmdline())
    ]


def test_a_program_edits_the_message_line_by_line(smtpd: Smtpd) -> None:
    submit(
        smtpd, "a@sender.test", "Subject: hi\r\n\r\nquiet please\r\nmy secret\r\n.dot\r\n..\r\n" + "x" * 20_000 + "\r\n"
    )
    text = stored(smtpd).replace("\r\n", "\n")
    assert text.startswith("Received: from client.test (localhost [127.0.0.1])")
    assert "\nX-Program: one\nSubject: hi\n\nLOUD please\n.dot\n..\n" + "x" * 20_000 + "\n" in text
    assert "secret" not in text


def test_a_chain_of_programs_hands_on_what_the_one_before_made(smtpd: Smtpd) -> None:
    submit(smtpd, "a@sender.test", "Subject: hi\r\n\r\nquiet\r\n", listener=1)
    assert "\nX-Program: two\nX-Program: one\nSubject: hi\n\nLOUD\n" in stored(smtpd).replace("\r\n", "\n")


def test_a_big_message_comes_through_whole(smtpd: Smtpd) -> None:
    body = "".join(f"{number:>60}\r\n" for number in range(20_000))
    submit(smtpd, "a@sender.test", f"Subject: big\r\n\r\n{body}", listener=1)
    assert stored(smtpd).replace("\r\n", "\n").endswith(f"\n\n{body}".replace("\r\n", "\n"))
    assert smtpd.stats()["filter.stream"] == 0


def test_decisions(smtpd: Smtpd) -> None:
    with smtpd.smtp() as client:
        client.ehlo()
        assert client.mail("reject@sender.test") == (550, b"5.7.1 the program says no")
        assert client.mail("a@blocked.test") == (550, b"5.7.1 blocked")
        assert client.mail("off@sender.test") == (421, b"4.7.0 the program says bye")
        with pytest.raises(smtplib.SMTPServerDisconnected):
            client.noop()
    submit(smtpd, "junk@sender.test", "Subject: hi\r\n\r\n")
    assert stored(smtpd).startswith("X-Spam: Yes")
    assert smtpd.smtpctl("remove", "all").returncode == 0
    submit(smtpd, "old@sender.test", "Subject: hi\r\n\r\n")
    assert "|new@sender.test|" in smtpd.smtpctl("show", "queue").stdout


def test_reports_tell_a_session_s_story(smtpd: Smtpd, log: Path) -> None:
    submit(smtpd, "a@sender.test", "Subject: hi\r\n\r\n")
    until(lambda: "link-disconnect" in log.read_text(), "the end of the session")
    lines = [line.split("|") for line in log.read_text().splitlines()]
    assert ["config", "ready"] in lines
    events = [
        (line[4], line[6:]) for line in lines if line[0] == "report" and not line[4].startswith(("protocol", "filter"))
    ]
    assert [name for name, _ in events] == [
        "link-connect",
        "link-greeting",
        "link-identify",
        "tx-begin",
        "tx-mail",
        "tx-rcpt",
        "tx-data",
        "tx-commit",
        "link-disconnect",
    ]
    found = dict(events)
    assert found["link-connect"][:2] == ["localhost", "pass"]
    assert found["link-connect"][3] == f"127.0.0.1:{smtpd.ports[0]}"
    assert found["link-identify"] == ["EHLO", "client.test"]
    assert found["tx-mail"][1:] == ["ok", "a@sender.test"]
    assert found["tx-rcpt"][1:] == ["ok", "x@example.org"]
    assert len({line[5] for line in lines if line[0] == "report"}) == 1


def test_a_client_that_goes_in_mid_message_leaves_nothing(smtpd: Smtpd) -> None:
    submit(smtpd, "a@sender.test", "Subject: first\r\n\r\n")
    until(lambda: not smtpd.stats()["smtp.session"], "the session ends")
    held = {role: len(smtpd.descriptors(role)) for role in ("smtp", "lookup")}
    for _ in range(20):
        with smtpd.smtp() as client:
            client.ehlo()
            client.mail("a@sender.test")
            client.rcpt("x@example.org")
            client.putcmd("DATA")
            client.getreply()
            client.send(b"Subject: half\r\n\r\n" + b"y" * 30_000)
            client.close()
    until(lambda: not smtpd.stats()["smtp.session"] and not smtpd.stats()["filter.stream"], "rest")
    until(lambda: {role: len(smtpd.descriptors(role)) for role in held} == held, "no descriptor more")
    submit(smtpd, "a@sender.test", "Subject: second\r\n\r\n")


def test_programs_end_with_the_daemon(smtpd: Smtpd) -> None:
    pids = filter_pids(smtpd)
    assert len(pids) == 2
    assert smtpd.stop() == 0
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert "does not end" not in smtpd.log()


@pytest.mark.parametrize("sender", ["die@sender.test", "nonsense@sender.test"])
def test_a_program_that_fails_ends_the_daemon_by_name(smtpd: Smtpd, sender: str) -> None:
    with smtpd.smtp() as client, pytest.raises(smtplib.SMTPException):
        client.sendmail(sender, ["x@example.org"], "hi\r\n")
    assert smtpd.process.wait(20) == 1
    assert "filter one" in smtpd.log()


def test_what_a_program_complains_about_is_in_the_log(smtpd: Smtpd) -> None:
    until(lambda: "filter one: at your service" in smtpd.log(), "the program's words")


def test_a_program_that_cannot_be_run_is_an_error_that_names_it(start_smtpd: StartSmtpd, tmp_path: Path) -> None:
    configuration = """
        filter "x" proc-exec "/no/such/program -v"
        listen on 127.0.0.1 port 0 filter "x"
        match from any for any reject
    """
    with pytest.raises(AssertionError, match="filter x: cannot run '/no/such/program -v': No such file"):
        start_smtpd(configuration)
