"""delivery: local deliveries.

Owns: nothing yet. Local delivery is not built; every envelope is put off with a plain reason, so that no mail is lost.
Never: runs a shell.
Takes: DELIVER, DELIVER_END.   Sends: DELIVERY_TEMP to queue.
"""

from __future__ import annotations

from typing import ClassVar

from mta_under_test.ipc.channel import Message
from mta_under_test.ipc.messages import Kind
from mta_under_test.processes.process import Process, takes

UNAVAILABLE = b"451 4.3.5 Local delivery is not available on this server"


class Delivery(Process):
    role: ClassVar[str] = "delivery"

    @takes(Kind.DELIVER)
    def deliver(self, peer: str, message: Message) -> None:
        self.stats["mda.tempfail"] += 1
        self.tell("queue", Kind.DELIVERY_TEMP, message.integers[0], text=UNAVAILABLE)

    @takes(Kind.DELIVER_END)
    def batch_complete(self, peer: str, message: Message) -> None:
        """Nothing waits for the end of a batch here."""
