"""A small internet on loopback: a DNS server, and mail exchangers, each on an address of its own, all on one port."""

from __future__ import annotations

import random
import socket
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from harness.remote_dns import DnsServer
from harness.remote_mx.process import RemoteMX

HOME = "home"  # a listener on 127.0.0.1, where the senders' bounces go


class Internet:
    """`Internet("a", "b")` has the hosts a.mx.test and b.mx.test; `addresses` says which they are."""

    def __init__(self, *names: str, ipv6: Sequence[str] = ()) -> None:
        # A /24 of our own: other tests have other ones, so that all hosts can have the same port.
        self._network = f"127.{random.randrange(1, 255)}.{random.randrange(256)}"
        self.addresses = {name: f"{self._network}.{number}" for number, name in enumerate(names, 1)}
        self.addresses |= dict.fromkeys(ipv6, "::1")
        self.port = _free_port([self.address_of_nobody, *self.addresses.values()])
        self.mx = RemoteMX(
            {HOME: "", **dict.fromkeys(self.addresses, "")},
            hosts=self.addresses,
            ports=dict.fromkeys(self.addresses, self.port),
        )
        self._hosts = {
            f"{name}.mx.test": {"AAAA" if ":" in address else "A": [address]}
            for name, address in self.addresses.items()
        }
        self._hosts["down.mx.test"] = {"A": [self.address_of_nobody]}
        self.dns = DnsServer(self._hosts)

    @property
    def address_of_nobody(self) -> str:
        """Where nothing listens."""
        return f"{self._network}.254"

    def zone(self, **domains: Any) -> None:
        """Domains besides the hosts: `zone(a={"MX": ["10 a.mx.test."]})` says where mail for a.test goes."""
        self.dns.zone(self._hosts | {f"{name.replace('_', '-')}.test": records for name, records in domains.items()})

    def arguments(self, directory: Path) -> list[str]:
        """Of an smtpd that lives in this internet."""
        return ["--resolv-conf", str(self.dns.resolv_conf(directory)), "--mx-port", str(self.port)]

    def accepted(self) -> dict[str, int]:
        """Messages by host, of those that have any."""
        listeners = self.mx.ledger().listeners
        return {name: report.accepted for name, report in listeners.items() if report.accepted}

    def __enter__(self) -> Self:
        self.dns.__enter__()
        self.mx.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.mx.stop()
        self.dns.__exit__(kind, error, trace)


def _free_port(addresses: Sequence[str]) -> int:
    """A port that is free on all of them; nobody but us uses them, except for ::1."""
    probe = socket.socket(socket.AF_INET6 if "::1" in addresses else socket.AF_INET)
    with probe:
        probe.bind(("::1" if "::1" in addresses else addresses[0], 0))
        port: int = probe.getsockname()[1]
        return port
