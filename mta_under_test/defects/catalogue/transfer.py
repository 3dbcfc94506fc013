"""Bugs of transfer: sessions that are reused, relays that are torn down, hosts that misbehave."""

from __future__ import annotations

from typing import Any

from mta_under_test.defects import Chance, around, defect


@defect(
    role="transfer",
    chapter="message file",
    resources=("descriptor",),
    trigger="the remote MX refuses MAIL, every RCPT, or DATA, and the session is used again",
    rate=0.95,  # 1 for each refused message, less 1 for each session (its last message is closed with it)
    scenario="rejected-reuse",
    source="OpenSMTPD af8b6a75 (18 January 2013) and 594cb438 (28 January 2013); introduced 33d8bd08 (18 August 2012)",
    opener="mta_under_test/spool/disk.py:message_fd",
)
def transfer_fd_leak(strikes: Chance) -> None:
    """The bug that Seatbelt began with: transfer keeps the message file of every refused message open.

    When the message descriptor came to be requested for each message instead of once a session, its close stayed
    where the body ends and where the session ends. A message that is refused before its body is sent passes
    neither: RSET, and the next message's descriptor takes the variable. The bounce removes the file, and lsof
    shows it as (deleted). The limit of 100 mails a session counted accepted ones only, so nothing stopped it.
    """
    from mta_under_test.processes.transfer_session import Session

    @around(Session, "release_message")
    def release_message(original: Any, self: Any) -> None:
        # Neither RSET nor the flush of a task closes the file: the next message overwrites the descriptor. The end of
        # the body and the end of the session still close it, as they did then. RSET and flush both come by for one
        # message: that it is forgotten is decided once.
        if self.message is None or self.message == getattr(self, "forgotten", None):
            return
        if strikes():
            self.forgotten = self.message
        else:
            original(self)


@defect(
    role="transfer",
    chapter="memory",
    resources=("memory",),
    trigger="a relay's last task is done, and the relay is torn down",
    rate=None,
    scenario="one-at-a-time",
    source="OpenSMTPD 9b46d96d, 616af7be, 0cc6c9cd, 62f91889; OpenBSD 197c454f (3 June 2013)",
    opener="mta_under_test/processes/transfer_routes.py:__init__",
)
def relay_object_leak(strikes: Chance) -> None:
    """Relay, domain, connectors, sources, hosts of a relay that is torn down stay in memory; every counter says 0.

    Tearing a relay down took it and its parts out of their trees but did not free host, domain, source, connector and
    route. The statistics counted the trees, so they said 0. On a server that sends one message now and then every
    relay is built and torn down once a message.
    """
    from mta_under_test.processes.transfer_map import Map

    unfreed: list[object] = []  # what C never frees, Python must be told to keep

    @around(Map, "drop")
    def drop(original: Any, self: Any, relay: Any) -> None:
        if strikes():
            parts = (relay.domain, list(relay.domain.exchanges or ()), list(relay.connectors))
            unfreed.append((relay, parts, [connector.source for connector in relay.connectors]))
        original(self, relay)
