"""Ctrl-C, SIGTERM and SIGHUP at any moment of a start: a record, status 3, and no process."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from harness.interruption import Held, terminated_as_interrupted
from reports.record import RunRecord, load

SEATBELT = Path(sys.executable).with_name("seatbelt")
TIMEOUT_S = 60.0


class Run:
    """`seatbelt run`, just started; `mark` is in the environment of all that it starts."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.directory = directory
        self.mark = uuid.uuid4().hex
        self.process = subprocess.Popen(
            [SEATBELT, "run", *options],
            cwd=directory,
            env={**os.environ, "SEATBELT_TEST_MARK": self.mark},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # also where nohup runs the tests
        )

    def imports(self) -> bool:
        """It has begun to load what `seatbelt --help` does without."""
        return "msgspec" in Path(f"/proc/{self.process.pid}/maps").read_text()

    def has_directory(self) -> bool:
        return any(self.directory.glob("runs/*"))

    def has_process(self, words: str) -> bool:
        return self.child(words) is not None

    def child(self, words: str) -> psutil.Process | None:
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if words in " ".join(process.cmdline()):
                    return process
        return None

    def family(self) -> list[psutil.Process]:
        """All that came out of it and is alive: by their parents, or by what they have inherited."""
        found = []
        for process in psutil.process_iter():
            try:
                is_ours = self.process.pid in {process.pid, *(each.pid for each in process.parents())}
                if process.status() != psutil.STATUS_ZOMBIE and (is_ours or self._is_marked(process.pid)):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def _is_marked(self, pid: int) -> bool:
        try:
            return self.mark.encode() in Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False

    def interrupt(self, moment: Callable[[], bool], number: int) -> tuple[int, str, RunRecord]:
        """At the moment. Returns the exit status, what was printed, and the record that was left."""
        deadline = time.monotonic() + TIMEOUT_S
        loading: psutil.Process | None = None
        while not moment():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline, "the moment never comes"
            if loading is None and (loading := self.child("harness.load")) is not None:
                loading.suspend()  # the start, which needs it, does not end before the moment that is waited for
        family = self.family()
        self.process.send_signal(number)
        if loading is not None:
            loading.resume()
        printed, complaint = self.process.communicate(timeout=TIMEOUT_S)
        _, alive = psutil.wait_procs(family, timeout=5)
        assert alive == []
        assert self.family() == [], "something was left running"
        (path,) = self.directory.glob("runs/*/record.json")
        return self.process.returncode, printed + complaint, load(path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    "moment",
    [
        Run.imports,  # before it knows what is to be run
        Run.has_directory,
        lambda run: run.has_process("harness.load"),
        lambda run: run.has_process("harness.remote_mx"),
        lambda run: run.has_process("mta_under_test"),
        lambda run: run.has_process("smtpd: transfer"),
    ],
    ids=["at once", "directory", "load", "remote MX", "target", "target's last process"],
)
def test_an_interrupt_while_starting_leaves_a_record_and_no_process(
    tmp_path: Path, moment: Callable[[Run], bool], number: int
) -> None:
    run = Run(tmp_path, "--html", "report.html", "--junit", "report.xml", "--markdown", "report.md")
    status, said, record = run.interrupt(lambda: moment(run), number)
    assert status == 3, said
    assert (record.verdict, record.findings, record.doses) == ("inconclusive", [], [])
    assert [(each.kind, each.text) for each in record.incidents] == [("interrupted", "interrupted while starting")]
    assert record.reasons[0] == "interrupted while starting"
    assert not any("promises" in reason for reason in record.reasons), "nobody had the time to keep one"
    assert (record.scenario, record.target.name) == ("rejected-reuse", "embedded")
    assert record.command == ("seatbelt run --html report.html --junit report.xml --markdown report.md --seed 1")
    assert "INCONCLUSIVE" in said
    assert "Traceback" not in said
    assert all((tmp_path / f"report.{kind}").exists() for kind in ("html", "xml", "md"))


def test_what_is_held_comes_afterwards_or_when_it_is_released() -> None:
    done = []

    def hold(*, release: bool) -> None:
        with terminated_as_interrupted(), Held() as held:
            signal.raise_signal(signal.SIGTERM)
            done.append("begun")
            if release:
                held.release()
            done.append("ended")

    with pytest.raises(KeyboardInterrupt):
        hold(release=False)
    assert done == ["begun", "ended"]
    with pytest.raises(KeyboardInterrupt):
        hold(release=True)
    assert done == ["begun", "ended", "begun"]


def test_a_hangup_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with terminated_as_interrupted(), Held():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_error_is_told_instead_of_what_is_held() -> None:
    def fail() -> None:
        with terminated_as_interrupted(), Held():
            signal.raise_signal(signal.SIGINT)
            raise ValueError("wrong")

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="wrong"):
        fail()
    assert signal.getsignal(signal.SIGTERM) == before
