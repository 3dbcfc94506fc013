"""queue: the disk queue, and the only process that opens files in it.

Owns: the spool, the commits, the bounces. Hands out descriptors of messages (SCM_RIGHTS).
Never: keeps a schedule, speaks SMTP.
Takes: CREATE_MESSAGE, OPEN_MESSAGE, COMMIT_MESSAGE, REMOVE_MESSAGE from smtp; SUBMIT_ENVELOPE, COMMIT_ENVELOPES from
lookup; BATCH, EXPIRE, REMOVE, HOLDQ_EMPTY from scheduler; MESSAGE_FD and DELIVERY_* from transfer and delivery;
HOLDQ_RELEASE, RESCHEDULE from transfer; SHOW_*, DISCOVER from control.
Sends: SUBMIT, DELIVERY_TEMP, ENVELOPE_DONE, DELIVERY_HOLD, HOLDQ_RELEASE, RESCHEDULE, DISCOVER to scheduler;
DELIVER to transfer and delivery; HOLDQ_EMPTY to transfer; EXPAND to lookup.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Sequence
from functools import partial
from typing import ClassVar

from mta_under_test.ipc.channel import Message
from mta_under_test.ipc.messages import Delivery, Fate, Kind
from mta_under_test.processes.process import Process, takes
from mta_under_test.processes.queue.bounces import Bounces
from mta_under_test.processes.queue.commits import Commits
from mta_under_test.processes.queue.profile import timed
from mta_under_test.processes.queue.settling import Settling
from mta_under_test.spool import CorruptEnvelope, SpoolError, Store, open_store
from mta_under_test.wire import dsn
from mta_under_test.wire.envelope import Envelope, decode, msgid_of

logger = logging.getLogger("smtpd")

DELIVERY_OF = {"mta": Delivery.MTA, "mda": Delivery.MDA}
SUBMIT_ENVELOPES = 300  # that fit into one frame
SCHEDULE_NUMBERS = 6  # of each
ROLE_OF: dict[int, str] = {Delivery.MTA: "transfer", Delivery.MDA: "delivery"}


def schedule_of(evpid: int, envelope: Envelope) -> tuple[int, ...]:
    """What scheduler keeps of an envelope."""
    expires = envelope.ctime + envelope.ttl
    return evpid, DELIVERY_OF[envelope.type], envelope.ctime, expires, envelope.retry, envelope.last_bounce


def _status(message: Message) -> tuple[str, str]:
    """A result's status line, and the remote server that said it, on a line of its own, if one did."""
    line, _, remote = message.text.decode(errors="replace").partition("\n")
    return line, remote


class Queue(Process):
    role: ClassVar[str] = "queue"
    new_work_from = ("smtp",)

    async def start(self) -> None:
        self.untimed = open_store(self.queue_backend, self.spool_root, compress=self.config.queue_compression)
        self.spool: Store = self.untimed
        self.commits = Commits(self)
        self.settling = Settling(self)
        self.bounces = Bounces(self, self, self.commits, self.settling)
        self._arriving: dict[int, list[int]] = {}  # what scheduler is to be told of an uncommitted message
        self._refused: set[int] = set()  # requests one of whose envelopes could not be written
        self.spool.recover()
        for _, owed in itertools.groupby(self.spool.walk(), lambda found: msgid_of(found[0])):
            self.submit(list(owed))

    async def finish(self) -> None:
        self.settling.close()
        self.commits.close()
        try:
            self.spool.close()
        except SpoolError as error:
            logger.error("%s; the next start goes on from the journal", error)

    def gauges(self) -> dict[str, int]:
        return {**self.bounces.gauges(), "queue.journal": self.spool.unsettled_bytes}

    def profiling_changed(self) -> None:
        watched = "queue" in self.profiling
        self.spool = timed(self.untimed, lambda line: self.profile("queue", line)) if watched else self.untimed

    def submit(self, owed: Sequence[tuple[int, Envelope]]) -> None:
        """Tell scheduler of a message's envelopes, all safe on disk: together, so that they are tried together."""
        self._schedule([number for evpid, envelope in owed for number in schedule_of(evpid, envelope)])

    def _schedule(self, numbers: Sequence[int]) -> None:
        for start in range(0, len(numbers), SCHEDULE_NUMBERS * SUBMIT_ENVELOPES):
            self.tell("scheduler", Kind.SUBMIT, *numbers[start : start + SCHEDULE_NUMBERS * SUBMIT_ENVELOPES])

    # ---- a message on its way in

    @takes(Kind.CREATE_MESSAGE)
    def create_message(self, peer: str, message: Message) -> None:
        """So many ids at once, since most messages need nothing else from us before they are whole."""
        request, count = message.integers
        try:
            self.answer(peer, request, *(self.spool.create() for _ in range(count)))
        except SpoolError as error:
            self.refuse(peer, request, str(error))

    @takes(Kind.OPEN_MESSAGE)
    def open_message(self, peer: str, message: Message) -> None:
        request, msgid = message.integers
        try:
            self.answer(peer, request, descriptor=self.spool.open_message(msgid))
        except SpoolError as error:
            self.refuse(peer, request, str(error))

    @takes(Kind.SUBMIT_ENVELOPE)
    def submit_envelope(self, peer: str, message: Message) -> None:
        request, msgid = message.integers
        try:
            envelope = decode(message.text)
            evpid = self.spool.add_text(msgid, message.text)
            self._arriving.setdefault(msgid, []).extend(schedule_of(evpid, envelope))
        except SpoolError as error:
            logger.warning("message %08x: %s", msgid, error)
            self._refused.add(request)

    @takes(Kind.COMMIT_ENVELOPES)
    def commit_envelopes(self, peer: str, message: Message) -> None:
        """All envelopes of one recipient are written: tell the process that asked for its expansion."""
        request, _ = message.integers
        asker = message.text.decode()
        failed = request in self._refused
        self._refused.discard(request)
        if failed:
            self.refuse(asker, request, "451 4.3.0 Temporary failure: cannot write the envelope")
        else:
            self.answer(asker, request)

    @takes(Kind.COMMIT_MESSAGE)
    def commit_message(self, peer: str, message: Message) -> None:
        """Commits that arrive together reach the disk together. The text is the message, unless a file has it."""
        request, msgid = message.integers
        if message.text:
            try:
                self.spool.put_message(msgid, message.text)
            except SpoolError as error:
                self.refuse(peer, request, str(error))
                return
        self.commits.add(msgid, partial(self._answer_commit, request))

    def _answer_commit(self, request: int, error: SpoolError | None) -> None:
        if error is None:
            self._replace_id(request)
        else:
            self.refuse("smtp", request, str(error))

    def _replace_id(self, request: int) -> None:
        """The answer brings a new id, in the place of the one that was used."""
        try:
            self.answer("smtp", request, self.spool.create())
        except SpoolError:
            self.answer("smtp", request)

    def committed(self, msgids: Sequence[int]) -> None:
        """Messages are safe: schedule their envelopes."""
        numbers: list[int] = []
        for msgid in msgids:
            if "queue" in self.tracing:
                self.trace("queue", f"{msgid:08x} committed")
            numbers += self._arriving.pop(msgid)
        self._schedule(numbers)
        self.settling.active()

    @takes(Kind.REMOVE_MESSAGE)
    def remove_message(self, peer: str, message: Message) -> None:
        """Answered with a new id in the place of this one, unless the request id is 0."""
        request, msgid = message.integers
        self.discard(msgid)
        if request:
            self._replace_id(request)

    def discard(self, msgid: int) -> None:
        """Give up a message that was not committed."""
        self._arriving.pop(msgid, None)
        try:
            self.spool.discard(msgid)
        except SpoolError as error:
            logger.warning("message %08x: %s", msgid, error)

    # ---- a message on its way out

    @takes(Kind.BATCH)
    def batch(self, peer: str, message: Message) -> None:
        delivery, *evpids = message.integers
        role = ROLE_OF[delivery]
        for evpid in evpids:
            if (text := self._load_text(evpid)) is not None:
                self.tell(role, Kind.DELIVER, evpid, text=text)
        self.tell(role, Kind.DELIVER_END)

    @takes(Kind.MESSAGE_FD)
    def message_fd(self, peer: str, message: Message) -> None:
        request, msgid = message.integers
        try:
            self.answer(peer, request, descriptor=self.spool.message_fd(msgid))
        except SpoolError as error:
            self.refuse(peer, request, str(error))

    @takes(Kind.DELIVERY_OK)
    def delivery_ok(self, peer: str, message: Message) -> None:
        evpid, *passed_on = message.integers
        text = None if passed_on else self._load_text(evpid)  # who was asked to report it does so (RFC 3461 §5.2.1)
        if text is not None and b"\ndsn-notify: " in text:
            envelope = decode(text)
            if envelope.sender and dsn.wanted("delivered", envelope.dsn_notify):
                self.bounces.delivered(evpid, envelope, *_status(message))
                return
        self.forget(evpid, Fate.DELIVERED)

    @takes(Kind.DELIVERY_TEMP)
    def delivery_temp(self, peer: str, message: Message) -> None:
        (evpid,) = message.integers
        if (envelope := self._load(evpid)) is None:
            return
        envelope.retry += 1
        envelope.last_try = int(time.time())
        envelope.errorline, _ = _status(message)
        try:
            self.spool.update(evpid, envelope)
        except SpoolError as error:
            logger.warning("envelope %016x: %s", evpid, error)  # the try is forgotten; the envelope is not
        self.tell("scheduler", Kind.DELIVERY_TEMP, evpid, envelope.retry)
        self.settling.active()

    @takes(Kind.DELIVERY_PERM)
    def delivery_perm(self, peer: str, message: Message) -> None:
        self._fail(message.integers[0], *_status(message), Fate.FAILED)

    @takes(Kind.DELIVERY_LOOP)
    def delivery_loop(self, peer: str, message: Message) -> None:
        self._fail(message.integers[0], "554 5.4.6 Routing loop detected", "", Fate.LOOPED)

    @takes(Kind.DELIVERY_HOLD, Kind.HOLDQ_RELEASE, Kind.RESCHEDULE)
    def pass_on(self, peer: str, message: Message) -> None:
        """Between transfer and scheduler, which do not know each other."""
        self.tell("scheduler", message.kind, *message.integers)

    @takes(Kind.HOLDQ_EMPTY)
    def pass_back(self, peer: str, message: Message) -> None:
        self.tell("transfer", message.kind, *message.integers)

    @takes(Kind.EXPIRE)
    def expire(self, peer: str, message: Message) -> None:
        (evpid,) = message.integers
        if (envelope := self._load(evpid)) is not None:
            last = f" (last error: {envelope.errorline})" if envelope.errorline else ""
            self._fail(evpid, f"554 5.4.7 Delivery time expired{last}", "", Fate.EXPIRED)

    @takes(Kind.DELAYED)
    def delayed(self, peer: str, message: Message) -> None:
        """A warning is due (`bounce warn-interval`)."""
        (evpid,) = message.integers
        try:
            envelope = self.spool.envelope(evpid)
        except SpoolError:
            return  # it is on its way out; scheduler is told when that is done
        self.bounces.delayed(evpid, envelope)

    @takes(Kind.REMOVE)
    def remove(self, peer: str, message: Message) -> None:
        self.forget(message.integers[0], Fate.REMOVED)

    def _fail(self, evpid: int, status_line: str, remote: str, fate: Fate) -> None:
        if (envelope := self._load(evpid)) is not None:
            self.bounces.failed(evpid, envelope, status_line, remote, fate)

    def forget(self, evpid: int, fate: Fate) -> None:
        """Nothing is owed for this envelope any more."""
        try:
            self.spool.delete(evpid)
        except SpoolError as error:
            logger.warning("envelope %016x: %s", evpid, error)
        if "queue" in self.tracing:
            self.trace("queue", f"{evpid:016x} {fate.name.lower()}")
        self.tell("scheduler", Kind.ENVELOPE_DONE, evpid, fate)
        self.settling.active()

    def _load(self, evpid: int) -> Envelope | None:
        text = self._load_text(evpid)
        return None if text is None else decode(text)

    def _load_text(self, evpid: int) -> bytes | None:
        try:
            return self.spool.envelope_text(evpid)
        except CorruptEnvelope as error:
            logger.error("envelope %016x is corrupt and was put aside: %s", evpid, error)
        except SpoolError as error:
            logger.error("envelope %016x: %s", evpid, error)
        self.tell("scheduler", Kind.ENVELOPE_DONE, evpid, Fate.REMOVED)
        return None

    # ---- for smtpctl

    @takes(Kind.DISCOVER)
    def discover(self, peer: str, message: Message) -> None:
        """Schedule envelopes that were put into the spool by hand."""
        request, which = message.integers
        self.spawn(self._discover(peer, request, which), f"discover {which:x}")

    async def _discover(self, peer: str, request: int, which: int) -> None:
        try:
            evpids = [which] if which >> 32 else self.spool.envelopes(which)
            found = {evpid: self.spool.envelope(evpid) for evpid in evpids}
            news: list[int] = []
            for start in range(0, len(evpids), SUBMIT_ENVELOPES):
                answer = await self.ask("scheduler", Kind.DISCOVER, *evpids[start : start + SUBMIT_ENVELOPES])
                news += answer.integers[1:]
        except SpoolError as error:
            self.refuse(peer, request, str(error))
            return
        self.submit([(evpid, found[evpid]) for evpid in news])
        self.answer(peer, request, len(news))

    @takes(Kind.SHOW_ENVELOPE)
    def show_envelope(self, peer: str, message: Message) -> None:
        request, evpid = message.integers
        try:
            self.answer(peer, request, evpid, text=self.spool.envelope_text(evpid))
        except SpoolError as error:
            self.refuse(peer, request, str(error))

    @takes(Kind.SHOW_MESSAGE)
    def show_message(self, peer: str, message: Message) -> None:
        request, which = message.integers
        try:
            self.answer(peer, request, descriptor=self.spool.message_fd(which >> 32 or which))
        except SpoolError as error:
            self.refuse(peer, request, str(error))
