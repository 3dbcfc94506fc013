"""`seatbelt ab`: two builds of one server, and the commit that made it leak found by `git bisect run`."""

from __future__ import annotations

import errno
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

from harness.cli import app
from harness.commands.ab import BAD, GOOD, SKIP, difference
from harness.run.experiment import Experiment
from reports.record import Dose, Finding, Process, RunRecord, Snapshot, TargetInfo, Verdict
from reports.record import Tested as Judged

GREETER = (Path(__file__).parents[1] / "servers" / "greeter.py").read_text()
LEAKING = GREETER.replace("    os.close(descriptor)", "    kept.append(descriptor)")
SEATBELT = f"{shlex.quote(sys.executable)} -m harness.cli"
GIT = ["git", "-c", "user.name=t", "-c", "user.email=t@t.test", "-c", "init.defaultBranch=main", "-c", "gc.auto=0"]
SCENARIO = """
from harness.scenario import Scenario, SessionPlan
from harness.steps import EHLO, GREETING
from reports.record import Promise

SCENARIO = Scenario(
    name="hello",
    story="A greeting and EHLO.",
    unit="session",
    session=lambda random, units: SessionPlan(steps=(GREETING, EHLO)),
    units_per_session=1,
    first_dose=6,
    memory=False,
    promises=(Promise("sessions", 90),),
)
"""
PIPE = Finding("descriptor", "pipe", "pipe", "smtp", rate=1.0, low=0.9, high=1.1, message="smtp keeps pipes")
OBJECTS = Finding("memory", "python objects", "Python objects", "smtp", rate=2.0, low=1.9, high=2.1)


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "hello.py"
    path.write_text(SCENARIO)
    return path


def record(verdict: Verdict, *findings: Finding, tested: tuple[Judged, ...] = ()) -> RunRecord:
    made = RunRecord("hello", TargetInfo("command"), verdict=verdict, findings=list(findings), tested=list(tested))
    made.reasons = ["it saw too little"] if verdict == "inconclusive" else []
    return made


# ---- what two records come to

CLEAN_PIPE = Judged("descriptor", "pipe", "smtp", "survivors", "clean")
CLEAN_MEMORY = Judged("memory", "Python objects", "smtp", "Python objects", "clean")


@pytest.mark.parametrize(
    ("a", "b", "status"),
    [
        (record("clean"), record("clean"), GOOD),
        (record("clean"), record("leak", PIPE), BAD),
        (record("leak", PIPE), record("leak", PIPE), GOOD),
        (record("leak", PIPE), record("clean"), GOOD),
        (record("clean"), record("inconclusive"), SKIP),
        (record("inconclusive"), record("clean"), GOOD),
        (record("inconclusive"), record("leak", PIPE), SKIP),  # a may have it too
        (record("inconclusive", tested=(CLEAN_PIPE,)), record("leak", PIPE), BAD),
        (record("leak", PIPE), record("leak", OBJECTS), SKIP),  # a's memory was not judged
        (record("leak", PIPE, tested=(CLEAN_MEMORY,)), record("leak", OBJECTS), BAD),
    ],
)
def test_good_bad_or_not_to_be_told(a: RunRecord, b: RunRecord, status: int) -> None:
    assert difference(a, b).status == status


def test_two_programs_of_different_names_are_one_server() -> None:
    a, b = record("leak", PIPE), record("leak", PIPE)
    for each, role in ((a, "server-1.0"), (b, "server-1.1")):
        each.findings = [replace(PIPE, role=role), replace(PIPE, role="worker")]
        processes = [Process(2, 0, "worker", ppid=1), Process(1, 0, role, ppid=0)]
        each.doses = [Dose(snapshot=Snapshot(processes=processes))]
    found = difference(a, b)
    assert [pair.change for pair in found.comparison.findings] == ["same", "same"]
    assert found.status == GOOD


# ---- real builds


def build(path: Path, text: str) -> str:
    path.write_text(text)
    return f"{{python}} {shlex.quote(str(path))} {{port}}"


def ab(scenario: Path, a: str, b: str, *options: str) -> tuple[int, str]:
    words = ["ab", str(scenario), "--a", a, "--b", b, "--runs", str(scenario.parent / "runs"), *options]
    result = CliRunner().invoke(app, words)
    return result.exit_code, result.output


def test_what_b_leaks_and_a_does_not(scenario: Path) -> None:
    tidy = build(scenario.with_name("tidy.py"), GREETER)
    leaking = build(scenario.with_name("leaking.py"), LEAKING)
    status, output = ab(scenario, tidy, leaking)
    assert status == 1, output
    assert output.startswith("BAD: hello on command, b against a\nnew ")
    (a,) = scenario.parent.glob("runs/*/a/record.json")
    (b,) = scenario.parent.glob("runs/*/b/record.json")
    status, output = ab(scenario, str(b), str(a))
    assert status == 0, output
    assert output.startswith("GOOD: hello on command, b against a\ngone ")
    status, output = ab(scenario, str(b), leaking, "-q")
    assert (status, output) == (0, "GOOD: hello on command, b against a\n")
    assert ab(scenario, str(a), leaking, "--seed", "2") == (128, f"seatbelt: {a}: its seed was 1, here it would be 2\n")


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        ("embedded", "embedded --defect teapot", "no defect"),
        ("embedded", "embedded --color", "--defect NAME"),
        ("embedded", "./server {port}", "two targets"),
        ("./server {port}", "./server", "has no {port}"),
        ("", "embedded", "without a name"),
        ("none.json", "embedded", "none.json"),
    ],
)
def test_bad_input_is_one_clear_line_and_ends_a_bisection(scenario: Path, a: str, b: str, said: str) -> None:
    status, output = ab(scenario, a, b)
    assert status == 128
    assert said in output
    assert len(output.splitlines()) == 1


def test_of_a_full_disk_no_build_is_guilty(scenario: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(self: Experiment) -> RunRecord:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Experiment, "run", run)
    status, output = ab(scenario, "./server {port}", "./server {port}")
    assert (status, output) == (128, "seatbelt: [Errno 28] No space left on device\n")


def test_a_wrong_option_is_no_bad_commit() -> None:
    done = subprocess.run([*shlex.split(SEATBELT), "ab", "--speed", "9"], capture_output=True, check=False)
    assert done.returncode == 128


def test_git_bisect_run_finds_the_guilty_commit(scenario: Path, tmp_path: Path) -> None:
    """Of seven commits the sixth leaks; the fourth, which is tried first, does not start and is skipped."""
    repository = tmp_path / "server"
    repository.mkdir()

    def git(*words: str) -> str:
        done = subprocess.run([*GIT, *words], cwd=repository, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    git("init", "-q")
    commits = []
    for number, text in enumerate([GREETER, GREETER, GREETER, "def (", GREETER, LEAKING, LEAKING]):
        (repository / "server.py").write_text(f"{text}# {number}\n")
        git("add", "server.py")
        git("commit", "-q", "-m", f"change {number}")
        commits.append(git("rev-parse", "HEAD").strip())
    git("worktree", "add", "-q", str(tmp_path / "good"), commits[0])
    good = tmp_path / "good.json"
    words = [
        "run",
        str(scenario),
        "--command",
        f"{{python}} {shlex.quote(str(tmp_path / 'good' / 'server.py'))} {{port}}",
    ]
    clean = CliRunner().invoke(app, [*words, "--record", str(good), "--runs", str(tmp_path / "runs"), "-q"])
    assert clean.exit_code == 0, clean.output
    b = "{python} server.py {port}"
    git("bisect", "start", commits[-1], commits[0])
    runs = shlex.quote(str(tmp_path / "runs"))
    judged = git("bisect", "run", "sh", "-c", f"{SEATBELT} ab {scenario} --a {good} --b {shlex.quote(b)} --runs {runs}")
    assert f"{commits[5]} is the first bad commit" in judged
    assert "SKIP: b does not start" in judged
