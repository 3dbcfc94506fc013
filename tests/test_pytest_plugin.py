"""The pytest plugin as another project uses it: real pytests of their own, whose endings and words are looked at."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import pytest_plugin
from reports.record import load

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "pytest-project"
FEW = """
from harness.scenario import Message, Scenario, SessionPlan

def session(random, units):
    return SessionPlan(tuple(Message("a@sender.test", ("b@refused.test",)) for _ in range(units)))

SCENARIO = Scenario(name="few", story="A few messages.", unit="refused message", session=session,
                    units_per_session=10, first_dose=10, refuses="rcpt=550",
                    hold_backlog=True, memory=False)
"""
Pytest = Callable[..., subprocess.CompletedProcess[str]]


def run(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "CI"))}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
        cwd=directory, env={**inherited, "COLUMNS": "200"}, capture_output=True, text=True, timeout=170, check=False,
    )  # fmt: skip


@pytest.fixture
def pytest_of(tmp_path: Path) -> Pytest:
    """Run a file of tests in a project of its own."""

    def of(tests: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "few.py").write_text(FEW)
        (tmp_path / "test_it.py").write_text("import os, smtplib, pytest\n" + tests)
        return run(tmp_path, *arguments)

    return of


def test_a_sample_project_is_told_right_in_parallel(tmp_path: Path) -> None:
    reports = tmp_path / "reports"
    done = run(EXAMPLE, "--seatbelt-trace", "--seatbelt-report", str(reports))
    assert done.returncode == 1, done.stdout
    assert re.search(r"^=+ 1 failed, 1 passed in ", done.stdout, re.MULTILINE), done.stdout
    assert "2 workers" in done.stdout
    assert re.search(
        r"^LEAK: tiny_smtp\.py keeps 1 file .* open for each refused message: 300 of 300$", done.stdout, re.MULTILINE
    )
    assert re.search(r"^ +opened at +\S*mkstemp|^.*tiny_smtp\.py:\d+ in mail", done.stdout, re.MULTILINE)
    assert "Traceback" not in done.stdout
    assert "harness/" not in done.stdout
    assert {path.suffix for path in reports.iterdir()} == {".json", ".html", ".xml"}
    verdicts = {path.name: load(path).verdict for path in reports.glob("*.json")}
    assert verdicts == {
        "tests-test_leaks.py-test_an_accepted_message_leaves_nothing.json": "clean",
        "tests-test_leaks.py-test_a_refused_message_leaves_nothing.json": "leak",
    }


def test_what_a_function_keeps_in_the_test_s_own_process_is_found(pytest_of: Pytest) -> None:
    done = pytest_of('''
kept = []
def test_nothing(leak_check):
    assert leak_check(lambda: os.close(os.open("/dev/null", os.O_RDONLY)), first_dose=5).verdict == "clean"
def test_a_descriptor(leak_check):
    leak_check(lambda: kept.append(os.open("/dev/null", os.O_RDONLY)), unit="letter", first_dose=5, memory=False)
def test_an_object(leak_check):
    leak_check(lambda: kept.append([1]), first_dose=5)
def test_a_known_leak(leak_check):
    record = leak_check(lambda: kept.append(os.open("/dev/null", os.O_RDONLY)), first_dose=5, verdict="leak")
    assert record.findings[0].count == 75
def test_that_leaves_early(leak_check):
    for turn in leak_check.turns():
        if turn == 7:
            break
def test_of_a_profile_that_there_is_not(leak_check):
    leak_check(print, profile="long")
def test_that_fails_by_itself(leak_check):
    for turn in leak_check.turns():
        assert turn < 7
''', "-v")  # fmt: skip
    ended = dict(re.findall(r"^test_it.py::(\w+) (PASSED|FAILED|ERROR)", done.stdout, re.MULTILINE))
    assert ended.pop("test_nothing") == ended.pop("test_a_known_leak") == "PASSED", done.stdout
    assert set(ended.values()) == {"FAILED"}
    assert re.search("LEAK: .* keeps 1 device /dev/null open for each letter: 75 of 75", done.stdout)
    assert re.search(r"LEAK: .* grows by 2(\.0\d)? Python objects for each call", done.stdout), done.stdout
    assert "a leak check ended before its last dose, so there is no verdict" in done.stdout
    assert "assert 7 < 7" in done.stdout
    assert "no profile called 'long'; there is quick" in done.stdout
    assert "harness/" not in done.stdout


def test_a_marked_test_is_a_run_with_the_verdict_that_it_asks_for(pytest_of: Pytest) -> None:
    done = pytest_of('''
@pytest.mark.leakcheck(scenario="few.py")
def test_clean(leak_record):
    assert leak_record.work.refused_messages >= 150
@pytest.mark.leakcheck(scenario="few.py", defect="transfer-fd-leak")
def test_leak():
    pass
@pytest.mark.leakcheck(scenario="none")
def test_no_such_scenario():
    pass
''', "-v")  # fmt: skip
    ended = dict(re.findall(r"^test_it.py::(\w+) (PASSED|FAILED|ERROR)", done.stdout, re.MULTILINE))
    assert ended == {
        "test_clean": "PASSED",
        "test_leak": "FAILED",
        "test_no_such_scenario": "ERROR",
    }, done.stdout
    assert re.search(
        r"^LEAK: transfer keeps 1 message file \(deleted\) open for each refused message", done.stdout, re.M
    )
    assert "disk.py:" in done.stdout
    assert re.search("^no scenario called 'none'", done.stdout, re.MULTILINE)
    assert "Traceback" not in done.stdout
    assert "During handling" not in done.stdout


def test_of_a_test_with_parameters_only_those_that_are_marked_are_runs(pytest_of: Pytest) -> None:
    done = pytest_of('''
@pytest.mark.parametrize("number", [1, pytest.param(2, marks=pytest.mark.leakcheck(scenario="few.py")), 3])
def test_it(number):
    pass
''', "--setup-plan")  # fmt: skip
    planned = re.findall(r"test_it\.py::test_it\[(\d)\] \(fixtures used: (.*)\)", done.stdout)
    assert planned == [("1", "number"), ("2", "leak_record, number"), ("3", "number")], done.stdout


def test_a_mail_server_and_a_remote_mx_are_there_for_the_asking(pytest_of: Pytest) -> None:
    done = pytest_of('''
def send(address):
    with smtplib.SMTP(*address, local_hostname="here.test", timeout=20) as client:
        client.sendmail("a@sender.test", "b@refused.test", "Message-ID: <1@here.test>\\r\\n\\r\\nhello\\r\\n")

def test_them(mta, remote_mx, leak_check):
    leak_check(lambda: send(mta.address), of=mta, unit="message", first_dose=5, memory=False)
    assert remote_mx.seen.accepted == 85
    assert mta.counters()["smtp.session"] == 0
    mta.smtpctl("pause", "mta")
    remote_mx.policy = "rcpt=550"
    send(mta.address)
    assert "b@refused.test" in mta.smtpctl("show", "queue")
    mta.smtpctl("resume", "mta")
    assert mta.directory.is_dir()

@pytest.mark.leakcheck(target="postfix", defect="transfer-fd-leak")
def test_what_a_target_cannot_have(target):
    pass

def test_a_target_of_the_project_s_choice(target):
    assert target.name == "embedded"
''', "-o", "seatbelt_target=embedded", "-v")  # fmt: skip
    ended = dict(re.findall(r"^test_it.py::(\w+) (PASSED|FAILED|ERROR)", done.stdout, re.MULTILINE))
    assert ended == {
        "test_them": "PASSED",
        "test_what_a_target_cannot_have": "ERROR",
        "test_a_target_of_the_project_s_choice": "PASSED",
    }, done.stdout
    assert "--defect re-opens bugs of the embedded target; postfix has its own" in done.stdout


def test_a_marker_names_a_described_server(pytest_of: Pytest) -> None:
    done = pytest_of("@pytest.mark.leakcheck(scenario='connect-quit', server='aiosmtp')\ndef test_it(): pass")
    assert "no server called 'aiosmtp'; did you mean aiosmtpd?" in done.stdout


def test_a_marker_that_says_what_none_knows_ends_the_session_with_one_line(pytest_of: Pytest) -> None:
    done = pytest_of("@pytest.mark.leakcheck(scenari='x')\ndef test_it(): pass")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert re.search("^ERROR: test_it.py::test_it: .*it knows scenario, target", done.stderr, re.MULTILINE)
    assert "Traceback" not in done.stdout + done.stderr


def test_a_pytest_that_does_not_use_it_imports_nothing_of_ours_but_the_plugin() -> None:
    script = f"import sys, pytest, {pytest_plugin.__name__}; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    ours = [name for name in done.stdout.split() if name.split(".")[0] in ("harness", "reports", "mta_under_test")]
    assert ours == ["harness", pytest_plugin.__name__]
    assert not {"msgspec", "psutil", "locust", "rich", "scipy", "jinja2"} & set(done.stdout.split())
