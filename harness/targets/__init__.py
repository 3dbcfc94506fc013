"""What is under test: how it starts, stops, takes mail, and says whether it rests. One file a target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from reports.record import Incident, Traffic


class TargetError(Exception):
    """The target cannot be started or asked; one line says why, and what to do."""


class Untraceable(TargetError):
    """It was asked to remember where it opens things, and is a target that cannot be made to; says why."""


@dataclass(frozen=True)
class Rest:
    """What a target says of itself between two doses."""

    busy: dict[str, int] = field(default_factory=dict)  # what still moves, by name; empty at rest
    backlog: int = 0  # envelopes owed and held on disk
    counters: dict[str, int] = field(default_factory=dict)
    gauges: dict[str, str] = field(default_factory=dict)  # counters of what there is now -> role that counts it
    stuck: tuple[str, ...] = ()  # gauges that were busy, though nothing moves: decided by who waits for rest


class Target(Protocol):
    """A mail server. `start` returns when it has greeted a client."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def defects(self) -> Sequence[str]:
        """Bugs that were re-opened in it on purpose."""

    @property
    def spool(self) -> Path | None:
        """Of OpenSMTPD's layout; None when it cannot be looked into."""

    @property
    def agent_directory(self) -> Path | None:
        """Where an agent inside the target answers; None when there is none."""

    @property
    def mailboxes(self) -> Path | None:
        """Below it are the maildirs that the target delivers into; None when it delivers nothing itself."""

    @property
    def root_pid(self) -> int: ...

    @property
    def address(self) -> tuple[str, int]:
        """Where mail is submitted."""

    def start(self) -> None: ...

    def stop(self) -> None:
        """End every process of the target. May be called twice, and after the target died."""

    def rest(self) -> Rest:
        """Raises TargetError when the target cannot be asked."""

    def hurry(self) -> None:
        """Try everything that waits again now, on every route. Raises TargetError when the target cannot be asked."""

    def operate(self, operation: str) -> None:
        """Do what an operator does, and wait for it. Raises TargetError for what cannot be done, or is unknown."""

    def deaths(self) -> list[Incident]:
        """Processes that ended though nobody asked them to."""


@runtime_checkable
class TellsWhatItOwes(Protocol):
    """A target that can say which messages it has, though its spool is of a layout of its own."""

    def owed(self) -> set[str] | None:
        """Message-IDs; None: nobody can look, and nothing can be called lost. Raises TargetError."""


@runtime_checkable
class LosesPatience(Protocol):
    """A target that ends an outbound session when the remote MX refuses too many messages in a row."""

    @property
    def patience(self) -> int:
        """So many."""


@runtime_checkable
class KeepsSessions(Protocol):
    """A target whose sessions to the remote MX stay open while there is nothing to send: they are no sign of work."""

    @property
    def keepalive_s(self) -> float:
        """So long."""


@runtime_checkable
class CountsTraffic(Protocol):
    """A target whose processes count what they send each other."""

    def traffic(self) -> list[Traffic]:
        """Since the target started. Raises TargetError when the target cannot be asked."""


@runtime_checkable
class FollowsMail(Protocol):
    """A target that cannot say what it owes, and rests when all that it accepted has arrived somewhere."""

    def follow(self, unseen: Callable[[], int]) -> None:
        """`unseen` tells how many accepted messages have been neither delivered nor bounced so far."""


@runtime_checkable
class NamesRoles(Protocol):
    """A target that knows better than its processes' titles what each of them is for."""

    @property
    def role_of(self) -> Callable[[str], str]:
        """Given a process's title, its role."""
