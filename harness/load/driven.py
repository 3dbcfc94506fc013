"""The load when it is the other way round: locust is in charge, has started the controller, and takes its orders.

Owns: the two pipes that were inherited. Locust's own users hold the sessions of the doses; how many there are is
locust's business, and when it has had enough, a tally says that it is the last (harness.locust_plugin).
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from harness.load.conversation import Conversation, LoadError


class DrivenLoad(Conversation):
    """`pipes`: the descriptors that orders go to and answers come from."""

    ready_timeout_s = 3600.0  # locust spawns its users as slowly as it was told to

    def __init__(self, scenario: str, users: int, seed: int, *, pipes: tuple[int, int]) -> None:
        super().__init__(scenario, users, seed)
        self._given = pipes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Locust sees that we have ended when our process has, verdict and all."""

    def _pipes(self) -> tuple[int, int]:
        return self._given

    def _dead(self) -> LoadError:
        return LoadError("locust has ended")
