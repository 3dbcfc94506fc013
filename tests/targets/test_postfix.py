"""Postfix as a target: Debian's own, unpacked. It relays, rests, tells its deaths, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from harness import scenario as scenarios
from harness.agent import native
from harness.probes.snapshot import take_snapshot
from harness.remote_mx.process import RemoteMX
from harness.run.design import Design, Options
from harness.run.experiment import Experiment
from harness.run.plan import Profile
from harness.targets import TargetError
from harness.targets.choice import Settings, choose
from harness.targets.postfix import Postfix
from harness.targets.postfix_tree import Programs
from harness.tracing.choice import Tracing
from tests.debian import unpacked
from tests.probes.probed import until
from tests.targets.foreign import family_of, submit

COUNTS = Profile("counts", (1, 1), (1, 2, 4, 8), 0, stop_at_finding=True)


@pytest.fixture
def tree() -> Path:
    if os.geteuid() != 0:
        pytest.skip("needs root: Postfix's master gives its services to another user")
    return unpacked("postfix")


@pytest.fixture
def target(tree: Path, tmp_path: Path, scratch: Path, mx: RemoteMX) -> Iterator[Postfix]:
    postfix = Postfix(tmp_path, mx.ports, programs=Programs.unpacked(tree))
    postfix.start()
    yield postfix
    postfix.stop()


def roles(target: Postfix) -> set[str]:
    return {process.role for process in take_snapshot(target.root_pid).processes}


def test_it_relays_bounces_and_comes_to_rest_and_each_service_is_a_role(target: Postfix, mx: RemoteMX) -> None:
    mx.set_policy("refusing", "rcpt=550/2")
    for number in range(2):
        submit(target, f"{number}@sender.test", "x@accepted.test")
    until(lambda: not target.rest().busy, "rest after mail")
    ledger = mx.ledger()
    ours = {"0@sender.test", "1@sender.test"}
    assert len(ledger.bounced) == 1
    assert set(ledger.bounced) | (ledger.delivered.keys() & ours) == ours
    assert target.rest().backlog == 0
    assert {"master", "smtpd", "cleanup", "qmgr", "smtp", "bounce", "postlogd"} <= roles(target)
    assert target.version[0].isdigit()
    assert target.deaths() == []


def test_what_is_put_off_is_owed_until_it_is_hurried(target: Postfix, mx: RemoteMX) -> None:
    mx.set_policy("refusing", "rcpt=450")
    submit(target, "late@sender.test", "x@refused.test")
    until(lambda: target.rest().backlog == 1 and not target.rest().busy, "the message waits for its next try")
    assert target.owed() == {"late@sender.test"}
    mx.set_policy("refusing", "")
    target.hurry()
    until(lambda: "late@sender.test" in mx.ledger().delivered, "the message is delivered")
    until(lambda: target.owed() == set(), "nothing is owed")


def test_a_service_that_dies_is_told_with_its_signal(target: Postfix) -> None:
    (qmgr,) = [child for child in psutil.Process(target.root_pid).children() if child.name() == "qmgr"]
    qmgr.send_signal(signal.SIGSEGV)
    until(lambda: target.deaths() != [], "master tells its log")
    (death,) = target.deaths()
    assert (death.role, death.pid) == ("qmgr", qmgr.pid)
    assert death.text == "qmgr died: killed by signal 11"
    assert len(target.deaths()) == 1, "it is told once"


def test_it_stops_and_leaves_nothing_behind(target: Postfix, scratch: Path) -> None:
    submit(target, "1@sender.test", "x@accepted.test")
    family = family_of(target.root_pid)
    target.stop()
    assert psutil.wait_procs(family, timeout=10)[1] == []
    assert list(scratch.iterdir()) == []
    assert target.deaths() == [], "somebody asked for it"
    target.stop()  # a second time is nothing


def test_it_runs_from_where_it_is_installed(tree: Path, tmp_path: Path, scratch: Path, mx: RemoteMX) -> None:
    master = tree / "usr/lib/postfix/sbin/master"
    target = choose("postfix", Settings(binary=master))(tmp_path, mx.ports)
    target.start()
    try:
        assert psutil.Process(target.root_pid).exe() == str(master)
    finally:
        target.stop()
    for binary, words in ((Path("/bin/true"), "postconf"), (tmp_path / "nowhere", "no such program")):
        with pytest.raises(TargetError, match=words):
            choose("postfix", Settings(binary=binary))
    with pytest.raises(TargetError, match="embedded has no program to choose"):
        choose("embedded", Settings(binary=master))


@pytest.mark.parametrize("name", ["rejected-reuse", "abort-at-every-state"])
def test_a_run_does_its_work_and_is_clean(tree: Path, tmp_path: Path, scratch: Path, name: str) -> None:
    make = partial(Postfix, programs=Programs.unpacked(tree))
    record = Experiment(Design(scenarios.load(name), make, tmp_path, Options(profile=COUNTS, units=20))).run()
    assert (record.verdict, record.reasons, record.findings) == ("clean", [], [])
    assert record.work.lost == 0
    if name == "rejected-reuse":
        assert record.work.refused_messages == record.work.accepted == record.work.bounced >= 300
        assert record.work.messages_per_session_out >= 20


def test_its_services_take_the_meter_and_the_tracker(tree: Path, tmp_path: Path, scratch: Path, mx: RemoteMX) -> None:
    if why := native.missing():
        pytest.skip(f"needs a C compiler: {why}")
    postfix = Postfix(tmp_path, mx.ports, programs=Programs.unpacked(tree), traced=True)
    postfix.start()
    try:
        with Tracing(postfix.root_pid, postfix.agent_directory) as tracing:
            submit(postfix, "traced@test", "user@accepted.test")
            until(lambda: not postfix.rest().busy, "rest")
            snapshot = take_snapshot(postfix.root_pid, agent_dir=postfix.agent_directory)
            assert all(process.memory.heap for process in snapshot.processes)
            traces = tracing.traces(snapshot.processes)
            assert tracing.told_by(list(traces)) == "the LD_PRELOAD tracker"
            (smtpd, *_) = (process for process in snapshot.processes if process.role == "smtpd")
            watched = [each.fd for each in smtpd.descriptors if each.kind == "eventpoll"]
            made = {function for fd in watched for _, _, function in traces[smtpd.pid].open[fd].stack}
            assert "single_server_main" in made  # libpostfix-master's, by its symbol table
    finally:
        postfix.stop()
