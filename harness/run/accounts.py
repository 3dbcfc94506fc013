"""accounts: what a run's record says of the work: what was planned, what was done, and what became of the mail.

Owns: the books: every tally of the load, every accepted Message-ID, and the remote MX's ledger as it was last read.
Never: judges what they come to.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from harness import __version__, isolation, mail
from harness.load.tally import Tally, summary
from harness.probes import host
from harness.remote_mx.ledger import LedgerReport, ListenerReport
from harness.remote_mx.process import RemoteMXError
from harness.run.design import REFUSING, Design
from harness.run.stand import Stand
from harness.scenario import SessionPlan
from harness.targets import TellsWhatItOwes
from reports.record import (
    Conditions,
    Incident,
    Judgement,
    PlannedMessage,
    PlannedSession,
    PlannedStep,
    Promise,
    RunRecord,
    Work,
)

DIALOGUE_SESSIONS = 40  # at the most, that the record keeps


def opened(design: Design) -> RunRecord:
    """The record of a run that begins now, with all that is known before anything has started."""
    scenario, options = design.scenario, design.options
    here = host.read()
    here.isolated = isolation.is_isolated()
    return RunRecord(
        scenario=scenario.name,
        target=design.meant,
        seatbelt=__version__,
        began=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=options.seed,
        host=here,
        judgement=Judgement(
            alpha=options.alpha,
            unit=scenario.unit,
            profile=options.profile.name,
            memory=design.judges_memory,
        ),
        promises=[_promise(promise, design) for promise in scenario.promises],
        dialogue=_dialogue(design),
        conditions=Conditions(
            refuses=design.refuses,
            hold_backlog=scenario.hold_backlog,
            hurry=scenario.hurry,
            portion=scenario.portion,
            needs=list(scenario.needs),
            operations=list(scenario.operations),
            nofile=scenario.nofile,
        ),
    )


def _promise(promise: Promise, design: Design) -> Promise:
    """With advice for this run: a remote MX that does as --mx says is the first to be looked at."""
    own = msgspec.structs.replace(promise)
    if design.options.refuses is not None:
        own.advice = "; else ".join(filter(None, (f"--mx '{design.options.refuses}' may be why", promise.advice)))
    return own


def _dialogue(design: Design) -> list[PlannedSession]:
    """What is said in the first sessions of a run: enough to hold one like it elsewhere."""
    each = design.scenario.units_per_session
    units = min(design.plan.first_dose, DIALOGUE_SESSIONS * each)
    plan = design.scenario.plan(design.options.seed, 0, units)
    return [planned(session, min(each, units - first)) for first, session in plan.items()]


def planned(session: SessionPlan, units: int) -> PlannedSession:
    """A session's plan as the record has it."""
    return PlannedSession(
        units=units,
        messages=[
            PlannedMessage(each.sender, list(each.recipients), list(each.refused), each.size_bytes)
            for each in session.messages
        ],
        steps=[
            PlannedStep(
                step.send.decode("latin-1"), step.expect, step.pause_s, step.piece_bytes, step.accepts, step.tls
            )
            for step in session.steps
        ],
        end=session.end,
    )


def work_of(tallies: Sequence[Tally], before: LedgerReport, after: LedgerReport) -> Work:
    """What the load did, and what the refusing remote MX saw between two of its reports."""
    then = before.listeners.get(REFUSING, ListenerReport())
    now = after.listeners.get(REFUSING, ListenerReport())
    work = Work(
        sessions=sum(tally.sessions for tally in tallies),
        messages=sum(tally.messages for tally in tallies),
        accepted=sum(len(tally.accepted) for tally in tallies),
        refused_recipients=sum(tally.refused_recipients for tally in tallies),
        refused_messages=now.refused_messages - then.refused_messages,
        sessions_out=now.sessions - then.sessions,
        messages_out=now.transactions - then.transactions,
    )
    work.messages_per_session_in = work.messages / work.sessions if work.sessions else 0.0
    work.messages_per_session_out = work.messages_out / work.sessions_out if work.sessions_out else 0.0
    return work


class Accounts:
    """Of one run, on `stand`, which runs."""

    def __init__(self, stand: Stand) -> None:
        self._stand = stand
        self._tallies: list[Tally] = []
        self._accepted: set[str] = set()
        self._ledger = LedgerReport()

    def add(self, tally: Tally) -> None:
        self._tallies.append(tally)
        self._accepted.update(tally.accepted)

    def balance(self, record: RunRecord, tallies: Sequence[Tally]) -> Work:
        """The work of the dose that these tallies are of; the record gets that of the whole run so far.

        Raises RemoteMXError.
        """
        before, self._ledger = self._ledger, self._stand.mx.ledger()
        record.work = work_of(self._tallies, LedgerReport(), self._ledger)
        self._measure_promises(record)
        return work_of(tallies, before, self._ledger)

    def close(self, record: RunRecord) -> None:
        """The run is over. Every accepted Message-ID: delivered, bounced, in the spool, or lost."""
        record.load = summary(self._tallies)
        try:
            self._ledger = ledger = self._stand.mx.ledger()
        except RemoteMXError as error:
            record.incidents.append(Incident(kind="remote-mx", text=str(error), at=self._stand.clock()))
        else:
            record.work = work_of(self._tallies, LedgerReport(), ledger)
            self._tell_fates(record, ledger)
        self._measure_promises(record)

    def unseen(self) -> int:
        """Accepted messages that have not arrived anywhere so far. Raises RemoteMXError."""
        ledger = self._stand.mx.ledger()
        return len(self._accepted - ledger.delivered.keys() - set(ledger.bounced) - self._local())

    def _tell_fates(self, record: RunRecord, ledger: LedgerReport) -> None:
        target, work = self._stand.target, record.work
        queued = mail.in_spool(target.spool) if target.spool else set()
        if isinstance(target, TellsWhatItOwes):
            owed = target.owed()
            queued |= self._accepted if owed is None else owed
        record.mail = mail.fates(self._accepted, ledger.delivered.keys() | self._local(), ledger.bounced, queued)
        found = list(record.mail.values())
        work.delivered, work.bounced = found.count("delivered"), found.count("bounced")
        work.queued, work.lost = found.count("queued"), found.count("lost")
        work.duplicated = len(ledger.duplicated)

    def _measure_promises(self, record: RunRecord) -> None:
        for promise in record.promises:
            promise.measured = float(getattr(record.work, promise.what))

    def _local(self) -> set[str]:
        """What the target delivered itself."""
        mailboxes = self._stand.target.mailboxes
        return mail.in_maildirs(mailboxes) if mailboxes else set()
