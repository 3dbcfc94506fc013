"""rules: what people go by today, each applied to the very same run. Pure functions of a run record.

64 KB           some process's resident memory is more than 64 KB larger at the last rest than at the baseline
Mann-Kendall    some process's resident memory, sampled all the time, rises by the Mann-Kendall test (Mann 1945) at
                one per cent, the first quarter dropped
count           some process has more descriptors at the last rest than at the baseline
psleak          psleak's rule (version 0.1.6) on resident memory: doses grow by half; growth for each unit must fade
                by a fifth twice in a row, or be at most 16 bytes
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from reports.record import Dose, Process, RunRecord

GROWN_BYTES = 64 * 1024
MANN_KENDALL_ALPHA = 0.01
MANN_KENDALL_POINTS = 10  # the normal approximation needs them
DROPPED = 0.25
PSLEAK_FADES, PSLEAK_FLOOR_BYTES, PSLEAK_GROWTH, PSLEAK_FIRST_DOSES = 0.8, 16.0, 1.5, 2.0


def grown(record: RunRecord) -> bool:
    return any(series[-1] - series[0] > GROWN_BYTES for series in _at_rests(record, _rss).values())


def mann_kendall(record: RunRecord) -> bool:
    from scipy.stats import kendalltau  # type: ignore[import-untyped]

    by_pid: defaultdict[int, list[int]] = defaultdict(list)
    for _, pid, _, rss in record.samples.rows:
        by_pid[pid].append(rss)
    for series in by_pid.values():
        kept = series[int(len(series) * DROPPED) :]
        if len(kept) < MANN_KENDALL_POINTS or len(set(kept)) == 1:
            continue
        found = kendalltau(range(len(kept)), kept, alternative="greater")
        if found.pvalue < MANN_KENDALL_ALPHA:
            return True
    return False


def counted(record: RunRecord) -> bool:
    return any(series[-1] > series[0] for series in _at_rests(record, _descriptors).values())


def psleak(record: RunRecord) -> bool:
    work = _work(record)
    return any(_psleak(work, series) for series in _at_rests(record, _rss).values())


RULES: Mapping[str, Callable[[RunRecord], bool]] = {
    "64 KB": grown,
    "Mann-Kendall": mann_kendall,
    "count": counted,
    "psleak": psleak,
}


def _psleak(work: Sequence[int], series: Sequence[float]) -> bool:
    """Windows of work, each half as long again as the one before, until growth fades twice or the data end."""
    if len(work) < 2:
        return False
    dose = PSLEAK_FIRST_DOSES * (work[1] - work[0])
    at, before, faded = 0, None, 0
    while (end := bisect_left(work, work[at] + dose)) < len(work):
        growth = series[end] - series[at]
        if growth <= 0:
            return False
        each = growth / (work[end] - work[at])
        fades = each <= PSLEAK_FLOOR_BYTES or (before is not None and each <= PSLEAK_FADES * before)
        faded = faded + 1 if fades else 0
        if faded == 2:
            return False
        at, before, dose = end, each, dose * PSLEAK_GROWTH
    return before is not None


def _work(record: RunRecord) -> list[int]:
    """Units done at each rest from the end of the warm-up on, 0 there."""
    total, work = 0, list[int]()
    for dose in _judged(record):
        total = total + dose.units if work else 0
        work.append(total)
    return work


def _at_rests(record: RunRecord, measure: Callable[[Process], float]) -> dict[int, list[float]]:
    """By pid, for the processes that were there at every rest from the end of the warm-up on."""
    columns: defaultdict[int, list[float]] = defaultdict(list)
    doses = _judged(record)
    for dose in doses:
        for process in dose.snapshot.processes:
            columns[process.pid].append(measure(process))
    return {pid: column for pid, column in columns.items() if len(column) == len(doses) > 1}


def _judged(record: RunRecord) -> list[Dose]:
    warm = [index for index, dose in enumerate(record.doses) if dose.phase == "warm-up"]
    return record.doses[warm[-1] if warm else 0 :]


def _rss(process: Process) -> float:
    return process.memory.rss


def _descriptors(process: Process) -> float:
    return len(process.descriptors)
