"""Which load a run is given: here, in workers, or locust's own; checked before anything starts."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from harness.load.conversation import Conversation, LoadError
from harness.load.driven import DrivenLoad
from harness.load.orders import FleetOrder, WebOrder
from harness.load.process import LoadProcess

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the command line asks of the load."""

    users: int
    workers: int = 0  # started here
    master_bind: str = ""  # HOST:PORT where workers of other hosts are listened for
    expect_workers: int = 1  # … so many of them
    web: bool = False
    web_port: int = 0  # 0: any free one
    pipes: str = ""  # "ORDERS,ANSWERS", descriptors that were inherited from locust

    @property
    def outside(self) -> str:
        """The option that needs the host's network, where somebody else is to reach the run; empty: there is none."""
        said = {"--web": self.web, "--master-bind": bool(self.master_bind), "locust": bool(self.pipes)}
        return next((option for option, is_said in said.items() if is_said), "")

    def check(self) -> None:
        """Raises LoadError for settings that contradict each other."""
        _fleet(self)


class ChosenLoad:
    """Makes a run's load, when called (harness.run.design.MakeLoad). One of our own is there until `stop`."""

    def __init__(self, settings: Settings, board: Path | None) -> None:
        """`board`: the file that a page shows. Raises LoadError for settings that contradict each other."""
        self._pipes = _pipes(settings.pipes)
        self._fleet = _fleet(settings)
        self._web = WebOrder(LOOPBACK, settings.web_port, str(board)) if settings.web and board else None
        self._kept: LoadProcess | None = None

    def __call__(self, scenario: str, users: int, seed: int) -> AbstractContextManager[Conversation]:
        if self._pipes is not None:
            return DrivenLoad(scenario, users, seed, pipes=self._pipes)
        self._kept = LoadProcess(scenario, users, seed, fleet=self._fleet, web=self._web)
        self._kept.start()
        return nullcontext(self._kept)

    def again(self, scenario: str, users: int, seed: int) -> AbstractContextManager[Conversation]:
        """Another MakeLoad, for the same run's second look: the load that has imported all it needs, unless others have
        a part in it, or it is not fit for more.
        """
        if self._kept is None or self._fleet is not None or self._web is not None or not self._kept.is_idle:
            return LoadProcess(scenario, users, seed)
        return nullcontext(self._kept)

    def stop(self) -> None:
        if self._kept is not None:
            self._kept.stop()


def address(text: str, option: str) -> tuple[str, int]:
    """(host, port) of HOST:PORT. Raises LoadError."""
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdecimal() or not 0 < int(port) < 65536:
        raise LoadError(f"{option} {text}: give HOST:PORT, as in 192.0.2.1:5557")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _fleet(settings: Settings) -> FleetOrder | None:
    if settings.workers and settings.master_bind:
        raise LoadError("--workers starts them here, --master-bind waits for those of other hosts: give one of the two")
    workers = settings.expect_workers if settings.master_bind else settings.workers
    if workers > settings.users:
        raise LoadError(f"{workers} workers for {settings.users} users: each needs one at least; give more --users")
    if settings.master_bind:
        return FleetOrder(*address(settings.master_bind, "--master-bind"), workers)
    return FleetOrder(LOOPBACK, 0, workers, local=True) if workers else None


def _pipes(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    orders, _, answers = text.partition(",")
    return int(orders), int(answers)
