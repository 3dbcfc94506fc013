"""How a dialogue is taken apart, against servers that are made up: each leaks for a reason of its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness import scenario
from harness.run.accounts import planned
from harness.scenario import SessionPlan, Step
from harness.shrink.dialogue import Dialogue, joined, of, shorter, shrink
from harness.steps import DATA, EHLO, END, GREETING, STARTTLS, body, mail, rcpt
from reports.record import Conditions, PlannedSession, RunRecord, TargetInfo


def of_scenario(name: str, units: int) -> Dialogue:
    chosen = scenario.load(name)
    sessions = [planned(session, chosen.units_per_session) for session in chosen.plan(1, 0, units).values()]
    conditions = Conditions(operations=list(chosen.operations))
    return of(RunRecord(name, TargetInfo("embedded"), dialogue=sessions, conditions=conditions))


def of_steps(*sessions: tuple[Step, ...]) -> Dialogue:
    return Dialogue(tuple(planned(SessionPlan(steps=steps, end="rst"), 1) for steps in sessions))


def said(session: PlannedSession) -> list[str]:
    return [step.send.partition("\r\n")[0] for step in session.steps if step.send]


def verbs(dialogue: Dialogue) -> list[list[str]]:
    return [[line[:4] for line in said(session)] for session in dialogue.sessions]


def has(*wanted: str) -> Callable[[Dialogue], bool]:
    """Leaks when the lines are said in this order in one session."""

    def leaks(dialogue: Dialogue) -> bool:
        for session in dialogue.sessions:
            lines = iter(said(session))
            if all(any(line.startswith(word) for line in lines) for word in wanted):
                return True
        return False

    return leaks


def test_a_record_s_messages_become_what_the_load_says() -> None:
    dialogue = of_scenario("rejected-reuse", 20)
    assert (len(dialogue.sessions), dialogue.messages) == (2, 22)
    lines = said(dialogue.sessions[0])
    assert lines[0] == "EHLO load.sender.test"
    assert lines[-1] == "QUIT"
    assert lines.count("DATA") == lines.count(".") == 10
    assert lines.count("RSET") == 1  # for the message of which every recipient is refused
    refused = [step for step in dialogue.steps if step.send.endswith("@nowhere.invalid>\r\n")]
    assert {step.expect for step in refused} == {"5"}


def test_only_what_leaks_is_left() -> None:
    left = shrink(of_scenario("rejected-reuse", 40), has("MAIL", "RCPT TO:<user", "DATA"))
    assert verbs(left) == [["MAIL", "RCPT", "DATA"]]
    assert not left.sessions[0].steps[0].send, "the greeting is read: else every answer would be taken for the next one"
    assert left.told() == "1 session, 1 message, 3 commands"


def test_two_messages_in_one_session_stay_in_one() -> None:
    left = shrink(of_scenario("rejected-reuse", 20), has("RSET", "MAIL"))
    assert verbs(left) == [["RSET", "MAIL"]]


def test_messages_that_are_needed_in_two_sessions_are_tried_in_one() -> None:
    whole = of_steps(*((GREETING, EHLO, mail(f"{name}@sender.test")) for name in "abcdef"))
    wanted = {"MAIL FROM:<b@sender.test>", "MAIL FROM:<e@sender.test>"}

    def in_any(dialogue: Dialogue) -> bool:
        return wanted <= {line for session in dialogue.sessions for line in said(session)}

    left = shrink(whole, in_any)
    assert [said(session) for session in left.sessions] == [sorted(wanted)]

    def in_two(dialogue: Dialogue) -> bool:
        return in_any(dialogue) and len(dialogue.sessions) >= 2

    left = shrink(whole, in_two)
    assert [said(session) for session in left.sessions] == [[line] for line in sorted(wanted)]


def test_sessions_with_tls_are_not_joined() -> None:
    whole = of_steps((GREETING, EHLO, STARTTLS, mail()), (GREETING, mail()))
    assert joined(whole) == whole


def test_the_end_stays_when_it_is_the_point() -> None:
    whole = of_steps((GREETING, EHLO, mail()), (GREETING,))
    assert {session.end for session in shrink(whole, has("MAIL")).sessions} == {"fin"}
    left = shrink(whole, lambda dialogue: any(session.end == "rst" for session in dialogue.sessions))
    assert [session.end for session in left.sessions] == ["rst"]


def test_pauses_go_and_a_content_that_is_needed_is_halved() -> None:
    whole = of_steps((GREETING, mail(), rcpt("a@b.test"), DATA, body(6400, piece_bytes=10, pause_s=0.1), END))
    left = shrink(whole, lambda dialogue: sum(len(step.send) for step in dialogue.steps) > 1000)
    content = [step for step in left.steps if not step.expect]
    assert [(step.pause_s, step.piece_bytes) for step in content] == [(0.0, 0)]
    assert 1000 < len(content[0].send) < 2100
    assert shorter(of_steps((GREETING, EHLO))) == of_steps((GREETING, EHLO))


def test_operations_are_left_out_or_are_all_that_is_left() -> None:
    whole = of_scenario("control-churn", 40)
    assert len(whole.operations) == 40
    left = shrink(whole, lambda dialogue: "vanish" in dialogue.operations)
    assert left == Dialogue((), ("vanish",))

    def needs_both(dialogue: Dialogue) -> bool:
        return "trace" in dialogue.operations and has("MAIL")(dialogue)

    left = shrink(whole, needs_both)
    assert (verbs(left), left.operations) == ([["MAIL"]], ("trace",))
    left = shrink(whole, has("MAIL"))
    assert left.operations == ()


@pytest.mark.parametrize("name", [name for name in scenario.names() if name != "descriptor-famine"])
def test_every_scenario_s_dialogue_can_be_taken_apart(name: str) -> None:
    whole = of_scenario(name, 8)
    if not whole.sessions:
        return
    last = [step for step in whole.steps if step.send][-1] if any(step.send for step in whole.steps) else None
    left = shrink(whole, lambda dialogue: last is None or last in list(dialogue.steps))
    assert [step for step in left.steps if step.send] == ([] if last is None else [last])
