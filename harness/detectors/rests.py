"""rests: the judged rests of a record, in order.

Owns: what is baseline, which doses count, how they are pooled. Never: looks inside a snapshot.

The baseline is the last warm-up rest; a record without one gives its first judged rest away as baseline. A dose after
which the target did not come to rest is no rest: its units are added to the next dose that ended in one, so that what
was in flight is not taken for what is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.detectors.evidence import Pool
from reports.record import Phase, RunRecord, Snapshot

ONE_SIZE = 1.5  # below it; the next size is twice as large
POOL_DOSES = 8  # doses of a memory round that count as one when identities are judged


@dataclass(frozen=True)
class Rest:
    dose: int  # index into record.doses
    units: int  # work since the rest before
    pool: tuple[int, ...]  # rests with the same pool are judged as one dose
    phase: Phase
    snapshot: Snapshot


@dataclass(frozen=True)
class Rests:
    """The baseline and what was judged after it."""

    baseline: Snapshot
    judged: list[Rest]

    @property
    def units(self) -> int:
        return sum(rest.units for rest in self.judged)

    def pools(self) -> list[Pool]:
        """What `pooled` adds up, in the same order. Neighbours of one size in the count phase share one grant."""
        counted = {rest.pool for rest in self.judged if rest.phase == "count"}
        found: list[list[int]] = []  # units of pools that share
        before: tuple[int, ...] | None = None
        for pool, units in self._sums([rest.units for rest in self.judged]).items():
            if pool in counted and before in counted and _of_one_size(found[-1][0], units):
                found[-1].append(units)
            else:
                found.append([units])
            before = pool
        return [Pool(units, 1 / len(sharing)) for sharing in found for units in sharing]

    def pooled(self, by_rest: list[int]) -> list[int]:
        """A number for each judged rest, added up pool by pool."""
        return list(self._sums(by_rest).values())

    def _sums(self, by_rest: list[int]) -> dict[tuple[int, ...], int]:
        sums: dict[tuple[int, ...], int] = {}
        for rest, value in zip(self.judged, by_rest, strict=True):
            sums[rest.pool] = sums.get(rest.pool, 0) + value
        return sums


def rests(record: RunRecord) -> Rests:
    """The judged rests of `record`; none when it has no dose that ended in rest.

    A dose of the count phase is a pool of its own. The doses of a memory round are small and many, and every one would
    pay for the births that the null hypothesis grants a pool: half a round is one pool.
    """
    baseline: Snapshot | None = None
    judged: list[Rest] = []
    carried_units = 0
    position: dict[int, int] = {}  # round -> doses of it so far
    for index, dose in enumerate(record.doses):
        if dose.phase == "warm-up":
            if dose.rested:
                baseline = dose.snapshot
            continue
        pool: tuple[int, ...] = (index,)
        if dose.phase == "memory":
            half = position.get(dose.round, 0) // POOL_DOSES
            position[dose.round] = position.get(dose.round, 0) + 1
            pool = (dose.round, half)
        if not dose.rested:
            carried_units += dose.units
        elif baseline is None:
            baseline, carried_units = dose.snapshot, 0
        else:
            judged.append(Rest(index, dose.units + carried_units, pool, dose.phase, dose.snapshot))
            carried_units = 0
    return Rests(baseline or Snapshot(), judged)


def _of_one_size(units: int, others: int) -> bool:
    """The load may give a little more or less than was planned."""
    return max(units, others) < ONE_SIZE * min(units, others)
