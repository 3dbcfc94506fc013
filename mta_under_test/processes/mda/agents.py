"""The delivery agents: what runs, as the user, to put a message into a maildir or an mbox file.

The message is read from standard input as the queue keeps it (CRLF); headers are added and lines end with LF in the
mailbox. Exit status by sysexits(3); what went wrong is the last line of standard error. Where something fails, the
mailbox is as it was.

    agents.py maildir SENDER DEST PATH [EXTENSION [junk]]
    agents.py mbox SENDER DEST PATH

It imports nothing of ours, so that an `mda wrapper` can run it by its path, whoever the user is.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator

EX_OK, EX_USAGE, EX_TEMPFAIL = 0, 64, 75
LOCK_WAIT_S = 30.0
STALE_LOCK_S = 300.0  # a dot-lock older than this was left by somebody who died
_READ_BYTES = 1 << 16
_HEADER_BYTES = 1 << 18  # in which X-Spam is looked for
_SPAM = re.compile(rb"^X-Spam(?:-Flag)?:[ \t]*yes\b", re.IGNORECASE | re.MULTILINE)


class Failed(Exception):
    """Not delivered, for now; one line says why."""


def main(arguments: list[str]) -> int:
    match arguments:
        case ["maildir", sender, dest, path, *options] if len(options) <= 2:
            extension = options[0] if options else ""
            return run(lambda: maildir(0, sender, dest, path, extension, junk=len(options) == 2))
        case ["mbox", sender, dest, path]:
            return run(lambda: mbox(0, sender, dest, path))
    print(__doc__, file=sys.stderr)
    return EX_USAGE


def run(deliver: Callable[[], None]) -> int:
    """The exit status of a delivery; its reason goes to standard error. Whatever failed may work later."""
    try:
        deliver()
    except (OSError, Failed) as error:
        reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        os.write(2, f"{reason}\n".encode(errors="replace"))
        return EX_TEMPFAIL
    return EX_OK


def header(sender: str, dest: str) -> bytes:
    return f"Return-Path: <{sender}>\nDelivered-To: {dest}\n".encode()


def lines_of(descriptor: int) -> Iterator[bytes]:
    """The message in pieces that end where lines end (but for the last), line ends LF; the file's end is the end."""
    rest = b""
    while data := os.read(descriptor, _READ_BYTES):
        data = rest + data
        cut = data.rfind(b"\n") + 1
        rest = data[cut:]
        if cut:
            yield data[:cut].replace(b"\r\n", b"\n")
        elif len(rest) > _HEADER_BYTES:  # one endless line is passed on as it is, but not a CR that may begin a CRLF
            yield rest[:-1]
            rest = rest[-1:]
    if rest:
        yield rest


# ---- maildir


def maildir(descriptor: int, sender: str, dest: str, path: str, extension: str = "", *, junk: bool = False) -> None:
    """Deliver into a maildir (maildir(5)); durable when it returns. A missing maildir is made.

    `extension` (the tag of user+tag) chooses a folder of that name if there is one; `junk` puts what a filter has
    marked as spam into the folder Junk.
    """
    pieces = lines_of(descriptor)
    first = next(pieces, b"")
    folder = path
    if extension and "/" not in extension and not extension.startswith(".") and os.path.isdir(f"{path}/.{extension}"):  # noqa: PTH112
        folder = f"{path}/.{extension}"
    if junk and _SPAM.search(first.partition(b"\n\n")[0]):
        folder = f"{path}/.Junk"
    for directory in (path, folder):
        for name in ("tmp", "new", "cur"):
            os.makedirs(f"{directory}/{name}", 0o700, exist_ok=True)  # noqa: PTH103
    name = _unique_name()
    partial = f"{folder}/tmp/{name}"
    output = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            _write(output, header(sender, dest) + first)
            for piece in pieces:
                _write(output, piece)
            os.fsync(output)
        finally:
            os.close(output)
        os.rename(partial, f"{folder}/new/{name}")  # noqa: PTH104
    except BaseException:
        os.unlink(partial)  # noqa: PTH108
        raise
    _sync_directory(f"{folder}/new")


def _unique_name() -> str:
    now = time.time()
    host = socket.gethostname().replace("/", r"\057").replace(":", r"\072")
    return f"{int(now)}.M{int(now % 1 * 1e6):06d}P{os.getpid()}R{os.urandom(6).hex()}.{host}"


# ---- mbox


def mbox(descriptor: int, sender: str, dest: str, path: str) -> None:
    """Append to an mbox file, under a dot-lock and an fcntl lock; durable when it returns.

    Lines that begin with `From ` are quoted. What a failed write has left is cut off again.
    """
    output = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    try:
        _check_mailbox(output, path)
        dot_lock = _dot_lock(f"{path}.lock")
        try:
            _lock(output, path)
            _append(output, descriptor, sender, dest)
        finally:
            if dot_lock:
                os.unlink(f"{path}.lock")  # noqa: PTH108
    finally:
        os.close(output)  # the fcntl lock goes with it


def _check_mailbox(output: int, path: str) -> None:
    found = os.fstat(output)
    if not stat.S_ISREG(found.st_mode):
        raise Failed(f"{path} is no regular file")
    if found.st_nlink != 1:
        raise Failed(f"{path} has {found.st_nlink} names")
    if found.st_uid != os.geteuid():
        raise Failed(f"{path} is owned by user {found.st_uid}")


def _append(output: int, descriptor: int, sender: str, dest: str) -> None:
    before = os.lseek(output, 0, os.SEEK_END)
    sender_word = sender.replace(" ", "-") or "MAILER-DAEMON"
    try:
        # asctime(3), always in English
        when = time.strftime("%a %b %e %H:%M:%S %Y", time.localtime())
        separator = b"\n" if before and os.pread(output, 1, before - 1) != b"\n" else b""
        _write(output, separator + f"From {sender_word} {when}\n".encode() + header(sender, dest))
        last = b"\n"
        for piece in lines_of(descriptor):
            quoted = piece.replace(b"\nFrom ", b"\n>From ")
            if last.endswith(b"\n") and quoted.startswith(b"From "):
                quoted = b">" + quoted
            _write(output, quoted)
            last = piece
        _write(output, b"\n" if last.endswith(b"\n") else b"\n\n")
        os.fsync(output)
    except OSError:
        os.ftruncate(output, before)
        raise


def _dot_lock(path: str) -> bool:
    """Make the lock file. False where the directory may not be written: then the fcntl lock has to do, as for mail(1).

    Raises Failed when somebody else holds it for too long.
    """
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
            return True
        except FileExistsError:
            _remove_stale(path)
        except PermissionError:
            return False
        if time.monotonic() > deadline:
            raise Failed(f"{path} is held by somebody else")
        time.sleep(0.1)


def _remove_stale(path: str) -> None:
    try:
        if time.time() - os.stat(path).st_mtime > STALE_LOCK_S:
            os.unlink(path)  # noqa: PTH108
    except FileNotFoundError:
        return  # let go in this moment


def _lock(output: int, path: str) -> None:
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.lockf(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except (BlockingIOError, PermissionError) as error:
            if time.monotonic() > deadline:
                raise Failed(f"{path} is locked by somebody else") from error
        time.sleep(0.1)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
