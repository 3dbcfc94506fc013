"""The agents that write into mailboxes, and what becomes of a mailbox when they fail."""

from __future__ import annotations

import fcntl
import mailbox
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mta_under_test.ipc.messages import Kind
from mta_under_test.processes.mda import agents
from mta_under_test.processes.mda.mda import End
from mta_under_test.processes.mda.results import result_of

MESSAGE = b"Subject: hi\r\n\r\nFrom me\r\n\r\nFrom you\r\nno end"


def run(
    *arguments: str | Path, text: bytes = MESSAGE, largest: int | None = None
) -> subprocess.CompletedProcess[bytes]:
    """An agent as a program of its own; `largest` bytes may a file have."""

    def limit() -> None:
        assert largest is not None
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))

    return subprocess.run(
        [sys.executable, "-I", agents.__file__, *map(str, arguments)],
        input=text,
        capture_output=True,
        preexec_fn=None if largest is None else limit,
        check=False,
        timeout=60,
    )


def test_mbox_quotes_what_looks_like_a_beginning(tmp_path: Path) -> None:
    path = tmp_path / "mbox"
    for _ in range(2):
        assert run("mbox", "a@b", "c@d", path).returncode == 0
    text = path.read_bytes()
    assert text.count(b"\nFrom ") == 1
    assert text.startswith(b"From a@b ")
    assert b"\n\n>From me\n\n>From you\nno end\n\nFrom a@b " in text
    assert len(mailbox.mbox(path)) == 2
    assert run("mbox", "", "c@d", path, text=b"").returncode == 0
    assert b"From MAILER-DAEMON " in path.read_bytes()


def test_mbox_lines_are_quoted_wherever_they_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "text"
    text.write_bytes(b"Subject: x\r\n\r\n" + b"From here\r\nFro\r\nFromage\r\n\rx\r\n" * 50)
    found = set()
    for size in (1, 2, 7, 64, 1 << 16):
        monkeypatch.setattr(agents, "_READ_BYTES", size)
        path = tmp_path / f"mbox{size}"
        descriptor = os.open(text, os.O_RDONLY)
        agents.mbox(descriptor, "a@b", "c@d", str(path))
        os.close(descriptor)
        found.add(path.read_bytes().partition(b"\n")[2])
    assert len(found) == 1
    (body,) = found
    assert body.count(b">From here\nFro\nFromage\n\rx\n") == 50


def test_a_write_that_fails_leaves_the_mbox_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "mbox"
    run("mbox", "a@b", "c@d", path)
    before = path.read_bytes()
    done = run("mbox", "a@b", "c@d", path, text=b"Subject: long\r\n\r\n" + b"x" * 70 + b"\r\n" * 99999, largest=5000)
    assert done.returncode == 75
    assert b"File too large" in done.stderr
    assert path.read_bytes() == before
    assert not (tmp_path / "mbox.lock").exists()


def test_an_mbox_that_is_no_file_of_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "hard").hardlink_to(tmp_path / "real")
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "hard", "fifo", "none/mbox"):
        done = run("mbox", "a@b", "c@d", tmp_path / name)
        assert (name, done.returncode) == (name, 75)
        assert str(tmp_path / name).encode() in done.stderr
    assert (tmp_path / "real").read_text() == ""


def test_locks_are_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "mbox"
    path.touch(0o600)
    lock = tmp_path / "mbox.lock"
    lock.touch()
    with path.open("r+b") as other:
        fcntl.lockf(other, fcntl.LOCK_EX)
        done: list[int] = []
        thread = threading.Thread(target=lambda: done.append(run("mbox", "a@b", "c@d", path).returncode))
        thread.start()
        time.sleep(0.4)
        lock.unlink()
        time.sleep(0.3)
        assert not path.stat().st_size, "the fcntl lock holds it"
    thread.join()
    assert done == [0]
    assert path.stat().st_size


def test_a_stale_lock_is_removed_and_a_held_one_gives_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "mbox.lock"
    lock.touch()
    os.utime(lock, (1, 1))
    assert run("mbox", "a@b", "c@d", tmp_path / "mbox").returncode == 0
    assert not lock.exists()
    lock.touch()
    monkeypatch.setattr(agents, "LOCK_WAIT_S", 0.2)
    with pytest.raises(agents.Failed, match=r"mbox\.lock is held"):
        agents.mbox(0, "a@b", "c@d", str(tmp_path / "mbox"))
    assert lock.exists()


def test_many_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "mbox"
    command = [sys.executable, "-I", agents.__file__, "mbox", "a@b", "c@d", str(path)]
    running = []
    for number in range(8):
        text = tmp_path / f"text{number}"
        text.write_bytes(b"Subject: %d\r\n\r\n" % number + b"line\r\n" * 5000)
        with text.open("rb") as message:
            running.append(subprocess.Popen(command, stdin=message))
    for process in running:
        process.wait(60)
    assert [process.returncode for process in running] == [0] * 8
    messages = list(mailbox.mbox(path))
    assert sorted(message["Subject"] for message in messages) == [str(number) for number in range(8)]
    assert {message.get_payload() for message in messages} == {"line\n" * 5000}


def test_a_maildir_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    assert run("maildir", "a@b", "c@d", tmp_path / "M").returncode == 0
    (path,) = (tmp_path / "M" / "new").iterdir()
    assert path.read_bytes() == b"Return-Path: <a@b>\nDelivered-To: c@d\nSubject: hi\n\nFrom me\n\nFrom you\nno end"
    done = run("maildir", "a@b", "c@d", tmp_path / "M", text=b"x\r\n" * 99999, largest=5000)
    assert done.returncode == 75
    assert b"File too large" in done.stderr
    assert [path.parent.name for path in (tmp_path / "M").rglob("*") if path.is_file()] == ["new"]


@pytest.mark.parametrize(
    ("extension", "text", "folder"),
    [
        ("lists", MESSAGE, ".lists"),
        ("../../x", MESSAGE, "."),
        ("none", MESSAGE, "."),
        ("", b"x-spam: YES\r\n\r\n", ".Junk"),
        ("lists", b"X-Spam-Flag: yes\r\n\r\n", ".Junk"),
        ("", b"Subject: x\r\n\r\nX-Spam: yes\r\n", "."),
        ("", b"X-Spam: yesterday\r\n\r\n", "."),
    ],
)
def test_folders(tmp_path: Path, extension: str, text: bytes, folder: str) -> None:
    path = tmp_path / "M"
    (path / ".lists").mkdir(parents=True)
    assert run("maildir", "a@b", "c@d", path, extension, "junk", text=text).returncode == 0
    (found,) = [found for found in tmp_path.rglob("*") if found.is_file()]
    assert found.parent == path / folder / "new"


@pytest.mark.parametrize("arguments", [[], ["maildir"], ["mbox", "a", "b", "c", "d"], ["other", "a", "b", "c"]])
def test_wrong_usage(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 64
    assert b"agents.py maildir SENDER" in done.stderr


@pytest.mark.parametrize(
    ("end", "code", "text", "output", "kind", "status_line"),
    [
        (End.EXITED, 0, "", "chatter", Kind.DELIVERY_OK, "250 2.0.0 Delivered"),
        (End.EXITED, 75, "", "", Kind.DELIVERY_TEMP, "451 4.3.0 temporary failure"),
        (End.EXITED, 75, "", "why\x1b[2J\tnot", Kind.DELIVERY_TEMP, "451 4.3.0 why [2J not"),
        (End.EXITED, 67, "", "", Kind.DELIVERY_PERM, "550 5.1.1 user unknown"),
        (End.EXITED, 3, "", "", Kind.DELIVERY_PERM, "550 5.3.0 exit status 3"),
        (End.EXITED, 127, "", "", Kind.DELIVERY_TEMP, "451 4.3.5 a command was not found"),
        (End.SIGNALLED, 11, "", "", Kind.DELIVERY_TEMP, "451 4.3.0 killed by SIGSEGV"),
        (End.SIGNALLED, 63, "", "x", Kind.DELIVERY_TEMP, "451 4.3.0 killed by signal 63: x"),
        (End.REFUSED, 0, "never", "", Kind.DELIVERY_PERM, "550 5.3.5 never"),
        (End.REFUSED_NOW, 0, "later", "", Kind.DELIVERY_TEMP, "451 4.3.5 later"),
    ],
)
def test_results(end: End, code: int, text: str, output: str, kind: Kind, status_line: str) -> None:
    assert result_of(end, code, text, output) == (kind, status_line)
