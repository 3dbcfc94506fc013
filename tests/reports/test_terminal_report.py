from __future__ import annotations

import io
from copy import deepcopy
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from reports import html, junit, markdown, terminal
from reports import record as records
from reports.record import (
    Dose,
    Finding,
    Incident,
    Judgement,
    Load,
    Resource,
    RunRecord,
    Snapshot,
    TargetInfo,
    Work,
)
from tests.reports import drawn

UNIT = "refused message"
ADVICE = "`seatbelt fds PID` lists them while transfer runs. Look at where a transaction ends without reading the file."
MESSAGE = "transfer keeps 1 message file (deleted) open for each refused message: 285 of 300"


def printed(record: RunRecord, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    terminal.print_report(record, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def flowing(text: str) -> str:
    """Without the line breaks."""
    return " ".join(text.split())


def series(resource: Resource, label: str, metric: str, visible: float) -> records.Tested:
    return records.Tested(resource, label, "transfer", metric, "clean", UNIT, smallest_visible=visible)


def base() -> RunRecord:
    return RunRecord(
        "rejected-reuse",
        TargetInfo("embedded", "0.1.0"),
        seed=7,
        command="seatbelt run rejected-reuse --seed 7",
        judgement=Judgement(unit=UNIT),
        work=Work(
            sessions=62,
            messages=372,
            accepted=310,
            refused_messages=300,
            refused_recipients=81,
            bounced=310,
            sessions_out=6,
            messages_out=310,
            messages_per_session_in=6.0,
            messages_per_session_out=51.7,
        ),
        doses=[Dose(units=20, phase="warm-up"), *(Dose(units=units) for units in (20, 40, 80, 160))],
        tested=[
            series("descriptor", "message file", "survivors", 0.0841),
            series("socket", "tcp/CLOSE_WAIT", "survivors", 0.0841),
            series("memory", "Python objects", "python objects", 0.0231),
        ],
    )


def kept(**changes: object) -> Finding:
    what: dict[str, object] = {
        "resource": "descriptor",
        "kind": "file",
        "label": "message file (deleted)",
        "role": "transfer",
        "pids": [4242],
        "count": 285,
        "unit": UNIT,
        "rate": 0.95,
        "low": 0.919,
        "high": 0.972,
        "confidence": 0.99999,
        "first_dose": 1,
        "examples": [f"/var/spool/smtpd/queue/0{number}/0{number}aabbcc/message (deleted)" for number in range(5)],
        "dose_units": [20, 40, 80, 160],
        "survivors": [19, 38, 76, 152],
        "message": MESSAGE,
        "advice": ADVICE,
    }
    return Finding(**(what | changes))  # type: ignore[arg-type]


def failure(resource: Resource, kind: str, message: str) -> Finding:
    return Finding(resource, kind, f"{kind} thing", count=1, confidence=1.0, message=message, advice="Look at the log.")


def leaking(*findings: Finding) -> RunRecord:
    record = base()
    record.verdict, record.findings = "leak", list(findings)
    return record


def test_a_leak_comes_first_with_its_proof() -> None:
    text = printed(leaking(kept()))
    assert flowing(text).startswith(f"LEAK: {MESSAGE}")
    assert "1. descriptor: message file (deleted) in transfer (pid 4242)" in text
    assert "0.95 for each refused message, 95 % interval 0.919 to 0.972" in text
    assert "over 99.99 %" in text
    lines = [line.split() for line in text.splitlines()]
    by_dose = lines.index(["by", "dose", "20", "40", "80", "160", "(refused", "message)"])
    assert lines[by_dose + 1] == ["left", "19", "38", "76", "152"]
    assert ADVICE in flowing(text)
    assert text.count("/message (deleted)") == terminal.MAX_EXAMPLES


def test_the_columns_of_the_proof_stand_under_each_other() -> None:
    text = printed(leaking(kept(dose_units=[20, 1600], survivors=[3, 152])))
    head, foot = next(pair for pair in pairwise(text.splitlines()) if "by dose" in pair[0])
    assert head.index("1600") + 4 == foot.index("152") + 3


def test_a_leak_that_was_attributed_says_where_it_was_opened() -> None:
    text = printed(leaking(kept(opened_at=["mta_under_test/processes/transfer/transfer.py:120", "session.py:88"])))
    assert "opened at" in text
    assert "session.py:88" in text


def test_further_findings_are_told_in_their_own_words() -> None:
    second = kept(label="tcp/CLOSE_WAIT", resource="socket", message="transfer keeps 1 tcp/CLOSE_WAIT open")
    text = flowing(printed(leaking(kept(), second)))
    assert "(and 1 other finding)" in text
    assert "2. socket: tcp/CLOSE_WAIT in transfer" in text
    assert "transfer keeps 1 tcp/CLOSE_WAIT open" in text


def test_clean_says_after_how_much_work_and_what_it_would_have_shown() -> None:
    record = base()
    record.verdict = "clean"
    text = flowing(printed(record))
    assert text.startswith("CLEAN: nothing is kept after 300 refused messages in 4 doses")
    assert "0.0841 for each refused message of any of 2 classes of descriptor, socket" in text
    assert "0.0231 Python objects for each refused message in any of 1 role" in text


def test_the_work_is_told() -> None:
    record = base()
    record.verdict = "clean"
    record.load = Load(failures=2, errors=["RCPT: 451 try later"])
    text = flowing(printed(record))
    assert "62 sessions, 372 messages (6 a session), 310 accepted" in text
    assert "310 transactions in 6 sessions (51.7 a session), 300 refused entirely; 81 recipients" in text
    assert "0 delivered, 310 bounced, 0 queued, 0 lost, 0 duplicated" in text
    assert "2 failures: RCPT: 451 try later" in text


def test_inconclusive_gives_every_reason() -> None:
    record = base()
    record.reasons = [
        "the scenario promises at least 20 messages per outbound session; there were 1.0: hold the greeting",
        "memory of queue: after 960 refused messages it grows by -1 to 3 Python objects for each",
    ]
    text = flowing(printed(record))
    assert text.startswith(f"INCONCLUSIVE: {record.reasons[0]}")
    assert f"- {record.reasons[1]}" in text


def test_memory_that_was_not_judged_is_said_once_for_all_roles() -> None:
    record = base()
    record.verdict = "clean"
    why = "memory not judged: mail is still owed"
    record.tested = [
        records.Tested("memory", "memory", role, "", "inconclusive", UNIT, reason=why) for role in ("queue", "smtp")
    ]
    assert f"queue, smtp: {why}" in flowing(printed(record))


@pytest.mark.parametrize(
    ("resource", "kind", "message"),
    [
        ("process", "died", "transfer died: signal 11"),
        ("mail", "lost", "2 of 310 accepted messages were lost: neither delivered nor bounced nor in the spool"),
        ("task", "restless", "the target did not come to rest after dose 5 (mta.session 2)"),
    ],
)
def test_failures_are_not_called_leaks(resource: Resource, kind: str, message: str) -> None:
    record = leaking(failure(resource, kind, message))
    record.incidents = [Incident("died", message)]
    text = flowing(printed(record))
    assert text.startswith(f"FAILED: {message}")
    assert "Look at the log." in text


def test_the_command_and_the_seed_come_last() -> None:
    lines = printed(leaking(kept())).splitlines()
    assert lines[-2].split() == ["seed", "7"]
    assert lines[-1].split() == ["repeat", *base().command.split()]


def test_the_headline_alone_is_one_text() -> None:
    assert terminal.headline(leaking(kept())).plain == f"LEAK: {MESSAGE}"


def test_a_record_without_anything_still_prints() -> None:
    text = printed(RunRecord("accepted", TargetInfo("embedded"), doses=[Dose(snapshot=Snapshot())]))
    assert text.startswith("INCONCLUSIVE: no reason was recorded")


def test_colours_are_for_terminals_and_obey_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    def raw() -> str:
        console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system="standard")
        terminal.print_report(leaking(kept()), console)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()

    red = "\x1b[1;31m"
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert red in raw()
    monkeypatch.setenv("NO_COLOR", "1")
    assert red not in raw()


@given(st.text(max_size=300), st.text(max_size=300))
@settings(deadline=None)
def test_nothing_overflows_and_no_control_character_gets_through(path: str, words: str) -> None:
    finding = kept(examples=[path], message=words, label=words, advice=words, opened_at=[path])
    record = leaking(kept(), finding)
    record.command = words
    text = printed(record)
    console = Console(width=80)
    for line in text.split("\n"):
        assert console.measure(line).maximum <= 80
        assert all(char.isprintable() for char in line)


@given(st.text(min_size=1, max_size=200), st.integers(5, 100))
def test_shortening_keeps_both_ends(text: str, columns: int) -> None:
    short = terminal.shorten(text, columns)
    assert len(short) <= columns
    assert short[0] == text[0]
    assert short[-1] == text[-1]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1.0, "1"), (0.95, "0.95"), (0.012345, "0.0123"), (12345.6, "12,346"), (0.00001234, "1.2e-05")],
)
def test_numbers_are_readable(value: float, text: str) -> None:
    assert terminal.number(value) == text


def test_doses_without_work_cost_the_kernel_nothing_for_each() -> None:
    one = drawn.record()
    one.work.sessions = 3
    one.doses = [deepcopy(one.doses[0]) for _ in range(3)]
    for dose in one.doses:
        dose.units, dose.phase = 0, "count"
        dose.snapshot.kernel = records.KernelMemory(1_000_000)
    for write in (terminal.as_text, html.render, junit.render, markdown.render):
        assert "MB for these processes" not in write(one)
