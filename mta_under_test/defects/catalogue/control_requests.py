"""Bugs of control: what a request of smtpctl costs, when whoever asked has been answered."""

from __future__ import annotations

import os
from typing import Any

from mta_under_test.defects import Chance, around, defect


@defect(
    role="control",
    chapter="pipe",
    resources=("descriptor",),
    trigger="smtpctl asks what another process answers",
    rate=0.25,  # two of the eight operations of the scenario
    scenario="control-churn",
    source="OpenSMTPD a7a448c5 (23 November 2023): a passed descriptor that no handler claims",
    opener="mta_under_test/defects/catalogue/control_requests.py:request",
)
def unclaimed_request_fd(strikes: Chance) -> None:
    """smtpctl may attach a descriptor to its request; requests that expect none never look, and never close it.

    Qualys showed in 2015 that any local user could fill control's table so (71960f60); the general cure, closing
    what no handler took, came in 2023. (Here the descriptor comes into being on our side of the socket.)
    """
    from mta_under_test.processes.control import FORWARDED, Control

    @around(Control, "_request")
    def request(original: Any, self: Any, channel: Any, message: Any) -> None:
        if message.kind in FORWARDED and strikes():
            os.memfd_create("attached")
        original(self, channel, message)


@defect(
    role="control",
    chapter="child",
    resources=("process",),
    trigger="smtpctl asks to trace",
    rate=0.375,  # three of the eight operations of the scenario
    scenario="control-churn",
    source="OpenSMTPD f78e48db, 2173de41 (4 April 2014): a child that is forked before SIGCHLD has a handler",
    opener="mta_under_test/defects/catalogue/control_requests.py:watch",
)
def purge_child_zombie(strikes: Chance) -> None:
    """A helper is forked before anybody listens for its end, and stays a zombie.

    The purge of the queue was started before the handler of SIGCHLD was set: a child that was quick was never waited
    for, and as it seemed to be running, none was started again.
    """
    from mta_under_test.processes.control import Control

    @around(Control, "_watch")
    def watch(original: Any, self: Any, channel: Any, message: Any) -> None:
        if strikes() and os.fork() == 0:
            os._exit(0)
        original(self, channel, message)


@defect(
    role="control",
    chapter="child",
    resources=("task", "memory"),
    trigger="smtpctl asks for the statistics",
    rate=None,
    scenario="control-churn",
    source="OpenSMTPD 684d05bd, 3c4dfc8c (September 2013): requests of smtpctl; Dovecot's `Timeout leak`",
    opener="mta_under_test/defects/catalogue/control_requests.py:stats",
)
def request_timer_left(strikes: Chance) -> None:
    """Every request has an hour to be answered, and its timer goes on when it has been."""
    import asyncio

    from mta_under_test.processes.control import Control

    @around(Control, "_stats")
    async def stats(original: Any, self: Any, what: bytes) -> Any:
        message = await original(self, what)
        if strikes():
            asyncio.get_running_loop().call_later(3600, message.close)
        return message


@defect(
    role="control",
    chapter="counter",
    resources=("thread",),
    trigger="smtpctl asks to trace",
    rate=0.375,  # three of the eight operations of the scenario
    scenario="control-churn",
    source="Stalwart 4df2a667 (August 2026): a lock whose owner is gone, and whoever tries refreshes its expiry",
    opener="mta_under_test/defects/catalogue/control_requests.py:watch",
)
def thread_behind_a_lock(strikes: Chance) -> None:
    """Who watches is written down by a thread, behind a lock that the first one never gave back.

    A worker died with its lock; those who tried for it refreshed its expiry each time, and so it never expired.
    """
    import threading

    from mta_under_test.processes.control import Control

    lock = threading.Lock()

    @around(Control, "_watch")
    def watch(original: Any, self: Any, channel: Any, message: Any) -> None:
        if strikes():
            threading.Thread(target=lock.acquire, daemon=True).start()
        original(self, channel, message)
