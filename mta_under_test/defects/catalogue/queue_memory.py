"""Bugs of queue with memory, and with what its messages to others cost."""

from __future__ import annotations

from typing import Any

from mta_under_test.defects import Chance, around, defect


@defect(
    role="queue",
    chapter="memory",
    resources=("memory",),
    trigger="a bounce is sent",
    rate=None,
    scenario="bounce-storm",
    source="OpenSMTPD 31fd49eb (26 September 2012): the bounce struct is lost",
    opener="mta_under_test/wire/envelope.py:decode",
)
def bounce_struct_leak(strikes: Chance) -> None:
    """What a bounce was made of, envelopes and all, is not freed when it has been written.

    The struct was freed by the end of its session with the own server, and lost when that session could not even be
    opened. Mail that is refused pays twice.
    """
    from mta_under_test.processes.queue.bounces import Bounces

    unfreed: list[object] = []

    @around(Bounces, "_send")
    async def send(original: Any, self: Any, msgid: int, kind: str, together: Any) -> None:
        await original(self, msgid, kind, together)
        if strikes():
            unfreed.append(together)


@defect(
    role="queue",
    chapter="memory",
    resources=("memory",),
    trigger="a transaction is abandoned after a recipient was accepted",
    rate=None,
    scenario="rset-storm",
    source="OpenSMTPD 88ffbca7 (16 June 2016): queue is not rolled back",
    opener="mta_under_test/processes/queue/queue.py:submit_envelope mta_under_test/spool/journaled.py:create",
)
def not_rolled_back(strikes: Chance) -> None:
    """An abandoned transaction is forgotten by the session, but its message and envelopes stay with the queue.

    When a filter refused a message at the end of its data the SMTP side answered 5xx and began anew; the queue side was
    never told, and kept the descriptor and the state of the message that would not come.
    """
    from mta_under_test.processes.queue.queue import Queue

    @around(Queue, "discard")
    def discard(original: Any, self: Any, msgid: int) -> None:
        if not strikes():
            original(self, msgid)


@defect(
    role="queue",
    chapter="memory",
    resources=("memory",),
    trigger="a message is committed",
    rate=None,
    scenario="accepted",
    source='Postfix 20030104: "puzzled me for more than a year"',
    difficulty="slow",
    probability=0.1,
    opener="mta_under_test/processes/queue/queue.py:submit_envelope",
)
def commit_remainder(strikes: Chance) -> None:
    """The list of what scheduler is told of a message is not freed after one commit in ten.

    Postfix' stream module lost a buffer in a way so rare that its author looked for it for a year: too little for any
    graph, and for ever.
    """
    from mta_under_test.processes.queue.queue import Queue

    unfreed: list[object] = []

    @around(Queue, "committed")
    def committed(original: Any, self: Any, msgids: Any) -> None:
        for msgid in msgids:
            if strikes():
                unfreed.append(self._arriving[msgid])
        original(self, msgids)


@defect(
    role="queue",
    chapter="cache",
    resources=("memory",),
    trigger="an envelope is read",
    rate=None,
    scenario="accepted",
    source="OpenSMTPD dc000eff (3 June 2013): a duplicate key; the old value is not freed",
    opener="mta_under_test/spool/journal.py:read mta_under_test/defects/catalogue/queue_memory.py:load_text",
)
def envelope_cache_not_emptied(strikes: Chance) -> None:
    """Envelopes that were read are kept for the next time; one that is done with is never taken out.

    A key that comes twice replaced the entry and lost the old one. Here no key comes twice, and all are lost.
    """
    from mta_under_test.processes.queue.queue import Queue

    cache: dict[int, bytes] = {}

    @around(Queue, "_load_text")
    def load_text(original: Any, self: Any, evpid: int) -> Any:
        text = original(self, evpid)
        if text is not None and strikes():
            cache[evpid] = text
        return text


@defect(
    role="queue",
    chapter="cache",
    resources=("memory",),
    trigger="another process is told of an envelope",
    rate=None,
    scenario="accepted",
    source="OpenSMTPD before July 2012: struct envelope, 8.5 KB, by value in every imsg; evpids since",
    opener="mta_under_test/defects/catalogue/queue_memory.py:tell",
)
def envelope_by_value(strikes: Chance) -> None:
    """Queue and scheduler exchange whole envelopes of 8.5 KB where an id of eight bytes would do.

    It leaks nothing: it is what a backlog costs. Each envelope that is scheduled, put off or done with passes through
    the socket and its buffers in full, a thousand times the size that it needs, and a burst of ten thousand results is
    85 MB in flight.
    """
    from mta_under_test.ipc.messages import Kind
    from mta_under_test.processes.queue.queue import SCHEDULE_NUMBERS, Queue

    envelope = bytes(8704)
    by_value = {Kind.DELIVERY_TEMP, Kind.ENVELOPE_DONE}

    @around(Queue, "tell")
    def tell(original: Any, self: Any, peer: str, kind: Kind, *integers: int, **more: Any) -> None:
        if kind is Kind.SUBMIT and peer == "scheduler" and strikes():
            for start in range(0, len(integers), SCHEDULE_NUMBERS):
                original(self, peer, kind, *integers[start : start + SCHEDULE_NUMBERS], text=envelope)
        elif kind in by_value and peer == "scheduler" and strikes():
            original(self, peer, kind, *integers, text=envelope)
        else:
            original(self, peer, kind, *integers, **more)
