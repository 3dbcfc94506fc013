"""Whole runs against the real MTA: what leaks is found and named, what does not is clean, whatever happens is told."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from harness import scenario as scenarios
from harness.run.design import Design, Options
from harness.run.experiment import Experiment
from harness.run.plan import Profile
from harness.scenario import Scenario
from harness.targets import Rest
from harness.targets.choice import Settings, choose
from harness.targets.embedded import Embedded
from reports.record import Finding, RunRecord

COUNTS = Profile("counts", warm_up=(1,), counts=(1, 2, 4), rounds=0, stop_at_finding=True)
FEW = replace(COUNTS, counts=(1, 2))  # what leaks one thing for each unit cannot hide in them either
DELETED = "message file (deleted)"


class Run:
    """An experiment that a test can reach into while it runs."""

    def __init__(self, directory: Path, scenario: Scenario, options: Options, defects: tuple[str, ...] = ()) -> None:
        self.on_progress: Callable[[str], None] = lambda text: None
        self.target: Embedded | None = None

        def make(where: Path, ports: dict[str, int]) -> Embedded:
            setting = {"nofile": scenario.nofile, "needs": scenario.needs}
            self.target = Embedded(where, ports, version="test", defects=defects, seed=options.seed, **setting)
            return self.target

        design = Design(scenario, make, directory, options, lambda text, *_: self.on_progress(text))
        self.experiment = Experiment(design)

    def __call__(self) -> RunRecord:
        before = set(psutil.Process().children(recursive=True))
        record = self.experiment.run()
        left = set(psutil.Process().children(recursive=True)) - before
        assert not left, "the run left processes behind"
        return record


def rejected(promises: bool = False) -> Scenario:
    scenario = scenarios.load("rejected-reuse")
    return scenario if promises else replace(scenario, promises=())


def descriptor_finding(record: RunRecord) -> Finding:
    (finding,) = (finding for finding in record.findings if finding.resource == "descriptor")
    return finding


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """Of a run that nothing is wrong with; for tests that only read it."""
    return Run(tmp_path_factory.mktemp("clean"), rejected(), Options(profile=COUNTS))()


# ---- the refusal matrix: the real daemon of January 2013 behaved exactly so


@pytest.mark.parametrize(
    ("policy", "label"),
    [
        ("rcpt=550", DELETED),
        ("rcpt=450", "message file"),
        ("mail=550", DELETED),
        ("data=550", DELETED),
        ("end=550", None),
        ("", None),
    ],
)
def test_with_the_defect_refusals_before_the_body_leak(tmp_path: Path, policy: str, label: str | None) -> None:
    options = Options(profile=COUNTS, refuses=policy)
    record = Run(tmp_path, rejected(), options, ("transfer-fd-leak",))()
    if label is None:
        proves_nothing_leaks_or_is_lost(record)
        return
    assert record.verdict == "leak"
    finding = descriptor_finding(record)
    assert (finding.role, finding.label, finding.kind) == ("transfer", label, "file")
    assert 0.9 <= finding.rate <= 1.0
    # One message a session is closed with the session; what leaked in the warm-up is not counted.
    judged = [dose.work for dose in record.doses if dose.phase == "count"]
    assert finding.count == sum(work.refused_messages - work.sessions_out for work in judged)
    assert all(example.endswith("(deleted)") == (label == DELETED) for example in finding.examples)
    assert finding.dose_units == [20, 40, 80]
    assert record.work.lost == 0


@pytest.mark.parametrize("policy", ["rcpt=450", "mail=550", "data=550"])
def test_without_the_defect_no_refusal_leaks(tmp_path: Path, policy: str) -> None:
    """Nor where it leaks with the defect."""
    proves_nothing_leaks_or_is_lost(Run(tmp_path, rejected(), Options(profile=FEW, refuses=policy))())


def proves_nothing_leaks_or_is_lost(record: RunRecord) -> None:
    assert record.verdict == "clean", record.reasons or record.findings
    assert record.work.lost == 0
    assert record.work.accepted == record.work.delivered + record.work.bounced + record.work.queued


# ---- what the record proves


def test_doses_are_exact_and_every_accepted_message_is_accounted_for(clean: RunRecord) -> None:
    record = clean
    proves_nothing_leaks_or_is_lost(record)
    assert [dose.units for dose in record.doses] == [20, 20, 40, 80]
    assert [dose.work.refused_messages for dose in record.doses] == [20, 20, 40, 80]
    assert record.work.messages_per_session_out >= 20
    assert record.work.refused_recipients > 0
    assert len(record.mail) == record.work.accepted == 160
    assert set(record.mail.values()) == {"bounced"}
    assert {process.role for process in record.doses[-1].snapshot.processes} == {
        "parent", "control", "lookup", "queue", "scheduler", "smtp", "transfer", "delivery",
    }  # fmt: skip
    assert record.samples.rows
    assert record.load.failures == 0


def test_a_target_that_loses_patience_is_spared_and_doses_count_what_was_refused(tmp_path: Path) -> None:
    run = Run(tmp_path, rejected(), Options(profile=COUNTS))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Embedded, "patience", 10, raising=False)
        record = run()
    assert record.conditions.refuses == "rcpt=550 spare=10"
    assert [dose.units for dose in record.doses] == [dose.work.refused_messages for dose in record.doses]
    assert [dose.units for dose in record.doses] == [18, 18, 36, 72]
    assert (record.work.bounced, record.work.delivered, record.work.accepted) == (144, 16, 160)


def test_the_same_seed_submits_the_same_mail(tmp_path: Path, clean: RunRecord) -> None:
    again, other = (
        Run(tmp_path / str(seed), rejected(), Options(profile=replace(COUNTS, counts=(1,)), seed=seed))()
        for seed in (clean.seed, 7)
    )

    def began(record: RunRecord) -> tuple[object, ...]:
        """What the doses submitted that all of them have."""
        return ([dose.work.refused_recipients for dose in record.doses[:2]], again.mail.keys() <= record.mail.keys())

    assert began(again) == began(clean)
    assert began(again) != began(other)


# ---- runs that cannot be trusted, or go wrong


def test_sessions_that_are_not_reused_make_the_run_inconclusive(tmp_path: Path) -> None:
    record = Run(tmp_path, rejected(promises=True), Options(profile=COUNTS, refuses="rcpt=550 messages=1"))()
    assert record.verdict == "inconclusive"
    (short,) = (reason for reason in record.reasons if "messages per outbound session" in reason)
    assert ": --mx 'rcpt=550 messages=1' may be why; else " in short
    assert len(record.doses) == 1, "what cannot succeed is not repeated"


def test_a_process_that_is_killed_is_a_finding_by_name(tmp_path: Path) -> None:
    run = Run(tmp_path, rejected(), Options(profile=COUNTS))

    def kill(text: str) -> None:
        if text.startswith("dose: 40"):
            assert run.target is not None
            (transfer,) = (
                child
                for child in psutil.Process(run.target.root_pid).children()
                if child.cmdline()[0] == "smtpd: transfer"
            )
            threading.Timer(0.05, transfer.kill).start()

    run.on_progress = kill
    record = run()
    assert record.verdict == "leak"
    (finding,) = (finding for finding in record.findings if finding.kind == "died")
    assert (finding.resource, finding.role) == ("process", "transfer")
    assert "transfer died" in finding.message
    assert record.work.lost == 0


@pytest.mark.parametrize(("words", "verdict"), [("", "leak"), ("421 4.3.2 later\\r\\n", "inconclusive")])
def test_a_session_that_the_server_breaks_off_is_a_finding_and_one_that_it_ends_is_none(
    tmp_path: Path, words: str, verdict: str
) -> None:
    greeter = (Path(__file__).parents[1] / "servers" / "greeter.py").read_text()
    server, answers = tmp_path / "server.py", '        writer.write(b"250 ok'
    leaves = f"""
        kept.append(line)
        if len(kept) == 30:
            writer.write(b"{words}")
            break
"""
    server.write_text(greeter.replace(answers, leaves + answers))
    scenario = replace(scenarios.load("connect-quit"), promises=(), needs=())
    make = choose("command", Settings(command=f"{{python}} {server} {{port}}"))
    record = Experiment(Design(scenario, make, tmp_path / "run", Options(profile=COUNTS), lambda *_: None)).run()
    assert record.verdict == verdict
    if words:
        assert any("the load failed: 1 session of dose 2" in reason for reason in record.reasons), record.reasons
    else:
        (finding,) = record.findings
        assert (finding.resource, finding.kind, finding.count) == ("socket", "broken-off", 1)
        assert finding.role in ("server.py", "python", "python3"), finding.role


def test_an_interrupt_keeps_what_is_known(tmp_path: Path) -> None:
    run = Run(tmp_path, rejected(), Options(profile=COUNTS))

    def interrupt(text: str) -> None:
        if text.startswith("dose: 40"):
            signal.raise_signal(signal.SIGINT)

    run.on_progress = interrupt
    record = run()
    assert record.verdict == "inconclusive"
    assert any("interrupted" in reason for reason in record.reasons)
    assert [dose.units for dose in record.doses] == [20, 20]


@pytest.mark.parametrize(
    "name",
    [
        "tempfail-retry",
        "bounce-storm",
        "abort-at-every-state",
        "control-churn",
        "reload-churn",
        "starttls-failures",
        "auth-failures",
        "local-delivery",
        "backlog",
        "descriptor-famine",
        "dns-trouble",
    ],
)
def test_mail_that_hurts_in_other_ways_leaves_nothing_either(tmp_path: Path, name: str) -> None:
    scenario = replace(scenarios.load(name), promises=())
    record = Run(tmp_path, scenario, Options(profile=FEW))()
    assert record.verdict == "clean", [finding.message for finding in record.findings] + record.reasons
    assert (record.work.lost, record.work.queued) == (0, 0)
    assert record.work.sessions > 0


def test_an_operation_that_cannot_be_done_is_told(tmp_path: Path) -> None:
    record = Run(tmp_path, replace(rejected(), operations=("dance",)), Options(profile=COUNTS))()
    assert record.verdict == "inconclusive"
    assert any("no operation called 'dance'" in reason for reason in record.reasons)


def test_a_target_that_does_not_come_to_rest_is_a_finding(tmp_path: Path) -> None:
    options = Options(profile=FEW, refuses="rcpt=stall:30", rest_timeout_s=1.0)
    record = Run(tmp_path, rejected(), options)()
    assert record.verdict == "leak"
    (finding,) = (finding for finding in record.findings if finding.kind == "restless")
    assert "mta.session" in finding.message or "mta.session" in " ".join(finding.examples)


# ---- memory


def test_objects_that_outlive_their_relay_are_found_and_the_twin_is_proven_clean(tmp_path: Path) -> None:
    profile = Profile("memory", warm_up=(1, 1), counts=(1, 2), rounds=3, stop_at_finding=True)
    scenario = replace(scenarios.load("one-at-a-time"), promises=())
    for name, defects in (("leak", ("relay-object-leak",)), ("twin", ())):
        (tmp_path / name).mkdir()
        record = Run(tmp_path / name, scenario, Options(profile=profile), defects)()
        judged = {each.role: each for each in record.tested if each.metric == "python objects"}
        if defects:
            assert record.verdict == "leak"
            (finding,) = record.findings
            assert (finding.resource, finding.role) == ("memory", "transfer")
            assert finding.rate > 3
        else:
            assert record.verdict == "clean", record.reasons or record.findings
            assert judged["transfer"].high < 0.1
            assert len(judged) == 8


def test_what_looking_cost_is_part_of_what_the_harness_spent(clean: RunRecord) -> None:
    assert 0 < clean.harness.probe_cpu_s <= clean.harness.cpu_s


# ---- the target's own counters


class Miscounting(Embedded):
    """Its smtp process forgets to count down `forgets` sessions in ten, by its own word; no socket is left open."""

    forgets = 5

    def rest(self) -> Rest:
        rest = super().rest()
        kept = rest.counters["smtp.session"] + rest.counters["smtp.session.total"] * self.forgets // 10
        busy = {**rest.busy, "smtp.session": kept} if kept else rest.busy
        return replace(rest, busy=busy, counters={**rest.counters, "smtp.session": kept})


def test_a_session_that_is_never_counted_down_is_named_with_its_rate_and_nobody_waits_for_it(tmp_path: Path) -> None:
    def make(where: Path, ports: dict[str, int]) -> Embedded:
        return Miscounting(where, ports, version="test")

    scenario = scenarios.load("connect-quit")
    record = Experiment(Design(scenario, make, tmp_path, Options(profile=COUNTS))).run()
    assert record.verdict == "leak"
    (finding,) = record.findings
    assert (finding.resource, finding.label, finding.role) == ("counter", "smtp.session", "smtp")
    assert finding.low < 0.5 < finding.high
    assert "stuck" in finding.message
    assert all(dose.rested and dose.drained_s < 10 for dose in record.doses), "no dose waited for its time-out"


def test_a_clean_run_tests_every_gauge_and_weighs_every_message(clean: RunRecord) -> None:
    record = clean
    tested = {each.label: each for each in record.tested if each.resource == "counter"}
    assert {"smtp.session", "mta.session", "scheduler.envelope", "mta.relay"} <= tested.keys()
    assert "smtp.session.total" not in tested
    assert all(each.verdict == "clean" for each in tested.values())
    traffic = {(each.sender, each.receiver, each.kind): each for each in record.footprint.traffic}
    assert traffic["smtp", "queue", "COMMIT_MESSAGE"].messages_per_unit == 1
    deliver = traffic["queue", "transfer", "DELIVER"]
    assert 100 < deliver.bytes_each < 1000
    assert not any("control" in (each.sender, each.receiver) for each in record.footprint.traffic)
