"""growth: memory, by escalating rounds.

Owns: the choice of metric, the three verdicts for each role, and whether one more round would help.
Never: judges anything that can be counted one by one; reads anything but the record.

A round is 16 doses of equal size; the next round's doses are twice as large. Each round gives a slope, in units of the
metric for each unit of work, with its standard error (`slopes`).
- CLEAN: the slope's upper 95 % bound is below the smallest growth that matters (0.02 objects, 16 bytes).
- LEAK: the slope is above that, and it has not faded since the round before: more than 0.6 of it is still there though
  the dose has doubled (a cache that fills as log n keeps 0.5, one that saturates less, a leak 1); and it is not one
  event: without its largest single step at least half of it remains. The first round alone can never be a LEAK.
- else INCONCLUSIVE: another round is needed. The first decision stands.

The quietest metric that a role has is judged: Python objects where the agent answers, malloc's bytes where the meter
is loaded, else private memory. Beside it goes what it does not see: beside the objects malloc's bytes, since a buffer
that grows adds no object; beside malloc's bytes private memory, since a program may have memory from elsewhere. What
goes beside can accuse, and ask for another round when it looks as if it grew; that it is not proven still does not keep
a run from being clean.

Private memory grows page by page, and which unit of work touches the next page is chance: n new pages are no surer
than a Poisson count, with a standard error of sqrt(n). An accusation must hold by that too, at PAGES_SURE of them.
Without this, cleanup(8) of Postfix, whose heap settles by a page here and there (2 pages in one round, 7 in the next; 2
bytes a message in the long run), is taken for a leak of 22 bytes a message.

How much of a process is private depends on who else has it still: a page that it shares with a child which it forked
becomes its own again when the child ends. So where processes came or went between two rests, anonymous memory takes the
place of private memory; it counts such a page all the time.

Of a role with several processes (prefork) those are judged that were there at every rest, if at every rest they were at
least half of the role: a process that begins brings its memory along, one that ends takes it away, and neither is
growth with the work. Else the role is not judged, which spoils nothing; only one process that took the place of one
other, once, is a restart, which nobody explained.

Error rates: half of the run's alpha is for memory, divided by the number of series that are judged (a role's own, and
what goes beside it); the k-th round after the first spends 2^-k of that, so the number of rounds need not be known.
Measured by tests/detectors/test_detect_growth.py at alpha 0.01, 8 roles, five rounds of 16 x 50 units doubling, level
noise of 8 kB: no LEAK in 6 x 480 leak-free series (flat, AR(1), steps, sawtooth, log fill, high-water mark), all but
one of them proven CLEAN; a leak of 256 bytes a unit is found in all of 6 x 480 series, one of 64 bytes in 97 of 100 of
five worlds (a sawtooth of 150 kB hides it: 24 in 100, the others INCONCLUSIVE). The tests assert a little less, on
fewer series.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from harness.detectors import wording
from harness.detectors.quantiles import student_quantile, student_tail
from harness.detectors.slopes import Slope, slope, without_largest_step
from reports.record import DOSES_PER_ROUND, Dose, Finding, Process, RunRecord, Tested, Verdict

ALPHA_SHARE = 0.5
CLEAN_LEVEL = 0.95
KEPT = 0.6  # of the slope of the round before
KEPT_WITHOUT_STEP = 0.5  # of the slope itself
POWER = 0.9
PAGES_SURE = 3.0  # standard errors
POWER_SURE = 1.28  # … and these above, to be seen 9 times in 10
LEAST_STAYED = 0.5  # of the processes of a role, at every rest

OWED = "memory not judged: mail is still owed"
COMES_AND_GOES = "memory not judged: its processes come and go"
HARMLESS = (OWED, COMES_AND_GOES)  # reasons that say nothing against the rest of the run


@dataclass(frozen=True)
class Metric:
    name: str  # in the record
    label: str
    noun: str  # "grows by 3 …"
    least: float  # the smallest growth for each unit of work that matters
    step: float  # what the level is counted in


OBJECTS = Metric("python objects", "Python objects", "Python objects", 0.02, 1)
HEAP = Metric("heap", "heap in use", "bytes of heap", 16.0, 16)
PRIVATE_DIRTY = Metric("private dirty", "private memory", "bytes of private memory", 16.0, 4096)
ANONYMOUS = Metric("anonymous", "anonymous memory", "bytes of anonymous memory", 16.0, 4096)
IN_PAGES = (PRIVATE_DIRTY, ANONYMOUS)


@dataclass(frozen=True)
class Level:
    """One role's memory over the finished rounds."""

    role: str
    pids: list[int]
    metric: Metric
    values: list[list[float]]  # by round, by dose
    passing: int = 0  # other processes of the role, which came or went


@dataclass(frozen=True)
class Judged:
    findings: list[Finding] = field(default_factory=list)
    tested: list[Tested] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)  # that keep the whole run from a verdict
    decided: bool = True  # another round would change nothing


@dataclass(frozen=True)
class _Decision:
    verdict: Verdict
    round: int
    slopes: list[Slope]
    chance: float = 1.0  # of a false alarm this strong, over all rounds and roles
    smallest_visible: float = 0.0
    suspected: bool = False  # inconclusive, and it seems to grow


def decided(record: RunRecord) -> bool:
    """Whether every role has its verdict, or can have none, so that another memory round would not help."""
    return judge(record).decided


def judge(record: RunRecord) -> Judged:
    """Every role, judged by the finished rounds. Empty when the run was not to judge memory."""
    if not record.judgement.memory:
        return Judged()
    rounds = finished_rounds(record)
    if not rounds:
        return Judged(reasons=["memory was not judged: no memory round was finished"], decided=False)
    levels: list[Level] = []
    beside: list[Level] = []
    tested: list[Tested] = []
    pages = _pages(rounds)
    for role in sorted({process.role for dose in _doses(rounds) for process in _living(dose)}):
        level = _level(role, rounds, pages)
        if isinstance(level, Level):
            levels.append(level)
            beside += _beside(level, rounds, pages)
        else:
            tested.append(
                Tested(
                    resource="memory",
                    label="memory",
                    role=role,
                    metric="",
                    verdict="inconclusive",
                    unit=record.judgement.unit,
                    reason=level,
                )
            )
    work = _cumulative_work(rounds)
    share = max(1, len(levels) + len(beside))
    alpha = record.judgement.alpha * ALPHA_SHARE / share
    findings: list[Finding] = []
    undecided = False
    for level in levels:
        decision = _decide(level, work, alpha, share)
        undecided = undecided or decision.verdict == "inconclusive"
        tested.append(_tested(record, level, decision, work))
        if decision.verdict == "leak":
            findings.append(_finding(record, rounds, level, decision))
    accused = {finding.role for finding in findings}
    for level in beside:
        decision = _decide(level, work, alpha, share)
        undecided = undecided or (decision.suspected and level.role not in accused)
        if decision.verdict != "inconclusive":
            tested.append(_tested(record, level, decision, work))
        if decision.verdict == "leak" and level.role not in accused:  # the objects that grow are told already
            findings.append(_finding(record, rounds, level, decision))
    reasons = [
        f"memory of {each.role}: {each.reason}"
        for each in tested
        if each.verdict == "inconclusive" and each.reason not in HARMLESS
    ]
    return Judged(findings, sorted(tested, key=lambda each: each.role), reasons, not undecided)


def finished_rounds(record: RunRecord) -> list[list[Dose]]:
    """The doses of each finished round, in order; a round that was cut short is left out."""
    by_round: dict[int, list[Dose]] = {}
    for dose in record.doses:
        if dose.phase == "memory":
            by_round.setdefault(dose.round, []).append(dose)
    return [doses for _, doses in sorted(by_round.items()) if len(doses) >= DOSES_PER_ROUND]


def _pages(rounds: Sequence[Sequence[Dose]]) -> Metric:
    """The one that is steady from outside."""
    lives = {frozenset(_identity(process) for process in _living(dose)) for dose in _doses(rounds)}
    return PRIVATE_DIRTY if len(lives) == 1 else ANONYMOUS


def _level(role: str, rounds: Sequence[Sequence[Dose]], pages: Metric) -> Level | str:
    """The role's series, or why it has none."""
    doses = _doses(rounds)
    rests = [[process for process in _living(dose) if process.role == role] for dose in doses]
    if not all(dose.rested for dose in doses):
        return "the target did not come to rest between its doses"
    if not all(dose.units > 0 for dose in doses):
        return "a dose of the memory phase did no work"
    if len({dose.snapshot.backlog for dose in doses}) > 1:
        return OWED
    identities = [{(process.pid, process.started) for process in processes} for processes in rests]
    lives, stayed = set.union(*identities), set.intersection(*identities)
    if not stayed and len(lives) == 2 and all(len(each) == 1 for each in identities):
        before, after = next(iter(identities[0])), next(iter(identities[-1]))
        return f"its process changed from pid {before[0]} to {after[0]} between two doses"
    if len(stayed) < max(map(len, identities)) * LEAST_STAYED or not stayed:
        return COMES_AND_GOES
    metric = _metric([process for processes in rests for process in processes if _identity(process) in stayed], pages)
    if metric is None:
        return "it could not be read from outside, and no agent answered: run as the target's user or as root"
    values = [
        [sum(_reading(process, metric) for process in _living(dose) if _identity(process) in stayed) for dose in doses]
        for doses in rounds
    ]
    return Level(role, sorted(pid for pid, _ in stayed), metric, values, len(lives - stayed))


def _beside(level: Level, rounds: Sequence[Sequence[Dose]], pages: Metric) -> list[Level]:
    """What the role's own metric does not see, where it can be read at every rest."""
    beside = {OBJECTS: HEAP, HEAP: pages}.get(level.metric)
    if beside is None:
        return []
    values = [
        [sum(_reading(process, beside) for process in _living(dose) if process.pid in level.pids) for dose in doses]
        for doses in rounds
    ]
    if not all(value for values_of_round in values for value in values_of_round):
        return []
    return [Level(level.role, level.pids, beside, values)]


def _doses(rounds: Sequence[Sequence[Dose]]) -> list[Dose]:
    return [dose for doses in rounds for dose in doses]


def _living(dose: Dose) -> list[Process]:
    """A zombie has no memory."""
    return [process for process in dose.snapshot.processes if process.state != "Z"]


def _metric(readings: Sequence[Process], pages: Metric) -> Metric | None:
    """The quietest metric that every reading has. Under PYTHONMALLOC=malloc the number of blocks is always 0."""
    if all(process.agent is not None and process.agent.blocks > 0 for process in readings):
        return OBJECTS
    if all(process.memory.heap is not None for process in readings):
        return HEAP
    if all(process.memory.private_dirty > 0 and _reading(process, pages) > 0 for process in readings):
        return pages
    return None


def _reading(process: Process, metric: Metric) -> float:
    agent, memory = process.agent, process.memory
    if metric is OBJECTS:
        return agent.blocks if agent is not None else 0
    if metric is HEAP:
        return (agent.heap if agent is not None else 0) or memory.heap or 0
    return memory.anonymous if metric is ANONYMOUS else memory.private_dirty


def _identity(process: Process) -> tuple[int, int]:
    return process.pid, process.started


def _cumulative_work(rounds: Sequence[Sequence[Dose]]) -> list[list[float]]:
    total = 0.0
    work: list[list[float]] = []
    for doses in rounds:
        work.append([])
        for dose in doses:
            total += dose.units
            work[-1].append(total)
    return work


def _decide(level: Level, work: Sequence[Sequence[float]], alpha: float, roles: int) -> _Decision:
    """Round after round until one decides; `alpha` is this role's."""
    slopes: list[Slope] = []
    visible = 0.0
    for number, (done, values) in enumerate(zip(work, level.values, strict=True)):
        now = slope(done, values, level.metric.step)
        slopes.append(now)
        t_leak = student_quantile(1 - alpha / 2 ** max(number, 1), now.freedom)
        visible = _visible(level.metric, done, now, t_leak + student_quantile(POWER, now.freedom))
        if now.per_unit + student_quantile(CLEAN_LEVEL, now.freedom) * now.error < level.metric.least:
            return _Decision("clean", number, slopes, smallest_visible=visible)
        if number == 0:
            continue
        before = slopes[-2]
        unfaded = now.per_unit - KEPT * before.per_unit
        t = min(
            (now.per_unit - level.metric.least) / now.error,
            unfaded / math.hypot(now.error, KEPT * before.error),
        )
        by_chance, by_chance_before = (_error_of_pages(level, work, at) for at in (number, number - 1))
        sure = min(
            now.per_unit - level.metric.least - PAGES_SURE * by_chance,
            unfaded - PAGES_SURE * math.hypot(by_chance, KEPT * by_chance_before),
        )
        rest = slope(done, without_largest_step(values), level.metric.step)
        if t > t_leak and sure > 0 and rest.per_unit >= KEPT_WITHOUT_STEP * now.per_unit:
            chance = min(1.0, student_tail(t, now.freedom) * 2**number * roles)
            return _Decision("leak", number, slopes, chance, visible)
    surely = now.per_unit - student_quantile(CLEAN_LEVEL, now.freedom) * now.error
    return _Decision(
        "inconclusive",
        len(slopes) - 1,
        slopes,
        smallest_visible=visible,
        suspected=surely > level.metric.least,
    )


def _error_of_pages(level: Level, work: Sequence[Sequence[float]], number: int) -> float:
    """The standard error of a round's slope, if its new pages came by chance; 0 for what does not come in pages."""
    if level.metric not in IN_PAGES:
        return 0.0
    done, values = work[number], level.values[number]
    pages = max(0.0, values[-1] - values[0]) / level.metric.step
    return level.metric.step * math.sqrt(pages) / (done[-1] - done[0])


def _visible(metric: Metric, done: Sequence[float], found: Slope, quantiles: float) -> float:
    """The smallest growth that is `quantiles` standard errors above the least that matters, and sure by its pages."""
    visible = metric.least + quantiles * found.error
    if metric not in IN_PAGES:
        return visible
    # v - least = surely * sqrt(v * step / work), solved for sqrt(v).
    surely = (PAGES_SURE + POWER_SURE) * math.sqrt(metric.step / (done[-1] - done[0]))
    return max(visible, ((surely + math.sqrt(surely**2 + 4 * metric.least)) / 2) ** 2)


def _interval(last: Slope) -> tuple[float, float]:
    half = student_quantile(0.975, last.freedom) * last.error
    return last.per_unit - half, last.per_unit + half


def _tested(record: RunRecord, level: Level, decision: _Decision, work: Sequence[Sequence[float]]) -> Tested:
    last = decision.slopes[-1]
    low, high = _interval(last)
    unit, metric = record.judgement.unit, level.metric
    reason = ""
    if level.passing:
        reason = f"judged by the {len(level.pids)} of its processes that stayed; {level.passing} came or went"
    if decision.verdict == "inconclusive":
        reason = (
            f"after {work[-1][-1]:.0f} {wording.plural(unit)} it grows by {low:.3g} to {high:.3g} {metric.noun} "
            f"for each; clean is proven below {metric.least:g}: give it more work (--profile standard or soak)"
        )
    return Tested(
        resource="memory",
        label=level.metric.label,
        role=level.role,
        metric=metric.name,
        verdict=decision.verdict,
        unit=unit,
        rate=last.per_unit,
        low=low,
        high=high,
        smallest_visible=decision.smallest_visible,
        reason=reason,
    )


def _finding(record: RunRecord, rounds: Sequence[Sequence[Dose]], level: Level, decision: _Decision) -> Finding:
    """The proof goes round by round: units of work, and the rise of the level from its first rest to its last."""
    judged = range(decision.round + 1)
    last = decision.slopes[-1]
    low, high = _interval(last)
    unit, noun = record.judgement.unit, level.metric.noun
    by_round = ", ".join(f"{decision.slopes[number].per_unit:.3g} in round {number + 1}" for number in judged)
    first = next(index for index, dose in enumerate(record.doses) if dose is rounds[0][0])
    is_python = any(process.agent and process.role == level.role for process in _living(rounds[0][0]))
    return Finding(
        resource="memory",
        kind=level.metric.name,
        label=level.metric.label,
        role=level.role,
        pids=level.pids,
        count=round(level.values[decision.round][-1] - level.values[0][0]),
        unit=unit,
        rate=last.per_unit,
        low=low,
        high=high,
        confidence=1 - decision.chance,
        first_dose=first,
        dose_units=[sum(dose.units for dose in rounds[number][1:]) for number in judged],
        survivors=[round(level.values[number][-1] - level.values[number][0]) for number in judged],
        message=f"{level.role} grows by {last.per_unit:.3g} {noun} for each {unit}, and it does not fade: {by_round}",
        advice=_advice(level, unit, is_python),
    )


def _advice(level: Level, unit: str, is_python: bool) -> str:
    if is_python and level.metric is HEAP:
        return (
            f"Look for a buffer, string or foreign library's structure in {level.role} that grows with each {unit}: "
            "the number of Python objects does not grow."
        )
    how = "adds to a dictionary, list or cache" if is_python else "allocates"
    end = "takes out" if is_python else "frees"
    return (
        f"Look for what {level.role} {how} for each {unit} and never {end}; a descriptor or session that is kept, if "
        "one is reported too, keeps its memory with it."
    )
