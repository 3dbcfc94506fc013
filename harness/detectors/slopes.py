"""slopes: how much a level grows for each unit of work, and how sure that is.

Owns: the straight line through one round of snapshots and its standard error. Never: decides.

Neighbouring snapshots resemble each other (an arena is half full, a collection is due), which makes an ordinary
standard error too small: it is widened by the lag-1 autocorrelation of the residuals as for an AR(1) series. Where
that is strong (a sawtooth) the line goes through the lower of every two neighbours instead. A level that is counted in
steps (pages, whole objects) cannot be known better than the step: that is the floor of the error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

SAWTOOTH = 0.4  # autocorrelation from which the lower envelope is taken
LARGEST_AUTOCORRELATION = 0.8


class Slope(NamedTuple):
    per_unit: float
    error: float  # standard error, positive
    freedom: int  # degrees of freedom


def slope(work: Sequence[float], level: Sequence[float], step: float) -> Slope:
    """The growth of `level` for each unit of `work`; `level` is counted in multiples of `step`.

    Needs at least eight points, and `work` that rises.
    """
    fitted, autocorrelation = line(work, level, step)
    if autocorrelation > SAWTOOTH:
        pairs = range(0, len(work) - 1, 2)
        lower = [min(level[index], level[index + 1]) for index in pairs]
        fitted, _ = line([(work[index] + work[index + 1]) / 2 for index in pairs], lower, step)
    return fitted


def without_largest_step(level: Sequence[float]) -> list[float]:
    """The same series with its largest single rise taken out: what is left of a growth that was one event."""
    rises = [after - before for before, after in pairwise(level)]
    largest = max(range(len(rises)), key=lambda index: rises[index])
    return [*level[: largest + 1], *(value - rises[largest] for value in level[largest + 1 :])]


def line(work: Sequence[float], level: Sequence[float], step: float) -> tuple[Slope, float]:
    """The straight line through all points, and the autocorrelation of what it leaves.

    Needs at least three points, and `work` that is not the same at all of them.
    """
    points = len(work)
    freedom = points - 2
    mean_work, mean_level = sum(work) / points, sum(level) / points
    spread = sum((x - mean_work) ** 2 for x in work)
    per_unit = sum((x - mean_work) * (y - mean_level) for x, y in zip(work, level, strict=True)) / spread
    residuals = [y - mean_level - per_unit * (x - mean_work) for x, y in zip(work, level, strict=True)]
    squares = sum(residual**2 for residual in residuals)
    products = sum(before * after for before, after in pairwise(residuals))
    # 1/n makes up for the bias of a short series' estimate.
    autocorrelation = products / squares + 1 / points if squares > 0 else 0.0
    autocorrelation = min(max(autocorrelation, 0.0), LARGEST_AUTOCORRELATION)
    variance = squares / freedom * (1 + autocorrelation) / (1 - autocorrelation)
    error = math.sqrt(max(variance, step**2 / 12) / spread)
    return Slope(per_unit, error, freedom), autocorrelation
