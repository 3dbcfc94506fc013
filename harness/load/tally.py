"""What sessions did, one by one and added up to what a dose did. Pure.

A session's outcome says what each command was answered; a tally adds outcomes up and forgets the single commands: a
dose of any size costs its Message-IDs and one small histogram.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

import msgspec

from harness.scenario import SessionPlan
from reports.record import Load

MOST_ERRORS = 5  # different texts that a tally keeps
CLOSING = 421  # RFC 5321 §3.8: the server ends the session


@dataclass(frozen=True)
class Ticket:
    """One session to be held. Its name is unique, and begins the Message-IDs of its messages."""

    name: str
    plan: SessionPlan
    deadline: float  # on time.monotonic(); what is not done by then is cut off
    units: int = 0  # of work that it is worth
    address: tuple[str, int] | None = None  # (host, port) of the mail server; None: the user knows


def says_goodbye(heard: bytes) -> bool:
    """Whether one of these lines, which nobody may have asked for, is a 421."""
    return any(line.startswith(b"%d" % CLOSING) for line in heard.splitlines())


def unexpected(answer: str, expected: str, asked: str) -> str:
    """The error of an answer that is none of the `expected` first digits; `asked` is the command, if it tells more."""
    to = f" to {asked}" if " " in asked else ""
    return f"{answer} (the scenario expects {expected}xx{to})"


class Exchange(msgspec.Struct, frozen=True, gc=False):
    """One command and its answer, timed on the thread that waited for it."""

    name: str  # CONNECT EHLO MAIL RCPT DATA RSET QUIT
    began: float  # time.time()
    took_s: float
    error: str = ""  # what was wrong; empty: answered as expected, be it with a refusal


@dataclass
class Outcome:
    """What became of one session."""

    exchanges: list[Exchange] = field(default_factory=list)
    greeted: bool = False
    answered: bool = False  # the server has said something that the scenario expects
    finished: bool = False  # every message of the plan was tried
    broken_off: bool = False  # the server ended it without a reason
    messages: int = 0  # tried
    accepted: list[str] = field(default_factory=list)  # Message-IDs, without the angle brackets
    refused_recipients: int = 0  # RCPT answered 5xx

    def closed(self) -> None:
        """The connection turned out to be gone while an answer was owed.

        A server may end a session after QUIT, or once it has said 421 (RFC 5321 §3.8), and one that has lost patience
        says so in a refusal first. It broke this one off if all that it had said was what the scenario expects.
        """
        self.broken_off = self.answered and not self.finished and not any(each.error for each in self.exchanges)


class Tally(msgspec.Struct, tag=True):
    """What a dose, or a portion of one, did."""

    dose: int = 0
    units: int = 0
    took_s: float = 0.0
    sessions: int = 0  # greeted
    unfinished: int = 0  # sessions that ended early or never began: the dose was not exact
    broken_off: int = 0  # of these, ended by the server without a reason
    messages: int = 0
    accepted: list[str] = []  # Message-IDs
    refused_recipients: int = 0
    commands: int = 0
    failures: int = 0  # commands not answered as the scenario expects
    errors: list[str] = []  # the first few different texts
    latency_us: dict[int, int] = {}  # commands by what they took, rounded to two digits
    last: bool = False  # who drives the load has ended it: no dose can follow

    def add(self, outcome: Outcome) -> None:
        self.sessions += outcome.greeted
        self.unfinished += not outcome.finished
        self.broken_off += outcome.broken_off
        self.messages += outcome.messages
        self.accepted += outcome.accepted
        self.refused_recipients += outcome.refused_recipients
        self.commands += len(outcome.exchanges)
        latency_us = self.latency_us
        for exchange in outcome.exchanges:
            bucket = _bucket_us(round(exchange.took_s * 1e6))
            latency_us[bucket] = latency_us.get(bucket, 0) + 1
            if exchange.error:
                self.failures += 1
                _keep(self.errors, f"{exchange.name}: {exchange.error}")

    def include(self, other: Tally) -> None:
        """What others did for the same dose, at the same time."""
        self.units += other.units
        self.took_s = max(self.took_s, other.took_s)
        self.sessions += other.sessions
        self.unfinished += other.unfinished
        self.broken_off += other.broken_off
        self.messages += other.messages
        self.accepted += other.accepted
        self.refused_recipients += other.refused_recipients
        self.commands += other.commands
        self.failures += other.failures
        for error in other.errors:
            _keep(self.errors, error)
        for bucket, count in other.latency_us.items():
            self.latency_us[bucket] = self.latency_us.get(bucket, 0) + count


def summary(tallies: Iterable[Tally]) -> Load:
    """The load of a whole run, as its record tells it."""
    load = Load()
    latency_us: Counter[int] = Counter()
    commands, took_s = 0, 0.0
    for tally in tallies:
        commands += tally.commands
        took_s += tally.took_s
        load.failures += tally.failures
        latency_us.update(tally.latency_us)
        for error in tally.errors:
            _keep(load.errors, error)
    if commands:
        load.requests_per_s = commands / took_s if took_s else 0.0
        load.response_ms = {"p50": percentile_ms(latency_us, 0.50), "p99": percentile_ms(latency_us, 0.99)}
    return load


def percentile_ms(latency_us: dict[int, int], fraction: float) -> float:
    """The smallest bucket that at least `fraction` of the commands do not exceed; 0 without commands."""
    wanted = fraction * sum(latency_us.values())
    seen = 0
    for bucket, count in sorted(latency_us.items()):
        seen += count
        if seen >= wanted:
            return bucket / 1000
    return 0.0


@lru_cache(maxsize=8192)
def _bucket_us(took_us: int) -> int:
    """To two significant digits: at most 5 % off, and 90 buckets a decade."""
    return round(took_us, 2 - len(str(took_us)))


def _keep(errors: list[str], text: str) -> None:
    if len(errors) < MOST_ERRORS and text not in errors:
        errors.append(text)
