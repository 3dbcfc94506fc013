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
# As OpenSMTPD's do_monitor() prints it.
MONITOR_HEADER = (
    "--- client ---  -- envelope --   ---- relay/delivery --- ------- misc -------\n"
    "curr conn disc  curr  enq  deq   ok tmpfail prmfail loop expire remove bounce"
)
MONITOR_LINE = "{:4d} {:4d} {:4d}  {:4d} {:4d} {:4d} {:4d}    {:4d}    {:4d} {:4d}   {:4d}   {:4d}   {:4d}"
MONITOR_COUNTERS = (
    "scheduler.delivery.ok",
    "scheduler.delivery.tempfail",
    "scheduler.delivery.permfail",
    "scheduler.delivery.loop",
    "scheduler.envelope.expired",
    "scheduler.envelope.removed",
    "queue.bounce.total",
)
MONITOR_PAGE = 25  # lines under one header
STATES = ("pending", "inflight", "pending", "pending")  # by scheduler's State; what holds an envelope is a flag
HELD = {2: "hold", 3: "suspend"}


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
        print(end="", flush=True)  # here, where a full disk can still be told
    except UsageError as error:
        print(f"smtpctl: {error}", file=sys.stderr)
        return 2
    except ControlError as error:
        print(f"smtpctl: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Whoever read us (head, grep -q) has enough.
        _drop_output()
    except OSError as error:
        print(f"smtpctl: standard output: {error.strerror or error}", file=sys.stderr)
        _drop_output()
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


def _drop_output() -> None:
    """What is left in the buffer goes nowhere: Python would complain of it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
        print(queue_line(evpid, decode(text), state=state, due=due))


def _evpids(client: ControlClient) -> Iterator[tuple[int, int, int]]:
    last = 0
    while rows := client.ask(Kind.LIST_EVPIDS, last).integers:
        for place in range(0, len(rows), 3):
            yield rows[place], rows[place + 1], rows[place + 2]
        last = rows[-3]


def queue_line(evpid: int, envelope: Envelope, *, state: int, due: int) -> str:
    """`state` as scheduler lists it; `due` in seconds since 1970."""
    family = "inet6" if ":" in envelope.sockaddr else "inet4" if envelope.sockaddr else "local"
    flags = sorted(envelope.flags | ({HELD[state]} if state in HELD else set()))
    remaining = max(0, due - int(time.time())) if STATES[state] == "pending" else 0
    fields = (
        f"{evpid:016x}",
        family,
        envelope.type,
        ",".join(flags),
        envelope.sender,
        envelope.rcpt,
        envelope.dest,
        envelope.ctime,
        envelope.ctime + envelope.ttl,
        envelope.last_try,
        envelope.retry,
        STATES[state],
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


def _show_mta(client: ControlClient, what: str) -> None:
    """What transfer knows, a line for each host, relay or route."""
    first = 0
    while count := (answer := client.ask(Kind.SHOW_MTA, first, text=what)).integers[0]:
        print(answer.text.decode(errors="replace"))
        first += count


def _resume_route(client: ControlClient, which: str) -> None:
    """`all`, or the number that `show routes` gives a route."""
    if which != "all" and not (which.isascii() and which.isdecimal() and 0 < len(which) < 19 and int(which)):
        raise UsageError(f"{which!r} is no route; `show routes` has their numbers, and there is `all`")
    (count,) = client.ask(Kind.RESUME_ROUTE, 0 if which == "all" else int(which)).integers
    print(f"{count} route{'' if count == 1 else 's'} resumed")
    if not count and which != "all":
        raise ControlError(f"route {which} is not disabled")


def _show_stats(client: ControlClient, _: str) -> None:
    for name, value in sorted(client.stats().items()):
        print(f"{name}={value}")


def _show_status(client: ControlClient, _: str) -> None:
    stats = client.stats()
    print(f"MDA {'paused' if stats['scheduler.paused.mda'] else 'running'}")
    print(f"MTA {'paused' if stats['scheduler.paused.mta'] else 'running'}")
    print(f"SMTP {'paused' if stats['smtp.paused'] else 'running'}")


def _pause(kind: Kind, what: str) -> Callable[[ControlClient, str], None]:
    def run(client: ControlClient, _: str) -> None:
        client.ask(kind, text=what)
        print("command succeeded")

    return run


def _do(kind: Kind) -> Callable[[ControlClient, str], None]:
    def run(client: ControlClient, what: str) -> None:
        client.ask(kind, text=what)
        print("command succeeded")

    return run


def _administer(kind: Kind, done: str, *, everything: bool = True) -> Callable[[ControlClient, str], None]:
    def run(client: ControlClient, which: str) -> None:
        (count,) = client.ask(kind, identifier(which, everything=everything)).integers
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
    """13 columns, a line a second until interrupted: clients, envelopes, results; levels, and counts of that second."""
    before = [0] * 13
    for number in range(sys.maxsize):
        if number % MONITOR_PAGE == 0:
            print("\n" * (number > 0) + MONITOR_HEADER)
        now, columns = monitor_columns(client.stats(), before)
        before = now
        print(MONITOR_LINE.format(*columns), flush=True)
        time.sleep(1)


def monitor_columns(stats: dict[str, int], before: Sequence[int]) -> tuple[list[int], list[int]]:
    """Totals to compare the next second's with, and the columns: curr conn disc, curr enq deq, ok … bounce."""
    clients, envelopes = stats["smtp.session"], stats["scheduler.envelope"]
    opened, queued = stats.get("smtp.session.total", 0), stats.get("scheduler.envelope.incoming", 0)
    now = [clients, opened, opened - clients, envelopes, queued, queued - envelopes]
    now += [stats.get(counter, 0) for counter in MONITOR_COUNTERS]
    columns = [value - old for value, old in zip(now, before, strict=True)]
    columns[0], columns[3] = clients, envelopes
    return now, columns


def _stop(client: ControlClient, _: str) -> None:
    client.ask(Kind.SHUTDOWN)
    print("command succeeded")


VERBS = (
    Verb("discover", "EVPID|MSGID", _administer(Kind.DISCOVER, "discovered", everything=False)),
    Verb("log brief", "", _log(0)),
    Verb("log verbose", "", _log(1)),
    Verb("monitor", "", _monitor),
    Verb("pause envelope", "EVPID|MSGID|all", _administer(Kind.PAUSE_ENVELOPE, "paused")),
    Verb("pause mda", "", _pause(Kind.PAUSE, "mda")),
    Verb("pause mta", "", _pause(Kind.PAUSE, "mta")),
    Verb("pause smtp", "", _pause(Kind.PAUSE, "smtp")),
    Verb("profile", "imsg|queue|all", _watch(Kind.PROFILE)),
    Verb("remove", "EVPID|MSGID|all", _administer(Kind.REMOVE, "removed")),
    Verb("reload", "", _do(Kind.RELOAD)),
    Verb("resume envelope", "EVPID|MSGID|all", _administer(Kind.RESUME_ENVELOPE, "resumed")),
    Verb("resume mda", "", _pause(Kind.RESUME, "mda")),
    Verb("resume mta", "", _pause(Kind.RESUME, "mta")),
    Verb("resume route", "ROUTE|all", _resume_route),
    Verb("resume smtp", "", _pause(Kind.RESUME, "smtp")),
    Verb("schedule", "EVPID|MSGID|all", _administer(Kind.SCHEDULE, "scheduled")),
    Verb("show envelope", "EVPID", _show_envelope),
    Verb("show hosts", "", lambda client, _: _show_mta(client, "hosts")),
    Verb("show hoststats", "", lambda client, _: _show_mta(client, "hoststats")),
    Verb("show message", "EVPID|MSGID", _show_message),
    Verb("show queue", "", _show_queue),
    Verb("show relays", "", lambda client, _: _show_mta(client, "relays")),
    Verb("show routes", "", lambda client, _: _show_mta(client, "routes")),
    Verb("show stats", "", _show_stats),
    Verb("show status", "", _show_status),
    Verb("stop", "", _stop),
    Verb("trace", "SUBSYSTEM|all", _watch(Kind.TRACE)),
    Verb("unprofile", "imsg|queue|all", _unwatch(Kind.PROFILE)),
    Verb("untrace", "SUBSYSTEM|all", _unwatch(Kind.TRACE)),
    Verb("update table", "NAME", _do(Kind.UPDATE_TABLE)),
)

if __name__ == "__main__":
    sys.exit(main())
