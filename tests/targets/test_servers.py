"""The servers that are described come up, do a run's work and leave nothing behind; what is kept in one is found."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from harness import scenario as scenarios
from harness.run.attribution import run_and_explain
from harness.run.design import Design, Options
from harness.run.experiment import Experiment
from harness.run.plan import Profile
from harness.targets import description
from harness.targets.choice import Settings, choose
from reports.record import RunRecord
from tests.debian import unpacked

SERVERS = Path(__file__).parents[1] / "servers"
MEMORY = Profile("memory", (1,), (1, 2), 2, stop_at_finding=True)
EVEN = Profile("even", (1,), (1,) * 16, 0, stop_at_finding=True)
COUNTS = Profile("counts", (1,), (1, 2, 4, 8), 0, stop_at_finding=True)


def run(
    directory: Path, profile: Profile = COUNTS, units: int | None = None, *, explain: bool = False, **settings: str
) -> RunRecord:
    """Sessions without mail; `explain`: and where what is found began."""
    make = choose(None, Settings(**settings))  # type: ignore[arg-type]
    before = set(psutil.Process().children(recursive=True))
    design = Design(scenarios.load("connect-quit"), make, directory, Options(profile=profile, units=units))
    record = run_and_explain(design) if explain else Experiment(design).run()
    assert not set(psutil.Process().children(recursive=True)) - before
    return record


def test_aiosmtpd_is_clean(tmp_path: Path) -> None:
    record = run(tmp_path, server="aiosmtpd")
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
    record = run(tmp_path, units=25, server="qpsmtpd")
    assert (record.verdict, record.reasons, record.findings) == ("clean", [], [])
    pids = {p.pid: p.role for dose in record.doses for p in dose.snapshot.processes}
    assert set(pids.values()) == {"shell", "parent", "child"}
    assert len(record.doses[-1].snapshot.processes) < len(pids), "children have ended after a hundred clients"


def line_of(text: str) -> int:
    lines = (SERVERS / "aiosmtpd_keeps.py").read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


def described(directory: Path, what: str) -> str:
    path = directory / "keeps.toml"
    start = ["{python}", str(SERVERS / "aiosmtpd_keeps.py"), what, "{port}"]
    path.write_text(f"start = {start}\nstill_s = 0.1\n")
    return str(path)


def test_a_descriptor_that_a_patched_aiosmtpd_keeps_is_found_and_who_opened_it(tmp_path: Path) -> None:
    record = run(tmp_path, explain=True, server=described(tmp_path, "descriptor"))
    (finding,) = record.findings
    assert (finding.resource, finding.kind, finding.survivors) == ("descriptor", "file", [20, 40, 80, 160])
    assert f"aiosmtpd_keeps.py:{line_of('os.open')} in connection_made" in finding.opened_at[0]


def test_memory_that_a_patched_aiosmtpd_keeps_is_found_and_who_made_it(tmp_path: Path) -> None:
    record = run(tmp_path, MEMORY, explain=True, server=described(tmp_path, "memory"))
    (finding,) = record.findings
    assert (finding.resource, finding.kind) == ("memory", "python objects")
    assert any(f"aiosmtpd_keeps.py:{line_of('self.seen.append')}" in site for site in finding.opened_at)


@pytest.mark.parametrize(("keep", "verdict"), [("lazy", "clean"), ("all", "leak")])
def test_workers_that_recycle_neither_fake_a_leak_nor_hide_one(tmp_path: Path, keep: str, verdict: str) -> None:
    """Forty clients a life, some five in each dose: what a worker keeps is gone with it two doses out of sixteen."""
    server = f"{{python}} {SERVERS / 'prefork.py'} {{port}} --lives 40 --keep {keep}"
    record = run(tmp_path, EVEN, command=server)
    assert (record.verdict, record.reasons) == (verdict, [])
    workers = {p.pid for dose in record.doses for p in dose.snapshot.processes if p.role == "worker"}
    assert len(workers) > 7, "they have recycled"
    held = [len(p.descriptors) for p in record.doses[-1].snapshot.processes if p.role == "worker"]
    assert max(held) < 40 + 8, "no more than a life's"
    if keep == "all":
        (finding,) = record.findings
        assert (finding.role, finding.kind) == ("worker", "file")
        assert finding.rate > 0.5
