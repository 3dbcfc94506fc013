"""What a scenario declares: the sessions of a dose, what the remote MX refuses, and the work that must have been done.

Owns: the vocabulary of scenario files, how a dose is split into sessions, and how a scenario is found by its name.
Never: opens a socket, imports locust, gevent or asyncio. The controller that probes and judges reads scenarios too, and
must stay plain Python that nobody has patched.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Literal, get_args

from reports.record import Promise, Work

REFUSED_DOMAIN = "refused.test"  # relayed to the remote MX, whose policy refuses
ACCEPTED_DOMAIN = "accepted.test"  # relayed to the remote MX, which takes it
SENDER_DOMAIN = "sender.test"  # of every sender; its bounces go to the home MX
UNROUTED_DOMAIN = "nowhere.invalid"  # no rule of the target matches: the target itself answers 550
LOCAL_DOMAINS = {  # delivered by the target itself: into a maildir, or by programs that behave in a certain way
    "maildir.test": "maildir",
    "flood.test": "says everything that it is told",
    "fails.test": "fails",
    "deaf.test": "does not read",
    "slow.test": "takes its time",
}
# Relayed by name: the DNS server knows them, does not, fails every other time, is silent every other time, answers over
# TCP only, or says that they take no mail (RFC 7505). Whatever is found is the remote MX.
DNS_DOMAINS = ("known.test", "unknown.test", "servfail.test", "timeout.test", "truncated.test", "null.test")
LOGIN, PASSWORD = "load", "a password for the load"  # where AUTH is needed
RELAYED = frozenset(
    {"refused_messages", "delivered", "bounced", "messages_out", "sessions_out", "messages_per_session_out"}
)
DEFAULT_SENDER = f"bob@{SENDER_DOMAIN}"
_ADDRESS = re.compile(r"[!-;=?-~]+@[!-;=?-~]+")


class ScenarioError(Exception):
    """No such scenario, or a file that declares none; the text says where and what to do."""


@dataclass(frozen=True)
class Message:
    """One transaction of an inbound session, and how the target must answer it.

    Without `recipients` nothing is sent: the target refuses every recipient, the client says RSET and goes on.
    Raises ValueError for what no client could send.
    """

    sender: str
    recipients: tuple[str, ...]  # the target accepts these
    refused: tuple[str, ...] = ()  # the target itself refuses these
    size_bytes: int = 2048  # of the body; the header comes on top

    def __post_init__(self) -> None:
        if not self.recipients and not self.refused:
            raise ValueError("a message without any recipient, accepted or refused")
        if self.size_bytes < 2:
            raise ValueError(f"a body of {self.size_bytes} bytes; the CRLF that ends it has 2")
        for address in (self.sender, *self.recipients, *self.refused):
            if not _ADDRESS.fullmatch(address):
                raise ValueError(f"{address!r} is no address: ASCII without spaces, as in user@{REFUSED_DOMAIN}")


@dataclass(frozen=True)
class Step:
    """One thing that a raw client does: it waits, sends, and reads one answer. Raises ValueError for no digit."""

    send: bytes = b""  # as it stands; `{id}` in it becomes the Message-ID of the session's next message
    expect: str = "2"  # first digits that the answer may begin with; "" reads no answer
    pause_s: float = 0.0  # before it sends
    piece_bytes: int = 0  # sent in pieces of so many bytes, with the pause before each; 0: at once
    accepts: bool = False  # a positive answer takes a message over
    tls: bool = False  # after the answer comes the handshake (RFC 3207 §4); all that follows is said over TLS

    def __post_init__(self) -> None:
        if not set(self.expect) <= set("2345"):
            raise ValueError(f"{self.expect!r}: an SMTP answer begins with 2, 3, 4 or 5")


End = Literal["quit", "fin", "rst", "silence"]
Need = Literal["tls", "auth", "local", "dns"]  # STARTTLS; AUTH for LOGIN with PASSWORD; users of its own; MX by DNS


@dataclass(frozen=True)
class SessionPlan:
    """One inbound session: messages in order, all in the one connection, then QUIT; or what a raw client does.

    A raw client begins with the connection alone: its first step reads the greeting, or does not. `silence` is a client
    that says nothing for a while, and is then gone (RST) as if its host had been restarted.
    """

    messages: tuple[Message, ...] = ()
    steps: tuple[Step, ...] = ()
    end: End = "quit"  # of a raw client

    def __post_init__(self) -> None:
        if self.messages and self.steps:
            raise ValueError("a session has messages or steps, not both")
        if self.end != "quit" and not self.steps:
            raise ValueError(f"only a raw client ends by {self.end}; give it steps")


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What a file in scenarios/ calls ``SCENARIO``. Raises ValueError for numbers and promises that cannot be."""

    name: str
    story: str  # one paragraph: which mail hurts, and why
    unit: str  # what a dose counts, in the singular: "refused message"
    session: Callable[[Random, int], SessionPlan]  # a session worth exactly so many units
    units_per_session: int
    first_dose: int = 20  # units of the first judged dose; the later ones are multiples of it
    refuses: str = ""  # policy text of the refusing remote MX; empty: it accepts
    mixed: bool = False  # before a target loses patience with so many refusals in a row, the remote MX accepts one
    promises: tuple[Promise, ...] = ()  # without this work the run says nothing
    hold_backlog: bool = False  # the remote MX greets nobody during a dose; so its outbound session is certainly reused
    hurry: bool = False  # what the target puts off is tried again at once, until nothing waits
    portion: int | None = None  # the target is drained after every so many units; None: after the whole dose
    memory: bool = True  # the memory phase is worth running
    needs: tuple[Need, ...] = ()  # what the target must be set up with, beside relaying
    operations: tuple[str, ...] = ()  # what an operator does while a dose is loaded: one for each unit, in turn
    nofile: int | None = None  # the target's limit of descriptors
    users: int | None = None  # mail clients at the same time, where that is the point
    path: str = ""  # the file that it was loaded from; `load` fills it in

    def __post_init__(self) -> None:
        for field, value in (
            ("units_per_session", self.units_per_session),
            ("first_dose", self.first_dose),
            ("portion", self.portion),
        ):
            if value is not None and value < 1:
                raise ValueError(f"scenario {self.name}: {field} is {value}; it must be at least 1")
        for need in self.needs:
            if need not in get_args(Need):
                known = ", ".join(get_args(Need))
                raise ValueError(f"scenario {self.name}: no target has {need!r}; there is {known}")
        for promise in self.promises:
            if promise.what not in Work.__struct_fields__:
                known = ", ".join(Work.__struct_fields__)
                raise ValueError(f"scenario {self.name}: nobody counts the promised {promise.what!r}; one of {known}")

    @property
    def relays(self) -> bool:
        """Whether it promises work that only a target does which passes mail on to the remote MX."""
        return "local" not in self.needs and any(promise.what in RELAYED for promise in self.promises)

    def plan(self, seed: int, dose: int, units: int, first: int = 0) -> dict[int, SessionPlan]:
        """The sessions of `units` units of a dose, beginning with unit `first`: each by the number of its first unit.

        All are worth `units_per_session`, the last one what remains. The same arguments give the same sessions, and
        the portions of one dose share no number. Raises ValueError for less than one unit.
        """
        if units < 1:
            raise ValueError(f"a dose of {units} units; it must be at least 1")
        end = first + units
        return {
            number: self.session(
                Random(f"{self.name} {seed} {dose} {number}"), min(self.units_per_session, end - number)
            )
            for number in range(first, end, self.units_per_session)
        }


def names() -> list[str]:
    """Every scenario's name, as the command line writes it."""
    return sorted(path.stem.replace("_", "-") for path in _folder().glob("*.py") if not path.stem.startswith("_"))


def load(name: str) -> Scenario:
    """The scenario called `name` ('-' and '_' mean the same), or the one in the file `name`, a path that ends in .py.

    Raises ScenarioError.
    """
    if name.endswith(".py"):
        return _from_file(Path(name))
    known = names()
    wanted = name.replace("_", "-")
    if wanted not in known:
        near = difflib.get_close_matches(wanted, known, 1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise ScenarioError(
            f"no scenario called {name!r}{hint} There is: {', '.join(known)}. A file's path must end in .py"
        )
    return _from_file(_folder() / f"{wanted.replace('-', '_')}.py")


def _folder() -> Path:
    # Found, not imported: scenarios/ stands on harness/, and not the other way round.
    spec = importlib.util.find_spec("scenarios")
    if spec is None or not spec.submodule_search_locations:
        raise ScenarioError("the package `scenarios` is not installed; run `pip install -e .` in Seatbelt's directory")
    return Path(next(iter(spec.submodule_search_locations)))


def _from_file(path: Path) -> Scenario:
    if not path.is_file():
        raise ScenarioError(f"{path}: no such scenario file")
    module = _execute(path)
    scenario = getattr(module, "SCENARIO", None)
    if not isinstance(scenario, Scenario):
        raise ScenarioError(f"{path}: declares no scenario; it must set SCENARIO = Scenario(...)")
    return replace(scenario, path=str(path.resolve()))


def _execute(path: Path) -> ModuleType:
    """Run a scenario file as a module of its own; whatever it raises becomes a ScenarioError with the line."""
    spec = importlib.util.spec_from_file_location(f"seatbelt_scenario_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ScenarioError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses in the file look their own module up here.
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise ScenarioError(f"{path}:{error.lineno}: {error.msg}") from error
    except (Exception, SystemExit) as error:  # whoever ends the process ends a run that was never made
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if Path(frame.filename) == path.resolve()
        ]
        where = f"{path}:{lines[-1]}" if lines else str(path)
        raise ScenarioError(f"{where}: {type(error).__name__}: {error}") from error
    return module
