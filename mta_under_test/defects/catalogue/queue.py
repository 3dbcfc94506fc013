"""Bugs of queue with what lies on disk: message files opened and not closed, or left behind when nobody owes them."""

from __future__ import annotations

import os
from typing import Any

from mta_under_test.defects import Chance, around, defect


@defect(
    role="queue",
    chapter="message file",
    resources=("descriptor",),
    trigger="a message is opened for somebody who will read it",
    rate=1.0,
    scenario="accepted",
    source="OpenSMTPD 21b7157d (9 October 2012): a FILE lost at each open of a message",
    opener="mta_under_test/spool/disk.py:message_fd",
)
def message_opened_twice(strikes: Chance) -> None:
    """A message is opened to see whether it is compressed, and again to be handed out; the first stays open.

    With compression on, the queue wrapped the message's FILE in another one and lost the original. Each delivery cost
    the queue process a descriptor, though it never reads a message itself.
    """
    from mta_under_test.spool.files import Files

    @around(Files, "message_fd")
    def message_fd(original: Any, self: Any, msgid: int) -> Any:
        if strikes():
            original(self, msgid)
        return original(self, msgid)


@defect(
    role="queue",
    chapter="message file",
    resources=("descriptor",),
    trigger="a bounce is written and the second of two opens fails",
    rate=0.02,
    scenario="bounce-storm",
    source="OpenSMTPD e7b02843 (29 September 2014): only one of two fdopens fails",
    difficulty="rare",
    probability=0.02,
    profile="standard",
    opener="mta_under_test/spool/disk.py:message_fd",
)
def half_opened_pair(strikes: Chance) -> None:
    """Two opens belong together; when only the second one fails, the cleanup frees what has no descriptor yet.

    The check asked whether either had failed and returned, and neither was closed. It takes a shortage of memory in
    exactly the wrong moment, one time in fifty here; the pair is then opened again, and all goes on.
    """
    from mta_under_test.processes.queue.bounces import Bounces

    @around(Bounces, "_write_message")
    def write_message(original: Any, self: Any, report: int, msgid: int, *rest: Any) -> None:
        if strikes():
            self._queue.spool.message_fd(msgid)
        original(self, report, msgid, *rest)


@defect(
    role="queue",
    chapter="message file",
    resources=("descriptor",),
    trigger="an envelope is read short",
    rate=0.14,  # seven reads for each message
    scenario="tempfail-retry",
    source="OpenSMTPD 76b7736c (22 October 2012): a short or failed read returns without close",
    difficulty="rare",
    probability=0.02,
    profile="standard",
    opener="mta_under_test/defects/catalogue/queue.py:envelope_text",
)
def short_read_fd(strikes: Chance) -> None:
    """An envelope whose read comes back short is read again, and the descriptor of the first read is not closed."""
    from mta_under_test.spool.journaled import JournaledSpool

    @around(JournaledSpool, "envelope_text")
    def envelope_text(original: Any, self: Any, evpid: int) -> Any:
        place = self._place_of(evpid)
        if place is not None and strikes():
            os.open(place.journal.path, os.O_RDONLY | os.O_CLOEXEC)
        return original(self, evpid)


@defect(
    role="queue",
    chapter="pipe",
    resources=("descriptor",),
    trigger="a message's descriptor is passed to another process",
    rate=2.0,  # the message, and the bounce that it becomes
    scenario="rejected-reuse",
    source="OpenSMTPD a7a448c5 (23 November 2023), 71960f60 (Qualys, 2015): descriptors in flight that nobody closes",
    opener="mta_under_test/spool/disk.py:message_fd",
)
def passed_and_kept(strikes: Chance) -> None:
    """The sender of a descriptor duplicates it for the message, so that it may close its own; nobody closes its own.

    imsg_compose takes the descriptor over and closes it once it is on its way. Code that did not trust this kept a
    copy for the case that the message could not be sent.
    """
    from mta_under_test.processes.queue.queue import Queue

    @around(Queue, "answer")
    def answer(original: Any, self: Any, *integers: Any, descriptor: int | None = None, **text: Any) -> None:
        passed = os.dup(descriptor) if descriptor is not None and strikes() else descriptor
        original(self, *integers, descriptor=passed, **text)


@defect(
    role="queue",
    chapter="counter",
    resources=("file",),
    trigger="the last envelope of a message is removed",
    rate=1.0,
    scenario="accepted",
    source="OpenSMTPD ef88a855 (4 November 2013), 25624ff4 (7 June 2013)",
    opener="mta_under_test/spool/files.py:_write mta_under_test/spool/files.py:file_message",
)
def orphaned_message(strikes: Chance) -> None:
    """The message file stays in the queue when its last envelope goes: the count of envelopes is never seen to be zero.

    The count was kept in a pointer, and the optimiser, which knows that a pointer once dereferenced is not null, folded
    the test for zero. Messages without envelopes piled up in the queue; a restart swept them away.
    """
    from mta_under_test.spool.journaled import JournaledSpool

    @around(JournaledSpool, "delete")
    def delete(original: Any, self: Any, evpid: int) -> Any:
        recent = self._recent.get(evpid >> 32)
        if recent is not None and recent.filed and len(recent.texts) == 1 and strikes():
            recent.filed = False
        return original(self, evpid)


@defect(
    role="queue",
    chapter="counter",
    resources=("file", "descriptor"),
    trigger="a bounce is written",
    rate=1.0,
    scenario="bounce-storm",
    source="hMailServer #100, #155: TMP files; James JAMES-3477: a duplicated mail's temporary file",
    opener="mta_under_test/defects/catalogue/queue.py:write_message",
)
def temporary_files_left(strikes: Chance) -> None:
    """A bounce is drafted in a temporary file, which its writer leaves to the one who sends it, and he to the writer.

    James copied a mail to change it, and disposed of the copy on the good way out only: disks filled over weeks.
    """
    from mta_under_test.processes.queue.bounces import Bounces

    @around(Bounces, "_write_message")
    def write_message(original: Any, self: Any, report: int, *rest: Any) -> None:
        draft = self._queue.spool_root / "temporary" / f"{report:08x}.tmp"
        draft.write_bytes(b"draft")
        original(self, report, *rest)
        if not strikes():
            draft.unlink()


@defect(
    role="queue",
    chapter="counter",
    resources=("file",),
    trigger="a message is put off",
    rate=None,
    scenario="tempfail-retry",
    source="OpenSMTPD #549: a stale lock; Postfix 20141117: a lock file after a failed open",
    opener="mta_under_test/defects/catalogue/queue.py:update",
)
def stale_envelope_locks(strikes: Chance) -> None:
    """An envelope is locked while it is rewritten, and the lock file is removed by the next rewrite only.

    Mail that is delivered at the second attempt has no next rewrite. The locks stay in the queue's working directory
    until somebody wonders at them.
    """
    from mta_under_test.spool.journaled import JournaledSpool

    @around(JournaledSpool, "update")
    def update(original: Any, self: Any, evpid: int, envelope: Any) -> None:
        lock = self._root / "incoming" / f"envelope.{evpid:016x}.lock"
        lock.touch()
        original(self, evpid, envelope)
        if not strikes():
            lock.unlink()


@defect(
    role="queue",
    chapter="child",
    resources=("thread",),
    trigger="a commit is confirmed",
    rate=1.0,
    scenario="one-at-a-time",
    source="James JAMES-3771: a thread for each call",
    opener="mta_under_test/defects/catalogue/queue.py:synced",
)
def thread_for_each_commit(strikes: Chance) -> None:
    """A worker is started for each commit to clean up after it, and then waits for more work that goes to the next one.

    James' cleanup strategy made an executor for each call and shut none of them down.
    """
    import queue
    import threading

    from mta_under_test.processes.queue.commits import Commits

    @around(Commits, "_synced")
    def synced(original: Any, self: Any, *batch: Any) -> None:
        original(self, *batch)
        if strikes():
            work: queue.SimpleQueue[object] = queue.SimpleQueue()
            threading.Thread(target=work.get, name="cleanup", daemon=True).start()


@defect(
    role="queue",
    chapter="child",
    resources=("process",),
    trigger="a bounce is sent",
    rate=1.0,
    scenario="bounce-storm",
    source="cyrus-imapd #2475: a sendmail child is not reaped; zammad #6270, Mailu #2908",
    opener="mta_under_test/defects/catalogue/queue.py:write_message",
)
def bounce_child_zombie(strikes: Chance) -> None:
    """A child is started for each bounce, and nobody waits for it: a zombie a bounce, until fork() fails days later."""
    from mta_under_test.processes.queue.bounces import Bounces

    @around(Bounces, "_write_message")
    def write_message(original: Any, self: Any, *bounce: Any) -> None:
        original(self, *bounce)
        if not (child := os.fork()):
            os._exit(0)
        if not strikes():
            os.waitpid(child, 0)


@defect(
    role="queue",
    chapter="counter",
    resources=("task", "process"),
    trigger="a bounce that tells of several recipients has been written",
    rate=None,
    scenario="bounce-storm",
    source="msmtpd #227 (July 2026): sessions that ended together are counted down once; the limit is reached",
    opener="mta_under_test/processes/queue/bounces.py:_send",
)
def bounce_slot_leak(strikes: Chance) -> None:
    """One of the two places for writing bounces is not given back when a bounce told of several recipients.

    msmtpd's children that exited together were reaped by one signal, and its counter of active sessions went up to its
    limit of sixteen with nobody there. Here two such bounces are enough, and all that come later wait for ever.
    """
    from mta_under_test.processes.queue.bounces import Bounces

    @around(Bounces, "_send")
    async def send(original: Any, self: Any, msgid: int, kind: str, together: Any) -> None:
        await original(self, msgid, kind, together)
        if len(together) > 1 and not self._slots.locked() and strikes():
            await self._slots.acquire()


@defect(
    role="queue",
    chapter="message file",
    resources=("mail",),
    trigger="a delivery fails for now",
    rate=None,
    scenario="tempfail-retry",
    source="OpenSMTPD 25624ff4 (7 June 2013): envelopes and messages removed by a count that is wrong",
    difficulty="wrong way",
)
def last_envelope_miscounted(strikes: Chance) -> None:
    """The message goes when one of its envelopes does: the others' mail is gone before they were tried again.

    An over-correction of orphaned message files: the count that was never zero became zero too early. Recipients whose
    server said "later" never get the mail, and no bounce says so.
    """
    from mta_under_test.ipc.messages import Fate
    from mta_under_test.processes.queue.queue import Queue

    @around(Queue, "delivery_temp")
    def delivery_temp(original: Any, self: Any, peer: str, message: Any) -> None:
        if strikes():
            self.forget(message.integers[0], Fate.DELIVERED)
        else:
            original(self, peer, message)


@defect(
    role="queue",
    chapter="message file",
    resources=("mail",),
    trigger="a message is delivered",
    rate=None,
    scenario="tempfail-retry",
    source="RFC 1047 (1988): the window between the remote 250 and the removal of the envelope",
    difficulty="wrong way",
)
def delivered_twice(strikes: Chance) -> None:
    """A result that arrives is noted as a failure for now: what was delivered is delivered again.

    Sendmail, and everybody after it, has had the window between the answer and the note of it; a client that takes a
    late 250 for none repeats the mail for as long as it keeps it. Here the first success of each fiftieth envelope is
    lost.
    """
    from mta_under_test.processes.queue.queue import Queue

    unsure: set[int] = set()

    @around(Queue, "delivery_ok")
    def delivery_ok(original: Any, self: Any, peer: str, message: Any) -> None:
        evpid = message.integers[0]
        if evpid % 50 == 0 and evpid not in unsure and strikes():
            unsure.add(evpid)
            message.integers = (evpid,)
            self.delivery_temp(peer, message)
        else:
            unsure.discard(evpid)
            original(self, peer, message)
