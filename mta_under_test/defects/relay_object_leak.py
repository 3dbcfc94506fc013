"""Relay, domain, connectors, sources, hosts of a relay that is torn down stay in memory; every counter says 0."""

from __future__ import annotations

from mta_under_test.defects import Chance, Defect
from mta_under_test.processes.parent import Birth
from mta_under_test.processes.process import Process, Sockets, Start
from mta_under_test.processes.transfer import Transfer
from mta_under_test.processes.transfer_map import Map
from mta_under_test.processes.transfer_routes import Relay


def overlay(born: Birth, strikes: Chance) -> Birth:
    class HoardingMap(Map):
        def __init__(self) -> None:
            super().__init__()
            # What C never frees, Python must be told to keep.
            self._unfreed: list[object] = []

        def drop(self, relay: Relay) -> None:
            """Off the map, and so out of every counter; but not out of memory."""
            if strikes():
                parts = (relay.domain, list(relay.domain.exchanges or ()), list(relay.connectors))
                self._unfreed.append((relay, parts, [connector.source for connector in relay.connectors]))
            super().drop(relay)

    class HoardingTransfer(Transfer):
        map_class = HoardingMap

    def birth(start: Start, sockets: Sockets) -> Process:
        return HoardingTransfer(start, sockets)

    return birth


DEFECT = Defect(
    name="relay-object-leak",
    role="transfer",
    resource="memory",
    trigger="a relay's last task is done, and the relay is torn down",
    rate="one relay, domain, connector, source and host for each relay lifetime",
    scenario="one-at-a-time",
    source="OpenSMTPD 9b46d96d, 616af7be, 0cc6c9cd, 62f91889; OpenBSD 197c454f (3 June 2013)",
    story=(
        "Tearing a relay down took it and its parts out of their trees but did not free host, domain, source, "
        "connector and route. The statistics counted the trees, so they said 0. On a server that sends one message "
        "now and then every relay is built and torn down once a message."
    ),
    overlay=overlay,
)
