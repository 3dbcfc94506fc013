"""Exim as a target: Debian's own, unpacked, in places of its own. Its queue runs hand sessions on, and it goes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pytest

from harness import scenario as scenarios
from harness.remote_mx.process import RemoteMX
from harness.run.design import Design, Options
from harness.run.experiment import Experiment
from harness.run.plan import Profile
from harness.targets import TargetError
from harness.targets.choice import Settings, choose
from harness.targets.exim import Exim
from harness.targets.places import Program
from tests.probes.probed import until
from tests.targets.foreign import family_of, program_of, submit

COUNTS = Profile("counts", (1,), (1, 2, 4), 0, stop_at_finding=True)


@pytest.fixture
def program() -> Program:
    return program_of("exim4-daemon-light", "usr/sbin/exim4")


@pytest.fixture
def target(program: Program, tmp_path: Path, scratch: Path, mx: RemoteMX) -> Iterator[Exim]:
    exim = Exim(tmp_path, mx.ports, program=program)
    exim.start()
    yield exim
    exim.stop()


def test_one_session_is_handed_on_and_at_rest_only_the_daemon_is_there(target: Exim, mx: RemoteMX) -> None:
    mx.set_policy("refusing", "rcpt=550/2")
    for number in range(4):
        submit(target, f"{number}@sender.test", "x@accepted.test")
    until(lambda: not target.rest().busy and len(mx.ledger().bounced) == 2, "rest after mail")
    ledger, ours = mx.ledger(), {f"{number}@sender.test" for number in range(4)}
    assert set(ledger.bounced) | (ledger.delivered.keys() & ours) == ours
    assert (ledger.listeners["refusing"].sessions, ledger.listeners["refusing"].transactions) == (1, 4)
    assert [each.pid for each in family_of(target.root_pid)] == [target.root_pid]
    assert target.rest().backlog == 0
    assert target.version[0].isdigit()
    assert target.deaths() == []


def test_what_is_put_off_is_owed_until_it_is_hurried(target: Exim, mx: RemoteMX) -> None:
    mx.set_policy("refusing", "rcpt=450")
    submit(target, "late@sender.test", "x@refused.test")
    until(lambda: target.rest().backlog == 1 and not target.rest().busy, "the message waits for its next try")
    assert target.owed() == {"late@sender.test"}
    mx.set_policy("refusing", "")
    target.hurry()
    until(lambda: "late@sender.test" in mx.ledger().delivered, "the message is delivered")
    until(lambda: target.owed() == set(), "nothing is owed")


def test_a_daemon_that_dies_is_told(target: Exim) -> None:
    psutil.Process(target.root_pid).kill()
    until(lambda: target.deaths() != [], "its death shows")
    assert [(death.role, death.text) for death in target.deaths()] == [("exim4", "the daemon killed by SIGKILL")]


def test_it_stops_in_the_middle_of_a_queue_run_and_nothing_is_left(target: Exim, mx: RemoteMX, scratch: Path) -> None:
    mx.shut_gate("refusing")
    submit(target, "1@sender.test", "x@accepted.test")
    until(lambda: target.rest().busy and mx.open_sessions() == 1, "a queue run waits for a greeting")
    family = family_of(target.root_pid)
    target.stop()
    assert psutil.wait_procs(family, timeout=10)[1] == []
    until(lambda: mx.open_sessions() == 0, "its queue run has ended too")
    assert list(scratch.iterdir()) == []
    assert (target.directory / "mainlog").exists(), "its logs stay in the run's directory"
    assert target.deaths() == [], "somebody asked for it"
    target.stop()  # a second time is nothing


def test_only_an_exim_that_can_be_told_where_its_configuration_is_will_do(program: Program) -> None:
    with pytest.raises(TargetError, match="does not look for /var/lib/exim4"):
        choose("exim", Settings(binary=Path("/bin/true")))


def test_a_run_uses_its_sessions_again_and_is_clean(program: Program, tmp_path: Path, scratch: Path) -> None:
    scenario = replace(scenarios.load("rejected-reuse"), promises=())
    make, options = partial(Exim, program=program), Options(profile=COUNTS, units=5)
    record = Experiment(Design(scenario, make, tmp_path, options)).run()
    assert (record.verdict, record.reasons, record.findings) == ("clean", [], [])
    assert record.work.refused_messages == record.work.accepted == record.work.bounced == 40
    assert (record.work.sessions_out, record.work.messages_per_session_out) == (4, 10.0)
