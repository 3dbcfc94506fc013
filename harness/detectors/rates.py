"""rates: how many were left for each unit of work, with an exact interval; and how much of a level is there to stay.

Owns: the choice of the interval. Never: decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from harness.detectors.quantiles import binomial_interval, poisson_interval


class Rate(NamedTuple):
    per_unit: float
    low: float
    high: float


def rate_of(survivors: Sequence[int], units: Sequence[int]) -> Rate:
    """Rate per unit with its exact 95 % interval: of a proportion while no dose left more than one a unit behind."""
    count, work = sum(survivors), sum(units)
    if all(kept <= done for kept, done in zip(survivors, units, strict=True)):
        return Rate(count / work, *binomial_interval(count, work))
    return Rate(count / work, *poisson_interval(count, work))


def floors(levels: Sequence[int]) -> list[int]:
    """For each rest the lowest level from there on: what is there to stay."""
    found = list(levels)
    for rest in range(len(found) - 2, -1, -1):
        found[rest] = min(found[rest], found[rest + 1])
    return found
