"""smtpctl: watch and steer a running smtpd.

The verbs, and where OpenSMTPD's smtpctl(8) prints something its formats, are OpenSMTPD's; words may be shortened while
they stay unambiguous. Exit status: 0 done, 1 the daemon refused or is not there, 2 usage.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mta_under_test.ipc.client import ControlClient, ControlError
from mta_under_test.ipc.messages import Kind
from mta_under_test.wire.envelope import Envelope, decode

DEFAULT_SOCKET = Path("/var/run/smtpd.sock")
READ_BYTES = 1 << 16
STATES = ("pending", "inflight", "suspend")  # scheduler's, in words
MONITOR = (  # column, counter, and whether it is a level rather than a count since the last line
    ("clients.cur", "smtp.session", True),
    ("clients.new", "smtp.session.total", False),
    ("evp.cur", "scheduler.envelope", True),
    ("evp.enq", "scheduler.envelope.incoming", False),
    ("inflight", "scheduler.envelope.inflight", True),
    ("ok", "scheduler.delivery.ok", False),
    ("tempfail", "scheduler.delivery.tempfail", False),
    ("permfail", "scheduler.delivery.permfail", False),
    ("loop", "scheduler.delivery.loop", False),
    ("expired", "scheduler.envelope.expired", False),
    ("removed", "scheduler.envelope.removed", False),
    ("bounces", "queue.bounce.total", False),
    ("out.cur", "mta.session", True),
)


class UsageError(Exception):
    """The words make no command; the text says which would."""


class Verb(NamedTuple):
    words: str
    argument: str  # what follows the words, for the usage text; "" for nothing, in brackets when it may be left out
    run: Callable[[ControlClient, str], None]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="smtpctl",
        description="Watch and steer a running smtpd.",
        epilog="commands:\n" + "\n".join(f"  {verb.words} {verb.argument}".rstrip() for verb in VERBS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = Path(os.environ.get("SMTPD_SOCKET", DEFAULT_SOCKET))
    parser.add_argument("--socket", type=Path, default=default, metavar="PATH", help="control socket [%(default)s]")
    parser.add_argument("command", nargs="+", help="see below")
    options = parser.parse_args(argv)
    try:
        verb, argument = find(options.command)
        with ControlClient(options.socket) as client:
            verb.run(client, argument)
    except UsageError as error:
        print(f"smtpctl: {error}", file=sys.stderr)
        return 2
    except ControlError as error:
        print(f"smtpctl: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Whoever read us (head, grep -q) has enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return 0
    return 0


def find(words: Sequence[str]) -> tuple[Verb, str]:
    """The verb that `words` name, by unambiguous prefixes, and its argument. Raises UsageError."""
    candidates = [(verb, verb.words.split()) for verb in VERBS]
    for position, word in enumerate(words):
        here = [(verb, names) for verb, names in candidates if len(names) > position]
        chosen = [one for one in here if one[1][position] == word] or [
            one for one in here if one[1][position].startswith(word)
        ]
        if not chosen:
            whole = [verb for verb, names in candidates if len(names) == position]
            if whole:
                return _with_argument(whole[0], words[position:])
            there = ", ".join(sorted({names[position] for _, names in here}))
            raise UsageError(f"{' '.join(words)!r}: no such command; {word!r} could be {there}")
        if len({names[position] for _, names in chosen}) > 1:
            there = ", ".join(sorted({names[position] for _, names in chosen}))
            raise UsageError(f"{word!r} is ambiguous: {there}")
        candidates = chosen
    whole = [verb for verb, names in candidates if len(names) == len(words)]
    if not whole:
        there = ", ".join(names[len(words)] for _, names in candidates)
        raise UsageError(f"{' '.join(words)!r} wants one of: {there}")
    return _with_argument(whole[0], ())


def _with_argument(verb: Verb, rest: Sequence[str]) -> tuple[Verb, str]:
    if len(rest) > 1 or (rest and not verb.argument):
        raise UsageError(f"{verb.words!r} takes {verb.argument or 'no argument'}, got {' '.join(rest)!r}")
    if verb.argument and not verb.argument.startswith("[") and not rest:
        raise UsageError(f"{verb.words!r} wants {verb.argument}")
    return verb, rest[0] if rest else ""


def identifier(text: str, *, everything: bool = False) -> int:
    """A msgid (8 hex digits), an evpid (16), or `all` as 0. Raises UsageError."""
    if everything and text == "all":
        return 0
    try:
        if len(text) in (8, 16):
            return int(text, 16)
    except ValueError:
        pass  # said below, with what would do
    raise UsageError(f"{text!r} is neither an envelope id (16 hex digits) nor a message id (8)")


# ---- the commands


def _show_queue(client: ControlClient, _: str) -> None:
    """`show queue`: the 14 fields of smtpctl(8), separated by |."""
    for evpid, state, due in _evpids(client):
        try:
            text = client.ask(Kind.SHOW_ENVELOPE, evpid).text
        except ControlError:
            continue  # delivered since it was listed
        print(queue_line(evpid, decode(text), state=STATES[state], due=due))


def _evpids(client: ControlClient) -> Iterator[tuple[int, int, int]]:
    last = 0
    while rows := client.ask(Kind.LIST_EVPIDS, last).integers:
        for place in range(0, len(rows), 3):
            yield rows[place], rows[place + 1], rows[place + 2]
        last = rows[-3]


def queue_line(evpid: int, envelope: Envelope, *, state: str, due: int) -> str:
    family = "inet6" if ":" in envelope.sockaddr else "inet4" if envelope.sockaddr else "local"
    remaining = 0 if state == "inflight" else max(0, due - int(time.time()))
    fields = (
        f"{evpid:016x}",
        family,
        envelope.type,
        ",".join(sorted(envelope.flags)),
        envelope.sender,
        envelope.rcpt,
        envelope.dest,
        envelope.ctime,
        envelope.ctime + envelope.ttl,
        envelope.last_try,
        envelope.retry,
        state,
        remaining,
        envelope.errorline,
    )
    return "|".join(str(field) for field in fields)


def _show_envelope(client: ControlClient, which: str) -> None:
    print(client.ask(Kind.SHOW_ENVELOPE, identifier(which)).text.decode(), end="")


def _show_message(client: ControlClient, which: str) -> None:
    descriptor = client.ask(Kind.SHOW_MESSAGE, identifier(which)).descriptor
    if descriptor is None:
        raise ControlError("smtpd sent no message")
    with os.fdopen(descriptor, "rb") as message:
        while chunk := message.read(READ_BYTES):
            sys.stdout.buffer.write(chunk)
    sys.stdout.flush()


def _show_stats(client: ControlClient, _: str) -> None:
    for name, value in sorted(client.stats().items()):
        print(f"{name}={value}")


def _show_status(client: ControlClient, _: str) -> None:
    stats = client.stats()
    print(f"MTA {'paused' if stats['scheduler.paused.mta'] else 'running'}")
    print(f"SMTP {'paused' if stats['smtp.paused'] else 'running'}")


def _pause(kind: Kind, what: str) -> Callable[[ControlClient, str], None]:
    def run(client: ControlClient, _: str) -> None:
        client.ask(kind, text=what)
        print("command succeeded")

    return run


def _administer(kind: Kind, done: str) -> Callable[[ControlClient, str], None]:
    def run(client: ControlClient, which: str) -> None:
        (count,) = client.ask(kind, identifier(which, everything=True)).integers
        print(f"{count} envelope{'' if count == 1 else 's'} {done}")
        if not count and which != "all":
            raise ControlError(f"no envelope {which}")

    return run


def _watch(kind: Kind) -> Callable[[ControlClient, str], None]:
    def run(client: ControlClient, what: str) -> None:
        client.ask(kind, text=what)
        for answer in client.stream():
            if not answer.text:
                return
            print(answer.text.decode(errors="replace"), flush=True)

    return run


def _unwatch(kind: Kind) -> Callable[[ControlClient, str], None]:
    def run(client: ControlClient, what: str) -> None:
        client.ask(kind, text=f"-{what}")
        print("command succeeded")

    return run


def _log(level: int) -> Callable[[ControlClient, str], None]:
    def run(client: ControlClient, _: str) -> None:
        client.ask(Kind.VERBOSE, level)
        print("command succeeded")

    return run


def _monitor(client: ControlClient, _: str) -> None:
    """One line a second until interrupted; levels as they are, counts since the line before."""
    before = client.stats()
    for number in range(sys.maxsize):
        if number % 20 == 0:
            print(" ".join(f"{column:>11}" for column, _, _ in MONITOR), flush=True)
        now = client.stats()
        values = (now.get(counter, 0) - (0 if level else before.get(counter, 0)) for _, counter, level in MONITOR)
        print(" ".join(f"{value:>11}" for value in values), flush=True)
        before = now
        time.sleep(1)


def _stop(client: ControlClient, _: str) -> None:
    client.ask(Kind.SHUTDOWN)
    print("command succeeded")


VERBS = (
    Verb("log brief", "", _log(0)),
    Verb("log verbose", "", _log(1)),
    Verb("monitor", "", _monitor),
    Verb("pause envelope", "EVPID|MSGID|all", _administer(Kind.HOLD, "held")),
    Verb("pause mta", "", _pause(Kind.PAUSE, "mta")),
    Verb("pause smtp", "", _pause(Kind.PAUSE, "smtp")),
    Verb("profile", "imsg|queue|all", _watch(Kind.PROFILE)),
    Verb("remove", "EVPID|MSGID|all", _administer(Kind.REMOVE, "removed")),
    Verb("resume envelope", "EVPID|MSGID|all", _administer(Kind.RELEASE, "released")),
    Verb("resume mta", "", _pause(Kind.RESUME, "mta")),
    Verb("resume smtp", "", _pause(Kind.RESUME, "smtp")),
    Verb("schedule", "EVPID|MSGID|all", _administer(Kind.SCHEDULE, "scheduled")),
    Verb("show envelope", "EVPID", _show_envelope),
    Verb("show message", "EVPID|MSGID", _show_message),
    Verb("show queue", "", _show_queue),
    Verb("show stats", "", _show_stats),
    Verb("show status", "", _show_status),
    Verb("stop", "", _stop),
    Verb("trace", "SUBSYSTEM|all", _watch(Kind.TRACE)),
    Verb("unprofile", "imsg|queue|all", _unwatch(Kind.PROFILE)),
    Verb("untrace", "SUBSYSTEM|all", _unwatch(Kind.TRACE)),
)

if __name__ == "__main__":
    sys.exit(main())
