"""Bugs of control: operators who ask, watch, and hang up."""

from __future__ import annotations

from typing import Any

from mta_under_test.defects import Chance, around, defect


@defect(
    role="control",
    chapter="cache",
    resources=("memory", "counter"),
    trigger="smtpctl hangs up",
    rate=None,
    scenario="control-churn",
    source="simple.mailserver 7: the table of connections never removes an entry",
)
def watcher_gone(strikes: Chance) -> None:
    """A watcher hangs up, and what was watched for him is watched for ever: the list of watchers forgets nobody."""
    from mta_under_test.processes.control import Control

    kept: list[object] = []

    @around(Control, "_gone")
    def gone(original: Any, self: Any, channel: Any, reason: str) -> None:
        if strikes():
            kept.append((channel, self._connections.get(channel)))
        original(self, channel, reason)


@defect(
    role="control",
    chapter="pipe",
    resources=("socket", "descriptor"),
    trigger="smtpctl hangs up",
    rate=1.0,
    scenario="control-churn",
    source="OpenSMTPD 71960f60 (2 October 2015): what a local user may attach to the control socket",
    opener="mta_under_test/defects/catalogue/control.py:accept",
)
def control_connection_copied(strikes: Chance) -> None:
    """A connection is copied for the one who writes to it, and only the reader's is closed when smtpctl is gone."""
    import os

    from mta_under_test.processes.control import Control

    @around(Control, "_accept")
    def accept(original: Any, self: Any) -> None:
        before = set(self._connections)
        original(self)
        for channel in set(self._connections) - before:
            if strikes():
                os.dup(channel._socket.fileno())


@defect(
    role="control",
    chapter="memory",
    resources=("memory",),
    trigger="smtpctl asks for a list",
    rate=None,
    scenario="control-churn",
    source="Exim 4.86 JH/34: memory of each listing of the queue",
    opener="mta_under_test/defects/catalogue/control.py:request",
)
def listing_kept(strikes: Chance) -> None:
    """The words of every request are kept, for a history that nobody can ask for."""
    from mta_under_test.processes.control import Control

    kept: list[object] = []

    @around(Control, "_request")
    def request(original: Any, self: Any, channel: Any, message: Any) -> None:
        if strikes():
            kept.append([message.integers, message.text])
        original(self, channel, message)
