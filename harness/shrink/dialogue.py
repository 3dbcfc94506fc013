"""The dialogue that is shrunk: how it is taken apart, and what is tried to make it smaller. Pure.

Owns: a record's dialogue as the steps of raw clients, and the order in which parts are left out. Never: holds it.

Big parts go first (sessions, then transactions, then single commands), as in hierarchical delta debugging (G. Misherghi
and Z. Su, HDD, ICSE 2006): most of a thousand commands are gone after a few tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import msgspec

from harness.run.accounts import planned
from harness.scenario import SessionPlan, Step
from harness.shrink.ddmin import ddmin
from harness.steps import DATA, EHLO, END, GREETING, RSET, body, header, mail, rcpt
from reports.record import PlannedMessage, PlannedSession, PlannedStep, RunRecord

QUIT = PlannedStep("QUIT\r\n")
OPERATOR = -1

Position = tuple[int, int]  # session and step; or OPERATOR and operation
Group = list[Position]  # parts that stay or go together


@dataclass(frozen=True)
class Dialogue:
    """Sessions, held one after another, and what an operator does meanwhile. Ends are explicit: QUIT is a step."""

    sessions: tuple[PlannedSession, ...]
    operations: tuple[str, ...] = ()

    @property
    def steps(self) -> Iterator[PlannedStep]:
        return (step for session in self.sessions for step in session.steps)

    @property
    def size(self) -> int:
        """Everything that somebody does."""
        return sum(1 for _ in self.steps) + len(self.operations)

    @property
    def commands(self) -> int:
        return sum(bool(step.send and step.expect) for step in self.steps)

    @property
    def messages(self) -> int:
        return sum(_begins(step) for step in self.steps)

    def keep(self, chosen: set[Position]) -> Dialogue:
        """The chosen parts; a session of which nothing is left is none."""
        sessions = []
        for number, session in enumerate(self.sessions):
            steps = [step for at, step in enumerate(session.steps) if (number, at) in chosen]
            if steps:
                sessions.append(msgspec.structs.replace(session, steps=steps))
        kept = tuple(each for at, each in enumerate(self.operations) if (OPERATOR, at) in chosen)
        return Dialogue(tuple(sessions), kept)

    def told(self) -> str:
        """``1 session, 2 messages, 9 commands``."""
        counts = [(len(self.sessions), "session"), (self.messages, "message"), (self.commands, "command")]
        if self.operations:
            counts.append((len(self.operations), "operation"))
        return ", ".join(f"{count} {noun}{'' if count == 1 else 's'}" for count, noun in counts)


Leaks = Callable[[Dialogue], bool]


def of(record: RunRecord) -> Dialogue:
    """What the record's load did in its first sessions, and an operation for each unit, as in a dose."""
    operations = record.conditions.operations
    units = sum(session.units for session in record.dialogue)
    return Dialogue(
        tuple(_raw(session) for session in record.dialogue),
        tuple(operations[number % len(operations)] for number in range(units if operations else 0)),
    )


def _raw(session: PlannedSession) -> PlannedSession:
    """The same session, held by a raw client."""
    steps = list(session.steps)
    if not steps:
        said = [GREETING, EHLO, *(step for message in session.messages for step in _transaction(message))]
        steps = planned(SessionPlan(steps=tuple(said)), 0).steps
    if session.end == "quit":
        return PlannedSession(session.units, steps=[*steps, QUIT], end="fin")
    return msgspec.structs.replace(session, steps=steps)


def _transaction(message: PlannedMessage) -> Iterator[Step]:
    yield mail(message.sender)
    for recipient in message.recipients:
        yield rcpt(recipient)
    for recipient in message.refused:
        yield rcpt(recipient, expect="5")
    if not message.recipients:
        yield RSET
        return
    yield from (DATA, header(message.recipients[0], message.sender), body(message.size_bytes), END)


def shrink(dialogue: Dialogue, leaks: Leaks) -> Dialogue:
    """The smallest that was found. `dialogue` itself must leak; what `leaks` raises ends the search."""
    for groups in (sessions, transactions, operations):
        dialogue = _fewer(dialogue, groups(dialogue), leaks)
    for simpler in (joined, unhurried, hung_up):
        candidate = simpler(dialogue)
        if candidate != dialogue and leaks(candidate):
            dialogue = candidate
    dialogue = _fewer(dialogue, commands(dialogue), leaks)
    while (candidate := shorter(dialogue)) != dialogue and leaks(candidate):
        dialogue = candidate
    return dialogue


def _fewer(dialogue: Dialogue, groups: Sequence[Group], leaks: Leaks) -> Dialogue:
    """What belongs to no group stays."""
    grouped = {position for group in groups for position in group}
    rest = set(_positions(dialogue)) - grouped

    def with_groups(chosen: Sequence[Group]) -> Dialogue:
        return dialogue.keep(rest.union(*chosen))

    if not groups:
        return dialogue
    if rest and leaks(with_groups([])):
        return with_groups([])
    return with_groups(ddmin(groups, lambda chosen: leaks(with_groups(chosen))))


# ---- what goes together


def operations(dialogue: Dialogue) -> list[Group]:
    return [[(OPERATOR, at)] for at in range(len(dialogue.operations))]


def sessions(dialogue: Dialogue) -> list[Group]:
    return [[(number, at) for at in range(len(session.steps))] for number, session in enumerate(dialogue.sessions)]


def transactions(dialogue: Dialogue) -> list[Group]:
    """From each MAIL to the step before the next; what comes before the first, and QUIT, stays."""
    groups: list[Group] = []
    for number, session in enumerate(dialogue.sessions):
        begun = False
        for at, step in enumerate(session.steps):
            if _begins(step):
                groups.append([])
                begun = True
            if begun and step != QUIT:
                groups[-1].append((number, at))
    return groups


def commands(dialogue: Dialogue) -> list[Group]:
    """Each by itself. Reading the greeting is none: without it every answer would be taken for the next one."""
    return [
        [(number, at)]
        for number, session in enumerate(dialogue.sessions)
        for at, step in enumerate(session.steps)
        if at > 0 or step.send
    ]


def _positions(dialogue: Dialogue) -> Iterator[Position]:
    for group in (*operations(dialogue), *sessions(dialogue)):
        yield from group


# ---- what else makes it simpler; each returns the dialogue itself when there is nothing to do


def joined(dialogue: Dialogue) -> Dialogue:
    """All transactions in the first session."""
    first, *others = dialogue.sessions or (PlannedSession(0),)
    if not others or any(step.tls for step in dialogue.steps):
        return dialogue
    steps = [step for step in first.steps if step != QUIT]
    for session in others:
        begin = next((at for at, step in enumerate(session.steps) if _begins(step)), len(session.steps))
        steps += [step for step in session.steps[begin:] if step != QUIT]
    return replace(dialogue, sessions=(msgspec.structs.replace(first, steps=[*steps, QUIT]),))


def unhurried(dialogue: Dialogue) -> Dialogue:
    """Without pauses, and nothing sent in pieces."""
    return _each_step(dialogue, lambda step: msgspec.structs.replace(step, pause_s=0.0, piece_bytes=0))


def hung_up(dialogue: Dialogue) -> Dialogue:
    """Every session ends by a plain close."""
    ended = tuple(msgspec.structs.replace(session, end="fin") for session in dialogue.sessions)
    return replace(dialogue, sessions=ended)


def shorter(dialogue: Dialogue) -> Dialogue:
    """With half of the lines of the longest content."""
    longest = max((step for step in dialogue.steps if not step.expect), key=_lines, default=None)
    if longest is None or _lines(longest) < 2:
        return dialogue
    lines = longest.send.splitlines(keepends=True)
    short = msgspec.structs.replace(longest, send="".join(lines[: len(lines) // 2]))
    return _each_step(dialogue, lambda step: short if step == longest else step)


def _each_step(dialogue: Dialogue, change: Callable[[PlannedStep], PlannedStep]) -> Dialogue:
    changed = tuple(
        msgspec.structs.replace(session, steps=[change(step) for step in session.steps])
        for session in dialogue.sessions
    )
    return replace(dialogue, sessions=changed)


def _lines(step: PlannedStep) -> int:
    return step.send.count("\n")


def _begins(step: PlannedStep) -> bool:
    return step.send[:5].upper() == "MAIL "
