"""The servers that are described come up, do a run's work and leave nothing behind; what is kept in one is found."""

from __future__ import annotations

from pathlib import Path

import psutil

from harness import scenario as scenarios
from harness.experiment import Experiment, Options
from harness.plan import Profile
from harness.targets import description
from harness.targets.choice import Settings, choose
from reports.record import RunRecord
from tests.debian import unpacked

COUNTS = Profile("counts", (1,), (1, 2, 4, 8), 0, stop_at_count_finding=True)


def run(server: str, scenario: str, directory: Path, profile: Profile = COUNTS, **options: int) -> RunRecord:
    chosen = scenarios.load(scenario)
    make = choose(None, Settings(server=server, relays=chosen.relays, needs=chosen.needs))
    before = set(psutil.Process().children(recursive=True))
    record = Experiment(chosen, make, directory, Options(profile=profile, **options), lambda *_: None).run()
    assert not set(psutil.Process().children(recursive=True)) - before
    return record


def test_aiosmtpd_is_clean(tmp_path: Path) -> None:
    record = run("aiosmtpd", "connect-quit", tmp_path)
    assert (record.verdict, record.reasons, record.findings) == ("clean", [], [])
    assert record.target.name == "aiosmtpd"
    assert record.target.version[0].isdigit()
    (process,) = record.doses[-1].snapshot.processes
    assert process.role == "aiosmtpd"
    assert process.agent is not None
    assert process.agent.blocks > 10_000


def test_qpsmtpd_is_clean_though_its_children_end(tmp_path: Path) -> None:
    server = description.load("qpsmtpd")
    unpacked(*server.debian)
    record = run("qpsmtpd", "connect-quit", tmp_path, units=25)
    assert (record.verdict, record.reasons, record.findings) == ("clean", [], [])
    pids = {p.pid: p.role for dose in record.doses for p in dose.snapshot.processes}
    assert set(pids.values()) == {"shell", "parent", "child"}
    assert len(record.doses[-1].snapshot.processes) < len(pids), "children have ended after a hundred clients"
