"""OpenSMTPD as a target: Debian's own, unpacked, in places of its own. It relays, rests, keeps its session and goes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pytest

from harness import scenario as scenarios
from harness.probes.snapshot import take_snapshot
from harness.remote_mx.process import RemoteMX
from harness.run.design import Design, Options
from harness.run.experiment import Experiment
from harness.run.plan import Profile
from harness.targets import TargetError
from harness.targets.choice import Settings, choose
from harness.targets.opensmtpd import OpenSMTPD, culprit
from harness.targets.places import Program
from tests.probes.probed import until
from tests.targets.foreign import family_of, program_of, submit

COUNTS = Profile("counts", (1,), (1, 2, 4), 0, stop_at_finding=True)


@pytest.fixture
def program() -> Program:
    return program_of("opensmtpd", "usr/sbin/smtpd")


@pytest.fixture
def target(program: Program, tmp_path: Path, scratch: Path, mx: RemoteMX) -> Iterator[OpenSMTPD]:
    opensmtpd = OpenSMTPD(tmp_path, mx.ports, program=program)
    opensmtpd.start()
    yield opensmtpd
    opensmtpd.stop()


def test_it_relays_bounces_and_comes_to_rest_and_each_process_is_a_role(target: OpenSMTPD, mx: RemoteMX) -> None:
    mx.set_policy("refusing", "rcpt=550/2")
    for number in range(2):
        submit(target, f"{number}@sender.test", "x@accepted.test")
    until(lambda: mx.ledger().bounced and not target.rest().busy, "rest after mail")
    ledger, ours = mx.ledger(), {"0@sender.test", "1@sender.test"}
    assert len(ledger.bounced) == 1
    assert set(ledger.bounced) | (ledger.delivered.keys() & ours) == ours
    rest = target.rest()
    assert (rest.backlog, rest.counters["smtp.session"], rest.counters["mta.session"]) == (0, 0, 2)
    assert {process.role for process in take_snapshot(target.root_pid).processes} == {
        "smtpd",
        "klondike",
        "control",
        "lookup",
        "pony express",
        "queue",
        "scheduler",
    }
    assert target.version[0].isdigit()
    assert target.deaths() == []


def test_what_is_put_off_is_its_backlog_until_it_is_hurried(target: OpenSMTPD, mx: RemoteMX) -> None:
    mx.set_policy("refusing", "rcpt=450")
    submit(target, "late@sender.test", "x@refused.test")
    until(lambda: target.rest().backlog == 1 and not target.rest().busy, "the message waits for its next try")
    mx.set_policy("refusing", "")
    target.hurry()
    until(lambda: "late@sender.test" in mx.ledger().delivered, "the message is delivered")
    until(lambda: target.rest().backlog == 0, "nothing is owed")


def test_an_operator_asks_traces_and_hangs_up(target: OpenSMTPD) -> None:
    for operation in scenarios.load("control-churn").operations:
        if operation != "vanish":  # which 6.8 does not survive: docs/targets.md
            target.operate(operation)
    with pytest.raises(TargetError, match=r"nobody here can 'reload'; there is: trace, untrace"):
        target.operate("reload")
    assert target.deaths() == []


def test_a_process_that_dies_takes_the_others_along_and_that_is_told(target: OpenSMTPD) -> None:
    (queue,) = [each for each in family_of(target.root_pid) if "smtpd: queue" in each.cmdline()]
    queue.send_signal(signal.SIGSEGV)
    until(lambda: target.deaths() != [], "its death shows")
    (death,) = target.deaths()
    assert (death.role, death.pid) == ("smtpd", target.root_pid)
    assert death.text.startswith("smtpd ended with status 1: ")
    assert death.text.endswith(" socket closed")


def test_a_process_that_gives_up_is_told_with_its_reason() -> None:
    log = (
        "warn: control -> client: imsg_read: Connection reset by peer\n"
        "control: exiting: Connection reset by peer\n"
        "smtpd: process queue socket closed\n"
    )
    assert culprit(log) == ("control", "control died: Connection reset by peer")
    assert culprit("smtpd: process queue socket closed\n") == ("", "")


def test_the_system_does_not_notice_and_nothing_is_left(target: OpenSMTPD, scratch: Path) -> None:
    family = family_of(target.root_pid)
    assert not Path("/var/run/smtpd.sock").exists(), "its socket is its own"
    assert "seatbelt" not in Path("/proc/self/mountinfo").read_text(), "so are its mounts"
    target.stop()
    assert psutil.wait_procs(family, timeout=10)[1] == []
    assert list(scratch.iterdir()) == []
    assert target.deaths() == [], "somebody asked for it"
    target.stop()  # a second time is nothing


def test_its_descriptors_can_be_limited(program: Program, tmp_path: Path, scratch: Path, mx: RemoteMX) -> None:
    target = choose("opensmtpd", Settings(nofile=200, binary=None))(tmp_path, mx.ports)
    target.start()
    try:
        assert psutil.Process(target.root_pid).rlimit(psutil.RLIMIT_NOFILE) == (200, 200)
    finally:
        target.stop()


def test_a_program_without_its_smtpctl_will_not_do(program: Program) -> None:
    with pytest.raises(TargetError, match="no smtpctl beside it"):
        choose("opensmtpd", Settings(binary=Path("/bin/true")))


def test_a_run_spares_one_message_in_ten_so_that_its_session_is_used_again(
    program: Program, tmp_path: Path, scratch: Path
) -> None:
    scenario = replace(scenarios.load("rejected-reuse"), promises=())
    make, options = partial(OpenSMTPD, program=program), Options(profile=COUNTS)
    record = Experiment(Design(scenario, make, tmp_path, options)).run()
    assert (record.verdict, record.reasons, record.findings) == ("clean", [], [])
    assert record.conditions.refuses == "rcpt=550 spare=10"
    assert [dose.units for dose in record.doses] == [18, 18, 36, 72]
    assert [dose.work.refused_messages for dose in record.doses] == [18, 18, 36, 72]
    assert (record.work.accepted, record.work.bounced, record.work.delivered, record.work.lost) == (160, 144, 16, 0)
    assert (record.work.sessions_out, record.work.messages_per_session_out) == (1, 160.0)
