"""sendmail: to a daemon that runs, to one that does not, and what it makes of what it is given."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mta_under_test.wire.submission import SubmissionError, compose, from_offline, offline_text
from tests.processes.daemon import Smtpd, until
from tests.processes.keeping_server import Mailbox

CONFIGURATION = """
listen on 127.0.0.1 port 0
action "out" relay host smtp://127.0.0.1:{port}
match from any for domain "x.test" action "out"
"""
MESSAGE = "To: r@x.test\nBcc: hidden@x.test,\n other@x.test\nSubject: hi\n\nhello\n.\nnot this\n"


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    with Mailbox() as mailbox:
        yield mailbox


@pytest.fixture
def smtpd(start_smtpd: Callable[..., Smtpd], mailbox: Mailbox) -> Smtpd:
    return start_smtpd(CONFIGURATION.format(port=mailbox.port))


def environment(directory: Path) -> dict[str, str]:
    return {**os.environ, "SMTPD_SOCKET": str(directory / "smtpd.sock"), "SMTPD_SPOOL": str(directory / "spool")}


def sendmail(smtpd: Smtpd, *arguments: str, text: str = MESSAGE) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mta_under_test.sendmail", *arguments],
        input=text,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        env=environment(smtpd.directory),
    )


def by_shell(directory: Path, words: str) -> subprocess.CompletedProcess[str]:
    """`words`: arguments and redirections. Standard input is `message` in `directory`, unless they say otherwise."""
    (directory / "message").write_text(MESSAGE)
    return subprocess.run(
        ["bash", "-c", f'"$0" -m mta_under_test.sendmail <"$1" {words}', sys.executable, directory / "message"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        env=environment(directory),
    )


def test_it_hands_mail_to_a_daemon_that_runs(smtpd: Smtpd, mailbox: Mailbox) -> None:
    done = sendmail(smtpd, "-t", "-v", "-fme@x.test", "-F", "My Self")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Message accepted for delivery" in done.stdout
    until(lambda: len(mailbox.messages) == 1, "delivery")
    until(smtpd.at_rest, "rest")
    text = mailbox.messages[0].decode()
    assert "From: My Self <me@x.test>" in text
    assert "Date: " in text
    assert "Message-ID: <" in text
    assert "hidden" not in text
    assert text.endswith("hello\r\n")
    assert smtpd.stats()["scheduler.delivery.ok"] == 3


def test_what_is_left_offline_is_fetched_at_the_next_start(smtpd: Smtpd, mailbox: Mailbox) -> None:
    assert smtpd.stop() == 0
    assert sendmail(smtpd, "r@x.test").returncode == 0
    (smtpd.spool / "offline" / "nonsense").write_text("no message")
    (smtpd.spool / "offline" / "link").symlink_to("/etc/passwd")
    assert len(list((smtpd.spool / "offline").iterdir())) == 3
    smtpd.start()
    until(lambda: mailbox.messages, "delivery")
    until(lambda: (smtpd.spool / "offline" / "nonsense.refused").exists(), "nonsense put aside")
    until(smtpd.at_rest, "rest")
    assert len(mailbox.messages) == 1
    assert sorted(path.name for path in (smtpd.spool / "offline").iterdir()) == ["link", "nonsense.refused"]


@pytest.mark.parametrize(
    ("arguments", "text", "status"),
    [
        (("nobody@elsewhere.test",), MESSAGE, 67),
        ((), MESSAGE, 64),
        (("-t",), "Subject: to nobody\n\n", 64),
        (("-y",), MESSAGE, 64),
    ],
)
def test_exit_status(smtpd: Smtpd, arguments: tuple[str, ...], text: str, status: int) -> None:
    done = sendmail(smtpd, *arguments, text=text)
    assert done.returncode == status
    assert done.stderr.startswith("sendmail: ")


def test_bs_is_a_session_and_bp_the_queue(smtpd: Smtpd) -> None:
    done = sendmail(smtpd, "-bs", text="EHLO me\r\nNOOP\r\nQUIT\r\n")
    assert [line[:3] for line in done.stdout.splitlines() if line[3:4] == " "] == ["220", "250", "250", "221"]
    assert sendmail(smtpd, "-bp").returncode == 0


def test_bs_takes_a_file_and_nothing_at_all(lasting_smtpd: Smtpd) -> None:
    script = lasting_smtpd.directory / "script"
    script.write_text("EHLO me\r\nQUIT\r\n")
    done = by_shell(lasting_smtpd.directory, f"-bs <{script}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith("221 ")
    done = by_shell(lasting_smtpd.directory, "-bs </dev/null")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "status", "complaint"),
    [
        ("-v root <&-", 66, "standard input is closed"),
        ("-bs <&-", 66, "standard input is closed"),
        ("-bs >&-", 74, "standard output is closed"),
        ("-f $'\\xff' root", 65, "an address that is not ASCII: '\\udcff@"),
        ("$'\\xff@x.test'", 65, "an address that is not ASCII: '\\udcff@x.test'"),
        ("-f $'me\\nyou@x.test' root", 65, "an address with a blank or a control character: 'me\\nyou@x.test'"),
        ("$'me>\\r\\nRSET@x.test'", 65, "an address with a blank or a control character: 'me>\\r\\nRSET@x.test'"),
        ("'me you@x.test'", 65, "an address with a blank or a control character: 'me you@x.test'"),
        ("-F $'\\xff' root", 65, "a full name that is not UTF-8, or with a control character: '\\udcff'"),
        ("-F $'I\\nBcc: you@x.test' root", 65, "a full name that is not UTF-8, or with a control character: "),
        ("--offline", 64, "--offline is smtpd's own"),
        ("--offline x y", 64, "--offline is smtpd's own"),
        ("--offline 3 -1", 64, "--offline is smtpd's own"),
        ("--offline 99 0", 64, "--offline 99 0: Bad file descriptor"),
    ],
)
def test_what_it_cannot_work_with_is_one_line(tmp_path: Path, words: str, status: int, complaint: str) -> None:
    (tmp_path / "spool" / "offline").mkdir(parents=True)
    done = by_shell(tmp_path, words)
    assert done.returncode == status, done.stderr
    assert done.stderr.startswith(f"sendmail: {complaint}")
    assert len(done.stderr.splitlines()) == 1
    assert not list((tmp_path / "spool" / "offline").iterdir())


def test_mail_that_is_taken_stays_so_when_that_cannot_be_told(tmp_path: Path) -> None:
    """Status 0: whoever were told of a failure would send it once more."""
    (tmp_path / "spool" / "offline").mkdir(parents=True)
    done = by_shell(tmp_path, "-v root >/dev/full")
    assert (done.returncode, done.stderr) == (0, "sendmail: standard output: No space left on device\n")
    assert len(list((tmp_path / "spool" / "offline").iterdir())) == 1


def test_bs_that_cannot_tell_what_smtpd_says_fails(lasting_smtpd: Smtpd) -> None:
    done = by_shell(lasting_smtpd.directory, "-bs >/dev/full")
    assert (done.returncode, done.stderr) == (74, "sendmail: standard output: No space left on device\n")


def test_text_without_a_header_is_all_body() -> None:
    made = compose(b"just words\n.\nand more\n", sender="me", hostname="h.test", recipients=["you"], dot_ends=False)
    assert made.sender == "me@h.test"
    assert made.recipients == ("you@h.test",)
    assert made.text.endswith(b"\r\n\r\njust words\r\n.\r\nand more\r\n")
    assert from_offline(offline_text(made)) == made


def test_what_is_there_is_kept_and_folded_fields_go_whole() -> None:
    head = b"From: a@x\nDate: then\nMessage-ID: <1@x>\nBCC: b@x,\n c@x\nTo: d@x\nX: y\n  z\n"
    made = compose(head + b"\nbody", sender="", hostname="h.test", from_header=True)
    assert made.recipients == ("d@x", "b@x", "c@x")
    assert made.text == b"From: a@x\r\nDate: then\r\nMessage-ID: <1@x>\r\nTo: d@x\r\nX: y\r\n  z\r\n\r\nbody\r\n"


@pytest.mark.parametrize("data", [b"", b"sender only\n", b"a\nb", b"a@x\n\xff@x\n\ntext"])
def test_a_file_that_sendmail_did_not_leave_is_refused(data: bytes) -> None:
    with pytest.raises(SubmissionError):
        from_offline(data)
