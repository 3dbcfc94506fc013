"""A long look at a live server: its doses are the connections that come, its history goes on where it ended."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.run.plan import Profile
from harness.run.soak import By, HistoryError, Soak
from harness.targets.attach import Attached
from reports.record import RunRecord, load, save
from tests.live import Live

COUNTS = Profile("counts", (1,), (1, 2, 4, 8), 0, stop_at_finding=True)
PAUSE_S = 0.005  # between two visits: whoever leaks one each time has 1,024 descriptors
NEVER = 10_000  # connections in a dose that is not reached


@contextmanager
def running(*arguments: str) -> Iterator[Live]:
    server = Live(*arguments)
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def visited(server: Live) -> Iterator[None]:
    """Somebody is always there, as on a live server."""
    over = threading.Event()

    def visits() -> None:
        while not over.wait(PAUSE_S):
            server.visit()

    visitor = threading.Thread(target=visits)
    visitor.start()
    try:
        yield
    finally:
        over.set()
        visitor.join()


def look(
    server: Live, history: Path, *, by: By = "connections", first_dose: int = 10, profile: Profile = COUNTS
) -> Soak:
    target = Attached(str(server.pid))
    return Soak(target, history, lambda *_: None, profile=profile, by=by, first_dose=first_dose, patience_s=0.2)


@pytest.mark.parametrize("leaks", [False, True])
def test_a_leak_is_found_by_the_connections_that_come_from_elsewhere(tmp_path: Path, leaks: bool) -> None:
    kept = tmp_path / "kept"
    kept.touch()
    with running(*(["--leak", str(kept)] if leaks else [])) as server, visited(server):
        record = look(server, tmp_path / "history.json").run()
    assert record.verdict == ("leak" if leaks else "clean")
    assert record.work.sessions >= 160
    assert load(tmp_path / "history.json").verdict == record.verdict
    if leaks:
        (finding,) = record.findings
        assert (finding.resource, finding.kind, finding.unit) == ("descriptor", "file", "accepted connection")
        assert 0.8 < finding.rate < 1.2
        assert str(kept) in finding.examples[0]


def test_a_process_that_listens_nowhere_is_judged_by_time(tmp_path: Path) -> None:
    with subprocess.Popen(["sh", "-c", "read line"], stdin=subprocess.PIPE) as shell:
        target = Attached(str(shell.pid))
        profile = Profile("counts", (1,), (1, 2), 0, stop_at_finding=True)
        soak = Soak(target, tmp_path / "history.json", lambda *_: None, profile=profile, by="time", first_dose=1)
        record = soak.run()
        shell.terminate()
    assert (record.verdict, record.judgement.unit) == ("clean", "second")
    assert [dose.units for dose in record.doses] == [1, 1, 2]


def stretch(server: Live, history: Path, doses: int) -> RunRecord:
    """A look that is ended by Ctrl-C after so many doses."""
    soak = look(server, history)

    def interrupt(text: str, done: int, planned: int) -> None:
        if len(soak.record.doses) >= doses:
            raise KeyboardInterrupt

    soak._progress = interrupt
    with visited(server):
        return soak.run()


def test_a_look_goes_on_where_another_ended_with_what_came_in_between(tmp_path: Path) -> None:
    history = tmp_path / "history.json"
    with running() as server:
        first = stretch(server, history, 2)
        assert first.verdict == "inconclusive"
        assert "stopped by hand in dose 3" in first.reasons[0]
        assert len(load(history).doses) == 2
        server.visit(100)  # while nobody looks
        with visited(server):
            soak = look(server, history)
            record = soak.run()
    assert soak.went_on
    assert (record.verdict, record.reasons) == ("clean", [])
    assert [dose.phase for dose in record.doses] == ["warm-up", "count", "count", "count", "count"]
    assert record.doses[2].units >= 100
    assert record.doses[2].began >= record.doses[1].snapshot.taken
    taken = [dose.snapshot.taken for dose in record.doses]
    assert taken == sorted(taken)


def test_the_history_of_another_process_is_kept_and_a_new_one_begun(tmp_path: Path) -> None:
    history = tmp_path / "history.json"
    with running() as server:
        stretch(server, history, 2)
    with running() as server:
        soak = look(server, history)
        assert not soak.went_on
        assert soak.record.doses == []
    assert len(load(tmp_path / "history.json.old").doses) == 2


def test_a_history_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    history = tmp_path / "history.json"
    with running() as server:
        stretch(server, history, 2)
        with pytest.raises(HistoryError, match="--by of 'accepted connection', not 'second'"):
            look(server, history, by="time")
        with pytest.raises(HistoryError, match="--profile of 'counts', not 'quick'"):
            look(server, history, profile=Profile("quick", (1,), (1, 2), 0, stop_at_finding=True))
        record = load(history)
        record.scenario = "accepted"
        save(record, history)
        with pytest.raises(HistoryError, match="not of a watch"):
            look(server, history)


def test_a_server_that_ends_ends_the_look_with_a_reason(tmp_path: Path) -> None:
    with running() as server:
        soak = look(server, tmp_path / "history.json", first_dose=NEVER)
        threading.Timer(0.3, server.process.terminate).start()
        record = soak.run()
    assert record.verdict == "inconclusive"
    assert "has ended in dose 1" in record.reasons[0]


def test_the_command_leaves_a_record_when_it_is_stopped(tmp_path: Path) -> None:
    history = tmp_path / "history.json"
    command = [sys.executable, "-m", "harness.cli", "watch"]
    with running() as server:
        argv = [*command, f":{server.port}", "--every", str(NEVER), "--history", str(history), "-v"]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watch:
            assert watch.stderr is not None
            told = [watch.stderr.readline() for _ in range(2)]
            watch.terminate()
            out, _ = watch.communicate(timeout=20)
    assert f"ports {server.port}, by the accepted connection" in told[0]
    assert watch.returncode == 3
    assert "stopped by hand in dose 1" in out
    assert load(history).scenario == "watch"


def test_a_typing_error_is_one_line_and_status_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "harness.cli", "watch", ":smtp"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr.strip()) == (2, "seatbelt: ':smtp' is no port; write it as :25")
    assert list(tmp_path.iterdir()) == []
