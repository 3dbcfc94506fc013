"""A target together with the remote MX that it relays to, for tests that speak to them by themselves.

Owns: that both are started and stopped. Never: makes load, judges.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.remote_mx.ledger import LedgerReport, ListenerReport
from harness.remote_mx.process import RemoteMX
from harness.run.design import HOME, REFUSING
from harness.targets import Target
from harness.targets.choice import MakeTarget


class RefusingMX:
    """The remote MX, running. It takes every message until its `policy` says otherwise, as ``rcpt=550``."""

    def __init__(self, mx: RemoteMX, policy: str) -> None:
        self._mx = mx
        self._policy = policy

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self._mx.ports[REFUSING]

    @property
    def ports(self) -> dict[str, int]:
        """By listener: `refusing`, and `home`, where the bounces to senders go."""
        return dict(self._mx.ports)

    @property
    def policy(self) -> str:
        return self._policy

    @policy.setter
    def policy(self, policy: str) -> None:
        """From the next command on, in open sessions as well. Raises RemoteMXError for what is no policy."""
        self._mx.set_policy(REFUSING, policy)
        self._policy = policy

    @property
    def ledger(self) -> LedgerReport:
        """Of both listeners, since the start: who got which message, and what bounced."""
        return self._mx.ledger()

    @property
    def seen(self) -> ListenerReport:
        """What came to the refusing listener, in numbers."""
        return self.ledger.listeners[REFUSING]


@contextmanager
def refusing_mx(policy: str = "") -> Iterator[RefusingMX]:
    """Raises RemoteMXError."""
    with RemoteMX({REFUSING: policy, HOME: ""}) as mx:
        yield RefusingMX(mx, policy)


@contextmanager
def running(make: MakeTarget, directory: Path, mx: RefusingMX, *, traced: bool = False) -> Iterator[Target]:
    """A target that relays to `mx`. `traced`: its agents remember where things are made. Raises TargetError."""
    target = make(directory, mx.ports, traced=traced)
    target.start()
    try:
        yield target
    finally:
        target.stop()
