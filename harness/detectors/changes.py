"""changes: where a number that is read once for each build changed, and how sure that is. Pure.

For every split and every end after it: how far the mean rank before the split is from that between split and end, in
standard deviations; the largest of all, against the largest of shuffled series. The ends are there so that what rose
and fell again is not hidden, as in E-divisive (D. S. Matteson and N. A. James, A Nonparametric Approach for Multiple
Change Point Analysis, JASA 109, 2014); what is left and right of a change is searched again. Ranks, as in A. N.
Pettitt's test (Applied Statistics 28(2), 1979), so that one wild run is worth one rank. Shuffling, so that the
false-alarm rate is alpha whatever the noise looks like, as long as its order says nothing.

Nobody can be surer than the number of ways to shuffle allows: three builds that differ from twelve before them are
one of 455 ways; from six before them, one of 84. Measured by tests/detectors/test_detect_changes.py at alpha 0.01: of
100 series without a change at most 4 accused, each time (normal noise, rounded, with wild values; 8 builds and 25); a
step of four standard deviations with six builds on either side found 80 times in 100.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

LEAST = 3  # builds on either side: fewer are an accident
SHUFFLES = 5  # times 1/alpha
FEW, UNLIKELY = 100, 0.1  # so many are enough to see that nothing changed, which most series show
EQUAL = 1e-9  # of a distance: what differs less has been rounded


class Change(NamedTuple):
    at: int  # index of the first value after it
    before: float  # median since the change before it
    after: float  # median up to the change after it
    chance: float  # of a difference as large without a change


def changes(values: Sequence[float], alpha: float) -> list[Change]:
    """In order. A series without a change is accused with probability `alpha`, and so is each part between two."""
    found = sorted(_splits(values, 0, alpha))
    ends = [0, *(at for at, _ in found), len(values)]
    return [
        Change(at, median(values[ends[number] : at]), median(values[at : ends[number + 2]]), chance)
        for number, (at, chance) in enumerate(found)
    ]


def _splits(values: Sequence[float], first: int, alpha: float) -> list[tuple[int, float]]:
    if len(values) < 2 * LEAST:
        return []
    at, chance = _split(values, FEW)
    if chance < UNLIKELY:
        at, chance = _split(values, math.ceil(SHUFFLES / alpha))
    if chance > alpha:
        return []
    return [(first + at, chance), *_splits(values[:at], first, alpha), *_splits(values[at:], first + at, alpha)]


def _split(values: Sequence[float], shuffles: int) -> tuple[int, float]:
    """The best split, and how often shuffled values have one as good."""
    import numpy
    from scipy.stats import rankdata  # type: ignore[import-untyped]

    size = len(values)
    ranks = rankdata(values) - (size + 1) / 2
    # The same series always gets the same answer.
    random = numpy.random.default_rng(size)
    shuffled = random.permuted(numpy.tile(ranks, (shuffles, 1)), axis=1)
    sums = numpy.cumsum(numpy.vstack([ranks, shuffled]), axis=1)  # the first row is the series itself
    largest = numpy.zeros(len(sums))
    at = LEAST
    for end in range(2 * LEAST, size + 1):
        left = numpy.arange(LEAST, end - LEAST + 1)
        before, whole = sums[:, left - 1], sums[:, end - 1 : end]
        distance = numpy.abs(before / left - (whole - before) / (end - left)) * numpy.sqrt(left * (end - left) / end)
        if distance[0].max() > largest[0] * (1 + EQUAL):
            at = int(left[distance[0].argmax()])
        numpy.maximum(largest, distance.max(axis=1), out=largest)
    return at, float((largest >= largest[0] * (1 - EQUAL)).sum() / len(largest))
