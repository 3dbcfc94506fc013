"""How much work in which order: warm-up, doubling doses for counts, escalating rounds for memory. Pure.

The numbers come from measured detectors (`tests/detectors`): four doubling doses after a warm-up prove a descriptor
leak of one in ten, and with the doses of two memory rounds behind them one of one in fifty. The standard profile
proves that one without them, by 31 first doses that stop doubling: since the dose that speaks most is left out, a last
one of half of all units would take half of the evidence along. A memory round is 16 equal doses; a leak of memory needs
two, the second of twice the dose.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from reports.record import DOSES_PER_ROUND, Phase


@dataclass(frozen=True)
class Profile:
    """How long a run may look."""

    name: str
    warm_up: tuple[int, ...]  # doses, in multiples of the scenario's first dose
    counts: tuple[int, ...]
    rounds: int  # of memory, at the most
    stop_at_finding: bool  # what is proven need not wait for the next memory round


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("quick", (1, 1), (1, 2, 4, 8), 4, True),
        Profile("standard", (1, 1), (1, 2, 4, 4, 4, 4, 4, 4, 4), 4, False),
        Profile("soak", (1, 2), (1, 2, 4, 8, 16, 32, 64), 6, False),
    )
}


@dataclass(frozen=True)
class Step:
    """One dose to come."""

    phase: Phase
    units: int
    round: int = 0


@dataclass(frozen=True)
class Plan:
    profile: Profile
    first_dose: int  # units of the scenario

    def counts(self) -> Iterator[Step]:
        for multiple in self.profile.warm_up:
            yield Step("warm-up", self.first_dose * multiple)
        for multiple in self.profile.counts:
            yield Step("count", self.first_dose * multiple)

    def memory_round(self, number: int) -> Iterator[Step]:
        """The 16 doses of escalating round `number`, from 0."""
        units = self.first_dose << number
        for _ in range(DOSES_PER_ROUND):
            yield Step("memory", units, number)

    @property
    def units_before_memory(self) -> int:
        return sum(step.units for step in self.counts())

    @property
    def units_of_round_0(self) -> int:
        return DOSES_PER_ROUND * self.first_dose
