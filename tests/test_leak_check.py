"""Doses that a caller gives: what is kept is found, and a target that ends or does not rest is no silent success."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.leak_check import LeakCheck, watched
from harness.run.plan import Profile
from harness.targets import TargetError
from tests.live import Live

COUNTS = Profile("counts", (1,), (1, 2, 4, 8), 0, stop_at_finding=True)


@pytest.fixture
def live(request: pytest.FixtureRequest) -> Iterator[Live]:
    server = Live(*getattr(request, "param", ()))
    yield server
    server.stop()


@pytest.mark.parametrize(("live", "verdict"), [((), "clean"), (("--leak", __file__), "leak")], indirect=["live"])
def test_what_a_server_keeps_of_each_visit_is_found(live: Live, verdict: str) -> None:
    check = LeakCheck(watched(live.process), "visits", unit="visit", profile=COUNTS, first_dose=5)
    assert [live.visit(units) or units for units in check.doses()] == [5, 5, 10, 20, 40]
    assert check.record.verdict == verdict
    assert check.record.samples.rows
    assert [finding.count for finding in check.record.findings] == ([75] if verdict == "leak" else [])


def test_a_server_that_ends_is_a_finding_and_ends_the_doses(live: Live) -> None:
    check = LeakCheck(watched(live.pid), "visits", profile=COUNTS, first_dose=5)
    given = []
    for units in check.doses():
        given.append(units)
        live.visit(units)
        if len(given) == 3:
            live.stop()
    assert given == [5, 5, 10]
    assert check.record.verdict == "leak"
    assert "has ended" in check.record.findings[0].message


def test_what_does_not_come_to_rest_is_a_finding() -> None:
    check = LeakCheck(watched(None), "restless", profile=COUNTS, first_dose=1, rest_timeout_s=1.0)
    over = threading.Event()

    def opens_more_and_more() -> None:
        held: list[int] = []
        while not over.wait(0.004):
            held.append(os.open(os.devnull, os.O_RDONLY))
        for descriptor in held:
            os.close(descriptor)

    thread = threading.Thread(target=opens_more_and_more)
    thread.start()
    try:
        for _ in check.doses():
            pass
    finally:
        over.set()
        thread.join()
    assert check.record.verdict == "leak"
    assert check.record.findings[0].kind == "restless"
    assert len(check.record.doses) == 1, "there is no other after it"


def test_a_check_that_is_left_early_is_not_judged() -> None:
    check = LeakCheck(watched(os.getpid()), "left", profile=COUNTS)
    for _ in check.doses():
        break
    assert not check.is_judged
    assert check.record.verdict == "inconclusive"


@pytest.mark.parametrize("live", [("--leak", __file__)], indirect=True)
def test_a_trace_that_cannot_be_read_costs_no_finding(live: Live, tmp_path: Path) -> None:
    (tmp_path / f"{live.pid}.trace").write_text("half of")
    check = LeakCheck(watched(live.process, tmp_path), "visits", profile=COUNTS, first_dose=5, traced=True)
    for units in check.doses():
        live.visit(units)
    assert check.record.verdict == "leak"
    assert check.record.attribution.startswith("where it was made cannot be told: ")


def test_what_can_be_watched_and_what_cannot(tmp_path: Path) -> None:
    assert watched(None).root_pid == watched(os.getpid()).root_pid == os.getpid()
    with pytest.raises(TypeError, match=r"of a process with \.pid"):
        watched(tmp_path)
    with pytest.raises(TargetError, match="no process with pid"):
        watched(2**22)
    with pytest.raises(ValueError, match="at least 1"):
        LeakCheck(watched(None), "none", first_dose=0)
