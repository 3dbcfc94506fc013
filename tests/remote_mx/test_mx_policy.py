"""The policy's language: read, written, refused with a reason, and the same decisions every time."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.remote_mx.policy import ACCEPT, PHASES, Action, Decisions, Phase, Policy, PolicyError, Rule

actions = st.one_of(
    st.sampled_from([ACCEPT, Action("drop"), Action("fin"), Action("stall")]),
    st.integers(400, 599).map(lambda code: Action("refuse", code)),
    st.sampled_from([0.5, 1.0, 30.0]).map(lambda seconds: Action("stall", seconds=seconds)),
)
rules = st.one_of(
    st.builds(Rule, st.sampled_from(PHASES), actions, every=st.integers(1, 50)),
    st.builds(Rule, st.sampled_from(PHASES[2:]), actions, st.sampled_from(["a.test", "b-c.test"]), st.integers(1, 50)),
)
counts = st.none() | st.integers(1, 1000)
policies = st.builds(Policy, st.lists(rules, max_size=6).map(tuple), counts, counts, counts)


@settings(deadline=None)
@given(policies)
def test_what_is_written_is_read_back(policy: Policy) -> None:
    assert Policy.parse(str(policy)) == policy
    assert Policy.parse(str(policy).replace(" ", ",")) == policy


@settings(deadline=None)
@given(st.text(max_size=20) | st.text("rcptmaild@.=/:0579,stuen ", max_size=25))
def test_any_other_text_is_an_error_that_names_it(text: str) -> None:
    try:
        policy = Policy.parse(text)
    except PolicyError as error:
        word = str(error).partition(": ")[0]
        assert word in text.replace(",", " ").split()
    else:
        assert Policy.parse(str(policy)) == policy


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("rcpt", "rcpt: a rule is PHASE[@DOMAIN]=ACTION[/N]"),
        ("rcpt=550 rset=550", "rset=550: no phase 'rset'; there are connect, ehlo, mail, rcpt, data, end"),
        ("rcpt=250", "rcpt=250: '250' is no action; use a code from 400 to 599, drop"),
        ("rcpt=stop", "'stop' is no action"),
        ("rcpt=550/0", "rcpt=550/0: '0' is not a number from 1"),
        ("rcpt=550:3", "only stall takes seconds"),
        ("rcpt=stall:1.2.3", "1.2.3 is not a number of seconds"),
        ("connect@a.test=554", "connect@a.test=554: connect knows no domain yet; mail, rcpt, data, end do"),
        ("messages=none", "messages=none: 'none' is not a number from 1"),
        ("messages=1 messages=2", "messages=2: messages is given twice"),
        ("spare=many", "spare=many: 'many' is not a number from 1"),
        ("quit-after=0", "'0' is not a number from 1"),
    ],
)
def test_errors_say_what_is_allowed(text: str, complaint: str) -> None:
    with pytest.raises(PolicyError, match=re.escape(complaint)):
        Policy.parse(text)


def kinds(text: str, *asked: tuple[Phase, str]) -> list[str]:
    decisions = Decisions(Policy.parse(text))
    return [str(decisions.decide(phase, [domain] if domain else [])) for phase, domain in asked]


def test_without_a_rule_the_answer_is_yes() -> None:
    assert kinds("", ("connect", ""), ("rcpt", "a.test")) == ["accept", "accept"]
    assert kinds("data=450", ("rcpt", "a.test"), ("data", "a.test")) == ["accept", "450"]


def test_every_third_time_is_exact() -> None:
    asked: list[tuple[Phase, str]] = [("rcpt", "a.test")] * 7
    assert kinds("rcpt=550/3", *asked) == ["accept", "accept", "550"] * 2 + ["accept"]


def test_a_rule_counts_only_what_it_is_about() -> None:
    asked: list[tuple[Phase, str]] = [("rcpt", "a.test"), ("rcpt", "b.test"), ("mail", "a.test"), ("rcpt", "a.test")]
    assert kinds("rcpt@a.test=550/2", *asked) == ["accept", "accept", "accept", "550"]


def test_a_rule_with_a_domain_goes_first_wherever_it_stands() -> None:
    assert kinds("rcpt=550 rcpt@OK.test=accept", ("rcpt", "ok.test"), ("rcpt", "x.test")) == ["accept", "550"]


def test_a_rule_whose_turn_it_is_not_leaves_the_decision_to_the_next() -> None:
    asked: list[tuple[Phase, str]] = [("rcpt", "a.test")] * 4
    assert kinds("rcpt=450/2 rcpt=550", *asked) == ["550", "450", "550", "450"]


def test_every_third_transaction_is_spared_and_without_a_number_none() -> None:
    decisions = Decisions(Policy.parse("rcpt=550 spare=3"))
    assert [decisions.spares() for _ in range(7)] == [False, False, True] * 2 + [False]
    assert not any(Decisions(Policy.parse("rcpt=550")).spares() for _ in range(10))


@settings(deadline=None)
@given(policies, st.lists(st.tuples(st.sampled_from(PHASES), st.sampled_from(["", "a.test", "b-c.test"])), max_size=30))
def test_the_same_questions_get_the_same_answers(policy: Policy, asked: list[tuple[Phase, str]]) -> None:
    assert kinds(str(policy), *asked) == kinds(str(policy), *asked)
