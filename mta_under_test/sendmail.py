"""sendmail: hand mail to smtpd, as programs expect it of a command of this name.

    sendmail [-tiv] [-f SENDER] [-F NAME] [-bs] [recipient]...

-t recipients from the header · -i, -oi a line with one dot does not end the message · -f the envelope's sender ·
-F full name in From · -v say what is done · -bs speak SMTP on standard input and output · -bp as mailq. Other options
of sendmail(8) are taken and mean nothing here.

When smtpd runs and lets us, the message goes to it over a session that its control socket gives; else into offline/,
from where smtpd fetches it. Exit status: sysexits.h's. Called as `mailq` it is `smtpctl show queue`; `newaliases` and
`makemap` have nothing to do, since tables are read as they are.
"""

from __future__ import annotations

import getopt
import os
import pwd
import secrets
import selectors
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from mta_under_test import smtpctl
from mta_under_test.ipc.client import ControlClient, ControlError
from mta_under_test.spool import durable
from mta_under_test.wire.client import ClientMachine, LocalError, RemoteError
from mta_under_test.wire.reply import Reply
from mta_under_test.wire.submission import (
    Submission,
    SubmissionError,
    compose,
    from_offline,
    offline_text,
)

EX_OK, EX_USAGE, EX_DATAERR, EX_NOINPUT, EX_NOUSER, EX_UNAVAILABLE = 0, 64, 65, 66, 67, 69
EX_CANTCREAT, EX_IOERR, EX_TEMPFAIL = 73, 74, 75
DEFAULT_SPOOL = Path("/var/spool/smtpd")
TIMEOUT_S = 300.0
READ_BYTES = 1 << 16
_OPTIONS = "A:B:C:F:L:N:O:R:V:X:b:d:e:f:h:io:p:q:r:tvx"


class Failed(Exception):
    """The message was not taken; with the exit status that says so."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = Path(sys.argv[0]).name
    if name in ("newaliases", "makemap"):
        print(f"{name}: nothing to do: tables are read as they are; see `smtpctl update table`", file=sys.stderr)
        return EX_OK
    if arguments[:1] == ["--offline"]:
        return _status(lambda: _submit_offline(arguments[1:]))
    try:
        pairs, recipients = getopt.gnu_getopt(arguments, _OPTIONS)
    except getopt.GetoptError as error:
        print(f"sendmail: {error}", file=sys.stderr)
        return EX_USAGE
    options = {f"{key}{value}" if key in ("-b", "-o") else key: value for key, value in pairs}
    path = Path(os.environ.get("SMTPD_SOCKET", smtpctl.DEFAULT_SOCKET))
    if name == "mailq" or "-bp" in options:
        return smtpctl.main(["--socket", os.fspath(path), "show", "queue"])
    if "-bs" in options:
        return _status(lambda: _speak(path))
    return _status(lambda: _send(path, options, recipients))


def _status(work: object) -> int:
    assert callable(work)
    try:
        work()
    except Failed as failed:
        print(f"sendmail: {failed}", file=sys.stderr)
        return failed.status
    except SubmissionError as error:
        print(f"sendmail: {error}", file=sys.stderr)
        return EX_USAGE if "recipients" in str(error) else EX_DATAERR
    return EX_OK


def _send(path: Path, options: dict[str, str], recipients: Sequence[str]) -> None:
    submission = compose(
        _input(),
        sender=options.get("-f", options.get("-r", _user())).strip("<>"),
        hostname=socket.getfqdn(),
        recipients=recipients,
        from_header="-t" in options,
        full_name=options.get("-F", ""),
        dot_ends="-i" not in options and "-oi" not in options,
    )
    try:
        session = _session(path)
    except ControlError as error:
        left = leave(submission, Path(os.environ.get("SMTPD_SPOOL", DEFAULT_SPOOL)) / "offline")
        said = f"{error}\nleft in {left}"
    else:
        with session:
            said = submit(session, submission)
    if "-v" in options:
        _tell(said)


def _input() -> bytes:
    if sys.stdin is None:  # so Python has it when descriptor 0 is closed
        raise Failed(EX_NOINPUT, "standard input is closed")
    try:
        return sys.stdin.buffer.read()
    except OSError as error:
        raise Failed(EX_IOERR, f"standard input: {error.strerror}") from error


def _tell(text: str) -> None:
    """The message is taken by now, and stays so: whoever were told of a failure would send it again."""
    try:
        print(text, flush=True)
    except OSError as error:
        print(f"sendmail: standard output: {error.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python would try again at its end


def _session(path: Path) -> socket.socket:
    with ControlClient(path) as client:
        return client.smtp_session()


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


# ---- over a session


def submit(session: socket.socket, submission: Submission) -> str:
    """One transaction; gives what smtpd said in the end. Raises Failed, when any recipient is refused."""
    session.settimeout(TIMEOUT_S)
    machine = ClientMachine()
    try:
        _expect(_reply(session, machine))
        _expect(_ask(session, machine, machine.ehlo("localhost")))
        _expect(_ask(session, machine, machine.mail(submission.sender)))
        for recipient in submission.recipients:
            _expect(_ask(session, machine, machine.rcpt(recipient)), recipient)
        _expect(_ask(session, machine, machine.data()))
        session.sendall(machine.body(submission.text))
        done = _ask(session, machine, machine.end_of_data())
        _expect(done)
        session.sendall(machine.quit())
    except (OSError, RemoteError) as error:
        raise Failed(EX_TEMPFAIL, f"the session with smtpd failed: {error}") from error
    except LocalError as error:
        raise Failed(EX_DATAERR, str(error)) from error
    return str(done)


def _ask(session: socket.socket, machine: ClientMachine, command: bytes) -> Reply:
    session.sendall(command)
    return _reply(session, machine)


def _reply(session: socket.socket, machine: ClientMachine) -> Reply:
    while (answered := machine.next_reply()) is None:
        data = session.recv(READ_BYTES)
        if not data:
            raise ConnectionError("smtpd ended it")
        machine.receive(data)
    return answered[1]


def _expect(reply: Reply, recipient: str = "") -> None:
    if not reply.positive:
        status = EX_TEMPFAIL if not reply.permanent else EX_NOUSER if recipient else EX_UNAVAILABLE
        raise Failed(status, f"{recipient}: {reply}" if recipient else str(reply))


def _speak(path: Path) -> None:
    """-bs: standard input and output are the session."""
    if sys.stdin is None or sys.stdout is None:
        closed = "input" if sys.stdin is None else "output"
        raise Failed(EX_NOINPUT if sys.stdin is None else EX_IOERR, f"standard {closed} is closed")
    try:
        session = _session(path)
    except ControlError as error:
        raise Failed(EX_TEMPFAIL, str(error)) from error
    with session:
        try:
            _relay(session, sys.stdin.fileno(), sys.stdout.fileno())
        except OSError as error:
            raise Failed(EX_TEMPFAIL, f"the session with smtpd failed: {error}") from error


def _relay(session: socket.socket, source: int, sink: int) -> None:
    """Until smtpd ends it. Raises OSError when it is the session that fails, Failed for the rest."""
    with selectors.PollSelector() as selector:  # epoll(7) takes no regular file
        selector.register(session, selectors.EVENT_READ)
        selector.register(source, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is session:
                    data = session.recv(READ_BYTES)
                    if not data:
                        return
                    try:
                        durable.write_all(sink, data)
                    except OSError as error:
                        raise Failed(EX_IOERR, f"standard output: {error.strerror}") from error
                elif data := _read(source):
                    session.sendall(data)
                else:
                    selector.unregister(source)
                    session.shutdown(socket.SHUT_WR)


def _read(source: int) -> bytes:
    try:
        return os.read(source, READ_BYTES)
    except OSError as error:
        raise Failed(EX_IOERR, f"standard input: {error.strerror}") from error


# ---- without a daemon


def leave(submission: Submission, offline: Path) -> Path:
    """Leave it where smtpd looks. Safe on disk when this returns. Raises Failed."""
    path = offline / secrets.token_hex(8)
    partial = offline / f".{path.name}"  # smtpd does not look at it until it has its name
    try:
        durable.write_new(partial, offline_text(submission), sync=True)
        partial.rename(path)
        durable.sync(offline)
    except OSError as error:
        raise Failed(EX_CANTCREAT, f"smtpd does not answer, and {offline} takes no mail: {error.strerror}") from error
    return path


def _submit_offline(arguments: Sequence[str]) -> None:
    """For smtpd's parent: standard input is a file of offline/; whatever is done is done as its owner."""
    if len(arguments) != 2 or not all(one.isascii() and one.isdecimal() for one in arguments):
        raise Failed(EX_USAGE, "--offline is smtpd's own: it takes the descriptor of a session and a uid")
    session, uid = map(int, arguments)
    try:
        if os.geteuid() == 0 and uid != 0:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        sock = socket.socket(fileno=session)
    except (OSError, OverflowError) as error:
        raise Failed(EX_USAGE, f"--offline {session} {uid}: {getattr(error, 'strerror', None) or error}") from error
    with sock:
        submit(sock, from_offline(_input()))


if __name__ == "__main__":
    sys.exit(main())
