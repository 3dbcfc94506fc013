"""evidence: how much a column of survivors speaks against "nothing is kept".

Owns: the survivor e-process and what it could have seen. Never: knows what was counted.

The null grants every pool of doses up to GRANTED_BIRTHS that stay (a lazy open, a rotated log), as a Poisson mean. In
36 clean runs and innocents of one `seatbelt score` the worst class of 116 (files of the spool's journal) had 0.025 for
each pool, the next 0.007, all together 0.0005. Neighbours of one size share one grant: what fills ever more slowly has
as many births each time that the work has doubled. The alternative is Poisson(rate x units), mixed over rates from
0.001 to 5 in equal steps of the logarithm. The product of likelihood ratios over pools is an e-process: under the null
it ever reaches 1/alpha with probability alpha at most (Ville's inequality), whenever one looks and whenever one stops
(between pools that share a grant, exp(GRANTED_BIRTHS) times that).

A pool that is built once, however large, breaks that null in one place: a worker opens its ten connections, a process
starts. So the evidence is the *smallest* that is left when any one pool of doses is left out. It is then valid for the
null with one burst of any size; the price is power: the largest pool never helps.
Measured by tests/detectors/test_detect_evidence.py: at threshold 1/0.05 the worst null that is granted (all births in
every pool, and a burst) is reported at most 5 times in 100; `smallest_visible` is reached 9 times in 10.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from harness.detectors.quantiles import poisson_below

GRANTED_BIRTHS = 0.07  # that stay, for each pool of doses, under the null
RATES = [10 ** (-3 + 3.7 * step / 39) for step in range(40)]  # births per unit of work: 0.001 to 5
POWER = 0.9  # "would have been reported 90 times in 100"
SPREAD = 1  # more survivors than that are needed, for they fall into the pools by chance, not in proportion
PRECISION = 0.01  # of the rate that is said to be visible


class Pool(NamedTuple):
    """Doses that are judged as one."""

    units: int  # of work
    share: float = 1.0  # of the births that are granted

    @property
    def granted(self) -> float:
        return GRANTED_BIRTHS * self.share


def log_evidence(survivors: Sequence[float], pools: Sequence[Pool]) -> float:
    """Natural logarithm of the e-value; at most 0 with fewer than two pools, which cannot speak.

    `survivors` go pool by pool.
    """
    return _log_evidence(tuple(survivors), tuple(pools))


@lru_cache(maxsize=64)  # of most of what is counted nothing survives: one question, asked for each of them
def _log_evidence(survivors: tuple[float, ...], pools: tuple[Pool, ...]) -> float:
    terms = [[_log_ratio(kept, pool, rate) for kept, pool in zip(survivors, pools, strict=True)] for rate in RATES]
    left_out = [_log_mean_exp([sum(row) - row[number] for row in terms]) for number in range(len(pools))]
    return min(left_out, default=0.0)


def smallest_visible(pools: Sequence[Pool], log_threshold: float) -> float:
    """The smallest rate that reaches `log_threshold` 90 times in 100; 0 when the pools are too few or too small.

    Asks how many survivors the pools without the largest need, and at which rate that many are there whichever pool is
    left out (the chances of falling short are added up, so the answer errs on the large side).
    """
    others = sorted(pools)[:-1]
    if sum(pool.units for pool in others) == 0:
        return 0.0
    needed = 1
    while _log_mean_exp([_log_ratios(others, needed, rate) for rate in RATES]) < log_threshold:
        needed += 1
    needed += SPREAD
    units = [pool.units for pool in pools]
    low, high = 0.0, float(needed)
    while _short(units, needed, high) > 1 - POWER:
        high *= 2
    while high - low > PRECISION * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _short(units, needed, middle) > 1 - POWER else (low, middle)
    return high


def _short(units: Sequence[int], needed: int, rate: float) -> float:
    """At most how often some pool, left out, leaves fewer than `needed` survivors."""
    total = sum(units)
    return sum(poisson_below(needed, rate * (total - work)) for work in units)


def _log_ratio(kept: float, pool: Pool, rate: float) -> float:
    """Never rewards a pool for having fewer births than the null grants: so the ratio holds for every smaller grant."""
    mean = max(rate * pool.units, pool.granted)
    return kept * math.log(mean / pool.granted) - (mean - pool.granted)


def _log_ratios(pools: Sequence[Pool], kept: int, rate: float) -> float:
    total = sum(pool.units for pool in pools)
    return sum(_log_ratio(kept * pool.units / total, pool, rate) for pool in pools)


def _log_mean_exp(values: Sequence[float]) -> float:
    largest = max(values)
    return largest + math.log(sum(math.exp(value - largest) for value in values) / len(values))
