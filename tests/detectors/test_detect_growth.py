from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from detector_worlds import MEMORY_WORLDS, ROLES, cumulative, memory_record, noise
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.detectors import growth
from harness.detectors.slopes import slope, without_largest_step
from reports.record import Memory, RunRecord

UNITS = (50, 100, 200, 400, 800)
WORK = cumulative(UNITS)
RUNS = 60


def verdicts(world: str, leak: float, runs: int = RUNS) -> Counter[str]:
    """Verdicts over `runs` records of eight roles each, all in the same kind of world."""
    found: Counter[str] = Counter()
    for seed in range(runs):
        random = np.random.default_rng(seed)
        levels = {role: MEMORY_WORLDS[world](random, WORK) + leak * WORK for role in ROLES}
        found.update(each.verdict for each in growth.judge(memory_record(levels, UNITS)).tested)
    return found


@pytest.mark.parametrize("world", MEMORY_WORLDS)
def test_no_leak_is_reported_where_there_is_none_and_clean_is_proven(world: str) -> None:
    found = verdicts(world, 0)
    assert found["leak"] <= 2  # alpha / 2 = 0.005 a run: three in 60 runs would have a chance of 4 in 1000
    assert found["clean"] >= 0.97 * found.total()


@pytest.mark.parametrize("world", MEMORY_WORLDS)
def test_a_leak_of_256_bytes_is_found_in_every_world(world: str) -> None:
    found = verdicts(world, 256, 20)
    assert found["leak"] >= 0.97 * found.total()
    assert found["clean"] == 0


@pytest.mark.parametrize("world", sorted(set(MEMORY_WORLDS) - {"sawtooth"}))
def test_a_leak_of_64_bytes_is_found_in_most_worlds(world: str) -> None:
    found = verdicts(world, 64, 20)
    assert found["leak"] >= 0.9 * found.total()
    assert found["clean"] == 0


def objects(level: np.ndarray, units: tuple[int, ...], seed: int = 1) -> growth.Judged:
    """One role with the level, and one that rests, counted in Python objects."""
    random = np.random.default_rng(seed)
    levels = {
        "transfer": level + noise(random, len(level), scale=1.4),
        "queue": noise(random, len(level), scale=1.4),
    }
    return growth.judge(memory_record(levels, units, objects=True))


def by_role(judged: growth.Judged) -> dict[str, str]:
    return {each.role: each.verdict for each in judged.tested}


def test_an_object_kept_for_each_unit_is_named_with_its_rate() -> None:
    units = (20, 40)
    judged = objects(cumulative(units), units)
    assert by_role(judged) == {"transfer": "leak", "queue": "clean"}
    [finding] = judged.findings
    assert (finding.resource, finding.role, finding.kind) == ("memory", "transfer", "python objects")
    assert finding.low < 1.0 < finding.high
    assert finding.rate == pytest.approx(1.0, abs=0.02)
    assert finding.dose_units == [15 * 20, 15 * 40]
    assert finding.survivors == pytest.approx(finding.dose_units, abs=12)
    assert finding.confidence > 0.999
    assert judged.decided


def with_heap(objects_level: np.ndarray, heap: np.ndarray, units: tuple[int, ...], seed: int = 1) -> growth.Judged:
    """Two roles: `transfer` with these levels, `queue` at rest."""
    random = np.random.default_rng(seed)
    rest = np.zeros(len(heap))
    levels = {role: noise(random, len(heap), scale=1.4) for role in ("transfer", "queue")}
    heaps = {role: noise(random, len(heap), scale=200) for role in levels}
    levels["transfer"] = levels["transfer"] + objects_level + rest
    heaps["transfer"] = heaps["transfer"] + heap
    return growth.judge(memory_record(levels, units, objects=True, heaps=heaps))


def test_a_buffer_that_grows_without_an_object_is_found_by_the_heap() -> None:
    units = (20, 40, 80)
    judged = with_heap(np.zeros(48), cumulative(units) * 3000.0, units)
    [finding] = judged.findings
    assert (finding.role, finding.kind) == ("transfer", "heap")
    assert finding.low < 3000 < finding.high


def test_a_heap_that_seems_to_grow_asks_for_another_round() -> None:
    units = (20,)
    assert not with_heap(np.zeros(16), cumulative(units) * 3000.0, units).decided
    assert with_heap(np.zeros(16), np.zeros(16), units).decided


def test_objects_that_grow_are_one_finding_though_their_bytes_grow_too() -> None:
    units = (20, 40)
    work = cumulative(units)
    [finding] = with_heap(work * 1.0, work * 900.0, units).findings
    assert finding.kind == "python objects"


@pytest.mark.parametrize("world", MEMORY_WORLDS)
def test_no_heap_is_accused_where_there_is_no_leak(world: str) -> None:
    accused = 0
    for seed in range(RUNS):
        random = np.random.default_rng(seed)
        judged = with_heap(np.zeros(len(WORK)), MEMORY_WORLDS[world](random, WORK), UNITS, seed)
        accused += len(judged.findings)
        assert not judged.reasons  # that the heap is not proven still is nothing against the run
    assert accused <= 2


def test_the_first_round_alone_is_never_a_leak() -> None:
    judged = objects(5 * cumulative((20,)), (20,))
    assert by_role(judged)["transfer"] == "inconclusive"
    assert not judged.decided
    assert "give it more work" in judged.reasons[0]


@pytest.mark.parametrize("epoch", range(1, 16))
def test_one_step_in_a_round_that_was_reached_is_no_leak(epoch: int) -> None:
    """The first round grows enough to be undecided; then comes one step, and nothing after it."""
    units = (20, 40)
    work = cumulative(units)
    level = np.minimum(work, 320) * 0.5 + 400.0 * (np.arange(32) >= 16 + epoch)
    assert by_role(objects(level, units, seed=epoch))["transfer"] != "leak"


def test_growth_that_fades_as_the_dose_doubles_is_no_leak() -> None:
    units = (20, 40, 80, 160)
    assert by_role(objects(100 * np.log(cumulative(units)), units))["transfer"] != "leak"


def test_the_first_decision_stands() -> None:
    units = (20, 40, 80)
    level = np.maximum(cumulative(units) - 960, 0) * 3.0  # flat in the first two rounds
    assert by_role(objects(level, units))["transfer"] == "clean"


def test_objects_are_preferred_and_private_memory_is_the_last_resort() -> None:
    units = (20,)
    record = memory_record({"transfer": noise(np.random.default_rng(1), 16, scale=1.4)}, units, objects=True)
    assert [each.metric for each in growth.judge(record).tested] == ["python objects"]
    record.doses[7].snapshot.processes[0].agent = None
    assert [each.metric for each in growth.judge(record).tested] == ["private dirty"]


def test_a_restart_is_inconclusive_and_says_so() -> None:
    record = memory_record({"transfer": np.zeros(16)}, (20,), objects=True)
    record.doses[9].snapshot.processes[0].started += 1
    judged = growth.judge(record)
    assert by_role(judged) == {"transfer": "inconclusive"}
    assert "changed from pid 200" in judged.reasons[0]
    assert judged.decided  # no further round would help


def test_owed_mail_leaves_memory_unjudged_and_spoils_nothing() -> None:
    record = memory_record({"transfer": np.arange(16.0)}, (20,), objects=True)
    for index, dose in enumerate(record.doses):
        dose.snapshot.backlog = index
    judged = growth.judge(record)
    assert [each.reason for each in judged.tested] == [growth.OWED]
    assert judged.reasons == []
    assert judged.decided


def test_a_helper_that_comes_and_goes_is_not_judged_and_spoils_nothing() -> None:
    record = memory_record({"transfer": np.zeros(16), "bounce": np.zeros(16)}, (20,), objects=True)
    del record.doses[3].snapshot.processes[1]
    judged = growth.judge(record)
    assert by_role(judged) == {"transfer": "clean", "bounce": "inconclusive"}
    assert judged.reasons == []


@pytest.mark.parametrize("pages", [(3, 2, 7), (5, 3, 8), (2, 3, 6)])
def test_pages_that_come_by_chance_are_no_leak(pages: tuple[int, ...]) -> None:
    """Seen in Postfix's cleanup: few pages in a round, more in the next, and hardly any in the long run.

    By their slopes alone 31, 38 and 8 of 200 such series would be accused.
    """
    units = (20, 40, 80)
    for seed in range(120):
        random = np.random.default_rng(seed)
        level = np.zeros(48)
        for number, count in enumerate(pages):
            for at in random.integers(1, 16, count):
                level[16 * number + at :] += 4096
        (tested,) = growth.judge(memory_record({"cleanup": level}, units)).tested
        assert tested.verdict != "leak", seed


def prefork(leak: float, workers: int = 4) -> RunRecord:
    """Workers of one role that share the work, each of which keeps `leak` objects of every unit that it does."""
    random = np.random.default_rng(1)
    work = cumulative((50, 100))
    levels = {
        f"smtpd {number}": noise(random, len(work), scale=1.4) + leak * work / workers for number in range(workers)
    }
    record = memory_record(levels, (50, 100), objects=True)
    for dose in record.doses:
        for process in dose.snapshot.processes:
            process.role = "smtpd"
    return record


@pytest.mark.parametrize(("leak", "verdict"), [(0.0, "clean"), (1.0, "leak")])
def test_a_worker_that_comes_late_neither_fakes_nor_hides_what_its_role_keeps(leak: float, verdict: str) -> None:
    record = prefork(leak)
    for dose in record.doses[:10]:
        del dose.snapshot.processes[3]
    (tested,) = growth.judge(record).tested
    assert tested.verdict == verdict
    assert tested.rate == pytest.approx(leak * 3 / 4, abs=0.02)
    if verdict == "clean":
        assert "the 3 of its processes that stayed; 1 came or went" in tested.reason


def test_workers_that_recycle_are_not_judged_and_spoil_nothing() -> None:
    record = prefork(1.0)
    for number, dose in enumerate(record.doses):
        for index, process in enumerate(dose.snapshot.processes[1:]):
            process.started += (number + index) // 5
    judged = growth.judge(record)
    assert [each.reason for each in judged.tested] == [growth.COMES_AND_GOES]
    assert judged.reasons == []


@pytest.mark.parametrize(("leak", "verdict"), [(0.0, "clean"), (256.0, "leak")])
def test_a_parent_whose_children_end_is_judged_by_memory_that_does_not_depend_on_them(
    leak: float, verdict: str
) -> None:
    """Private memory of qpsmtpd's parent swings by 40 pages as its children come and go; anonymous memory is steady."""
    units = (50, 100, 200)
    random = np.random.default_rng(2)
    record = memory_record({"parent": noise(random, 48, scale=160_000), "child": np.zeros(48)}, units)
    for number, (dose, work) in enumerate(zip(record.doses, cumulative(units), strict=True)):
        parent, child = dose.snapshot.processes
        child.started += number // 4
        anonymous = 18_000_000 + int(leak * work) // 4096 * 4096
        parent.memory = Memory(private_dirty=parent.memory.private_dirty, anonymous=anonymous)
    (parent_tested,) = (each for each in growth.judge(record).tested if each.role == "parent")
    assert (parent_tested.metric, parent_tested.verdict) == ("anonymous", verdict)
    for dose in record.doses:
        dose.snapshot.processes[1].started = 1  # with children that stay, it is private memory again
    assert "private dirty" in {each.metric for each in growth.judge(record).tested if each.role == "parent"}


def test_memory_that_cannot_be_read_is_inconclusive() -> None:
    record = memory_record({"transfer": np.full(16, -25_000_000.0)}, (20,))
    assert "could not be read" in growth.judge(record).reasons[0]


def test_a_round_that_was_cut_short_is_left_out() -> None:
    units = (20, 40)
    record = memory_record({"transfer": cumulative(units)}, units, objects=True)
    del record.doses[-1]
    assert not growth.decided(record)
    assert growth.judge(record).findings == []


def test_without_rounds_memory_is_undecided_and_without_the_wish_it_is_not_judged() -> None:
    record = memory_record({}, ())
    assert not growth.decided(record)
    assert growth.judge(record).reasons
    record.judgement.memory = False
    assert growth.decided(record)
    assert growth.judge(record).reasons == []


def test_the_smallest_visible_growth_is_reported_most_times() -> None:
    """What a clean run says it would have shown is, as a leak, shown by the rounds that follow."""
    units = (20, 40, 80)
    work = cumulative(units)
    [visible] = [each.smallest_visible for each in objects(0 * work, units).tested if each.role == "transfer"]
    found = sum(by_role(objects(visible * work, units, seed))["transfer"] == "leak" for seed in range(40))
    assert found >= 32


@given(
    st.floats(-100, 100),
    st.lists(st.floats(-1e4, 1e4), min_size=16, max_size=16),
)
@settings(deadline=None)
def test_a_slope_added_to_a_series_is_found_in_its_fit(rate: float, level: list[float]) -> None:
    work = [20.0 * (index + 1) for index in range(16)]
    tilted = [value + rate * done for value, done in zip(level, work, strict=True)]
    fitted = slope(work, tilted, 1)
    assert fitted.error > 0
    if fitted.freedom == 14 == slope(work, level, 1).freedom:
        assert fitted.per_unit - slope(work, level, 1).per_unit == pytest.approx(rate, abs=1e-6)


def test_without_its_largest_step_a_staircase_of_one_is_flat() -> None:
    assert without_largest_step([5, 5, 5, 90, 90]) == [5, 5, 5, 5, 5]
