"""How much work in which order: warm-up, doubling doses for counts, escalating rounds for memory. Pure.

The numbers come from measured detectors: four doubling doses after a warm-up prove a descriptor leak of one in ten,
five one of one in fifty; a memory round is 16 equal doses, and a leak needs two rounds, the second of twice the dose.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from reports.record import Phase

EPOCHS_A_ROUND = 16


@dataclass(frozen=True)
class Profile:
    """How long a run may look."""

    name: str
    warm_up: tuple[int, ...]  # doses, in multiples of the scenario's first dose
    counts: tuple[int, ...]
    rounds: int  # of memory, at the most
    stop_at_count_finding: bool  # what is proven need not wait for the memory rounds


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("quick", (1, 1), (1, 2, 4, 8), 3, True),
        Profile("standard", (1, 1), (1, 2, 4, 8, 16), 4, False),
        Profile("soak", (1, 2), (1, 2, 4, 8, 16, 32, 64), 6, False),
    )
}


@dataclass(frozen=True)
class Step:
    """One dose to come."""

    phase: Phase
    units: int
    round: int = 0
    last_of_round: bool = False


@dataclass(frozen=True)
class Plan:
    profile: Profile
    first_dose: int  # units of the scenario
    memory: bool

    def counts(self) -> Iterator[Step]:
        for multiple in self.profile.warm_up:
            yield Step("warm-up", self.first_dose * multiple)
        for multiple in self.profile.counts:
            yield Step("count", self.first_dose * multiple)

    def memory_round(self, number: int) -> Iterator[Step]:
        """The 16 doses of escalating round `number`, from 0."""
        units = self.first_dose << number
        for epoch in range(EPOCHS_A_ROUND):
            yield Step("memory", units, number, epoch == EPOCHS_A_ROUND - 1)

    @property
    def units_before_memory(self) -> int:
        return sum(step.units for step in self.counts())

    @property
    def units_of_round_0(self) -> int:
        return EPOCHS_A_ROUND * self.first_dose
