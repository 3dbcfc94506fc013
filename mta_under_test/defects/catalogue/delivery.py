"""Bugs of delivery: what a local delivery leaves open or counted when it ends, well or badly."""

from __future__ import annotations

import os
from typing import Any

from mta_under_test.defects import Chance, around, defect


@defect(
    role="delivery",
    chapter="message file",
    resources=("descriptor",),
    trigger="a message is delivered locally",
    rate=1.0,
    scenario="local-delivery",
    source="OpenSMTPD df125035 (23 March 2009): a stray else skips the closes; 64fba10c (11 November 2008)",
    opener="mta_under_test/defects/catalogue/delivery.py:by_process",
)
def mailbox_message_fd(strikes: Chance) -> None:
    """A stray `else` skips the closes after a delivery into a mailbox: one message file for each mail."""
    from mta_under_test.processes.delivery.delivery import Delivery

    @around(Delivery, "_by_process")
    async def by_process(original: Any, self: Any, evpid: int, envelope: Any, action: Any, message: int) -> Any:
        copy = os.dup(message)
        try:
            return await original(self, evpid, envelope, action, copy)
        finally:
            if not strikes():
                os.close(copy)


@defect(
    role="delivery",
    chapter="message file",
    resources=("descriptor",),
    trigger="a delivery's host name is looked up",
    rate=1.0,
    scenario="local-delivery",
    source="DragonFly mail agent 2f4bc42 (2009): the mailname file is not closed",
    opener="mta_under_test/defects/catalogue/delivery.py:deliver",
)
def mailname_file(strikes: Chance) -> None:
    """The file with the host's name is read for each delivery, through a cache that keeps the name and the file."""
    from mta_under_test.processes.delivery.delivery import Delivery

    @around(Delivery, "_deliver")
    async def deliver(original: Any, self: Any, task: Any) -> Any:
        mailname = os.memfd_create("mailname")  # the process is locked into an empty directory
        if not strikes():
            os.close(mailname)
        return await original(self, task)


@defect(
    role="delivery",
    chapter="pipe",
    resources=("descriptor",),
    trigger="a delivery's agent or program has ended",
    rate=1.0,
    scenario="local-delivery",
    source="OpenSMTPD 89425a41 (29 September 2014): the data pipe is closed on one way out of several",
    opener="mta_under_test/processes/delivery/pipes.py:__init__",
)
def output_pipe_kept(strikes: Chance) -> None:
    """The pipe with a program's output is no longer watched when the program has ended; it is not closed."""
    from mta_under_test.processes.delivery.pipes import Output

    @around(Output, "close")
    def close(original: Any, self: Any) -> None:
        if self._open and self._write_end is None and strikes():
            self._open = False
            self._loop.remove_reader(self._read_end)
        else:
            original(self)


@defect(
    role="delivery",
    chapter="socket",
    resources=("socket",),
    trigger="a mail was delivered",
    rate=1.0,
    scenario="local-delivery",
    source="Postfix 20120702 (in it since 1999): the biff socket",
    opener="mta_under_test/defects/catalogue/delivery.py:result",
)
def biff_socket(strikes: Chance) -> None:
    """The user is told of new mail by a datagram to comsat; the socket for it is made each time and never closed."""
    import socket

    from mta_under_test.ipc.messages import Kind
    from mta_under_test.processes.delivery.delivery import Delivery

    @around(Delivery, "_result")
    def result(original: Any, self: Any, evpid: int, said: Any) -> None:
        original(self, evpid, said)
        if said.kind is Kind.DELIVERY_OK and strikes():
            biff = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            biff.connect(("127.0.0.1", 512))
            biff.detach()


@defect(
    role="delivery",
    chapter="child",
    resources=("memory",),
    trigger="a delivery's child has been reaped",
    rate=None,
    scenario="local-delivery",
    source="OpenSMTPD f6e4a4cd (22 December 2008): the entry stays in the tree of children",
    opener="mta_under_test/processes/delivery/delivery.py:_fork",
)
def reaped_child_entry(strikes: Chance) -> None:
    """The child is reaped, and its entry stays in the table of children: pids come round again, and then it hurts."""
    from mta_under_test.processes.delivery.delivery import Delivery

    table: dict[int, object] = {}

    @around(Delivery, "mda_done")
    def mda_done(original: Any, self: Any, peer: str, message: Any) -> None:
        number = message.integers[0]
        if number in self._jobs and strikes():
            table[number] = self._jobs[number]
        original(self, peer, message)


@defect(
    role="delivery",
    chapter="counter",
    resources=("task", "counter", "process"),
    trigger="a local delivery fails",
    rate=None,
    scenario="local-delivery",
    source="msmtpd #227 (July 2026): the counter of active sessions drifts to its limit of 16",
    opener="mta_under_test/processes/delivery/delivery.py:_drain",
)
def user_slot_leak(strikes: Chance) -> None:
    """A delivery that fails does not give back its place among the user's: seven failures, and he gets no mail.

    Nothing is open and nobody runs. The mail waits in delivery, which thinks that it has enough to do.
    """
    from mta_under_test.ipc.messages import Kind
    from mta_under_test.processes.delivery.delivery import Delivery

    @around(Delivery, "_deliver")
    async def deliver(original: Any, self: Any, task: Any) -> Any:
        results = await original(self, task)
        if any(result.kind is not Kind.DELIVERY_OK for result in results.values()) and strikes():
            self._running[task.user] += 1
        return results


@defect(
    role="delivery",
    chapter="memory",
    resources=("memory",),
    trigger="a message is delivered locally",
    rate=None,
    scenario="local-delivery",
    source="Exim c0741086d (24 September 2016): memory for each delivery",
    opener="mta_under_test/defects/catalogue/delivery.py:result",
)
def delivery_memory(strikes: Chance) -> None:
    """The line that is logged of a delivery is built in permanent memory, not in the delivery's own pool."""
    from mta_under_test.processes.delivery.delivery import Delivery

    unfreed: list[str] = []

    @around(Delivery, "_result")
    def result(original: Any, self: Any, evpid: int, said: Any) -> None:
        original(self, evpid, said)
        if strikes():
            unfreed.append(f"{evpid:016x} => {said.status_line}")
