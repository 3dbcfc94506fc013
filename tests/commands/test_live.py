"""What the page is told of a run."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path

import msgspec

from harness.commands.live import MOST_TIMES, Live, seen
from harness.load import board as boards
from harness.load.board import Board
from harness.probes.glance import Glance, glance
from reports.record import Dose, Finding, RunRecord, TargetInfo


def board(path: Path) -> Board:
    return msgspec.json.decode(boards.read(path), type=Board)


def test_a_glance_counts_what_the_kernel_shows() -> None:
    with socket.socket(), socket.socket():
        (now,) = glance([os.getpid()])
        with socket.socket(), Path("/dev/null").open():
            (then,) = glance([os.getpid()])
    assert (then.descriptors - now.descriptors, then.sockets - now.sockets) == (2, 1)
    assert now.pid == os.getpid()
    assert now.rss > 1 << 20


def test_a_glance_at_who_is_gone_or_is_a_zombie_is_none() -> None:
    ended = subprocess.Popen(["true"])
    time.sleep(0.1)
    assert glance([ended.pid]) == []
    ended.wait()
    assert glance([ended.pid]) == []


def test_the_board_follows_the_run_and_tells_the_verdict(tmp_path: Path) -> None:
    path = tmp_path / "live.json"
    told: list[str] = []
    shown: list[tuple[str, int, int]] = []
    record = RunRecord("accepted", TargetInfo("embedded", "0.1.0", ["transfer-fd-leak"]))
    with Live(path, lambda *what: shown.append(what), told.append) as live:
        live.progress("starting", 0, 300)
        assert board(path).doing == "starting"
        live.began(record, lambda: [os.getpid()], "http://127.0.0.1:1/seatbelt")
        record.doses.append(Dose(units=20, began=1.0, ended=1.5, drained_s=0.25))
        live.rested(record)
        live.progress("dose: 40 x message", 20, 300)
        deadline = time.monotonic() + 10
        while not board(path).times:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        now = board(path)
        assert (now.scenario, now.target) == ("accepted", "embedded 0.1.0 with transfer-fd-leak")
        assert (now.doing, now.done, now.planned) == ("dose: 40 x message", 20, 300)
        assert [(line.pid, len(line.rss)) for line in now.processes] == [(os.getpid(), len(now.times))]
        assert [(dose.units, dose.load_s, dose.drained_s) for dose in now.doses] == [(20, 0.5, 0.25)]
        assert now.verdict is None
        record.verdict, record.reasons = "inconclusive", ["one dose was judged"]
        live.ended(record, tmp_path / "record.json")
    assert told == ["http://127.0.0.1:1/seatbelt"]
    assert shown == [("starting", 0, 300), ("dose: 40 x message", 20, 300)]
    last = board(path)
    assert (last.verdict, last.reasons) == ("inconclusive", ["one dose was judged"])
    assert last.headline.startswith("INCONCLUSIVE")
    assert last.record == str(tmp_path / "record.json")


def test_nobody_looks_without_a_board(tmp_path: Path) -> None:
    record = RunRecord("accepted", TargetInfo("embedded"))
    with Live(None, lambda *_: None) as live:
        live.began(record, lambda: [os.getpid()], "")
        live.rested(record)  # of no dose: it must not even look
        live.ended(record, tmp_path / "record.json")
    assert list(tmp_path.iterdir()) == []


def test_the_readings_of_a_long_run_stay_few_and_the_newest_is_always_there(tmp_path: Path) -> None:
    live = Live(tmp_path / "live.json", lambda *_: None)
    for number in range(5 * MOST_TIMES):
        there = [Glance(1, "parent", number, 0, 0)]
        if number >= 400:
            there.append(Glance(2, "late", 7, 0, 0))
        live._add(float(number), there)
        assert live._board.times[-1] == number
        assert len(live._board.times) <= MOST_TIMES
    parent, late = live._board.processes
    assert parent.descriptors == live._board.times, "each reading stands at its time"
    assert len(late.descriptors) == len(live._board.times)
    assert {value for at, value in zip(live._board.times, late.descriptors, strict=True) if at < 400} == {None}
    live._add(9e8, [])  # stopped
    assert live._board.processes
    live._add(9e9, [Glance(2, "late", 7, 0, 0)])
    assert [line.pid for line in live._board.processes] == [2], "who is gone is gone"


def test_a_finding_is_told_with_its_rate() -> None:
    finding = Finding("descriptor", "file", "message file", "transfer", unit="message", rate=0.5, low=0.4, high=0.6)
    finding.message, finding.first_dose = "transfer keeps one", 2
    told = seen(finding)
    assert told.title == "descriptor: message file in transfer"
    assert told.rate == "0.5 for each message (0.4 to 0.6)"
    assert told.first_dose == 3
    assert seen(Finding("process", "died", "smtpd")).rate == ""
