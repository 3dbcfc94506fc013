from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import scenario as scenarios
from harness.scenario import (
    ACCEPTED_DOMAIN,
    DEFAULT_SENDER,
    REFUSED_DOMAIN,
    UNROUTED_DOMAIN,
    Message,
    Scenario,
    ScenarioError,
    SessionPlan,
)
from reports.record import Promise

NAMES = ["accepted", "one-at-a-time", "rejected-reuse"]


def one_a_unit(_random: Random, units: int) -> SessionPlan:
    return SessionPlan(tuple(Message(DEFAULT_SENDER, (f"u{number}@{ACCEPTED_DOMAIN}",)) for number in range(units)))


def tiny(**changes: object) -> Scenario:
    declared: dict[str, object] = {
        "name": "tiny",
        "story": "A story.",
        "unit": "message",
        "session": one_a_unit,
        "units_per_session": 4,
    }
    return Scenario(**(declared | changes))  # type: ignore[arg-type]


def relayed(sessions: Sequence[SessionPlan]) -> int:
    """Units, as all of our scenarios count them: messages of which at least one recipient is relayed."""
    return sum(bool(message.recipients) for session in sessions for message in session.messages)


def test_names_are_those_of_the_files() -> None:
    assert set(NAMES) <= set(scenarios.names())


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10), dose=st.integers(0, 5), units=st.integers(1, 200), first=st.integers(0, 50))
def test_a_plan_is_exact_and_deterministic(name: str, seed: int, dose: int, units: int, first: int) -> None:
    scenario = scenarios.load(name)
    plan = scenario.plan(seed, dose, units, first)
    assert relayed(list(plan.values())) == units
    assert plan == scenario.plan(seed, dose, units, first)


@settings(deadline=None)
@given(portions=st.lists(st.integers(1, 30), min_size=1, max_size=8))
def test_portions_of_one_dose_share_no_session_number(portions: list[int]) -> None:
    numbers: list[int] = []
    first = 0
    for portion in portions:
        plan = tiny().plan(1, 0, portion, first)
        assert relayed(list(plan.values())) == portion
        numbers += plan
        first += portion
    assert len(numbers) == len(set(numbers))


def test_seed_and_dose_change_the_mail() -> None:
    scenario = scenarios.load("rejected-reuse")
    assert scenario.plan(1, 0, 20) != scenario.plan(2, 0, 20)
    assert scenario.plan(1, 0, 20) != scenario.plan(1, 1, 20)


def test_rejected_reuse_goes_on_after_a_message_that_the_target_refuses_entirely() -> None:
    sessions = list(scenarios.load("rejected_reuse").plan(7, 3, 95).values())
    for session in sessions:
        refused_entirely = [index for index, message in enumerate(session.messages) if not message.recipients]
        assert len(refused_entirely) == 1
        assert refused_entirely[0] < len(session.messages) - 1
    messages = [message for session in sessions for message in session.messages]
    assert {len(message.recipients) for message in messages} == {0, 1, 2, 3}
    assert any(message.recipients and message.refused for message in messages)
    assert all(address.endswith(f"@{REFUSED_DOMAIN}") for message in messages for address in message.recipients)
    assert all(address.endswith(f"@{UNROUTED_DOMAIN}") for message in messages for address in message.refused)


def test_one_at_a_time_is_one_message_a_session_and_a_drain() -> None:
    scenario = scenarios.load("one-at-a-time")
    assert scenario.portion == 1
    assert [len(session.messages) for session in scenario.plan(1, 0, 5).values()] == [1] * 5


@pytest.mark.parametrize("spelling", ["rejected-reuse", "rejected_reuse"])
def test_dash_and_underscore_mean_the_same(spelling: str) -> None:
    assert scenarios.load(spelling).name == "rejected-reuse"


def test_a_scenario_can_be_loaded_again_from_where_it_was_found() -> None:
    first = scenarios.load("accepted")
    again = scenarios.load(first.path)
    assert (again.name, again.path) == (first.name, first.path)


def test_an_unknown_name_is_answered_with_the_nearest_and_all() -> None:
    with pytest.raises(ScenarioError, match=r"did you mean rejected-reuse\?.*accepted, .*, rejected-reuse"):
        scenarios.load("rejectd-reuse")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("x = 1\n", "declares no scenario"),
        ("SCENARIO = 1\n", "declares no scenario"),
        ("x = 1\ndef (:\n", r"own\.py:2: "),
        ("x = 1\n\nimport nothing_of_that_name\n", r"own\.py:3: ModuleNotFoundError"),
        ("raise KeyError('broken')\n", r"own\.py:1: KeyError"),
        ("raise SystemExit(0)\n", r"own\.py:1: SystemExit: 0"),
    ],
)
def test_a_file_that_is_no_scenario_is_named_with_the_line(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "own.py"
    path.write_text(text)
    with pytest.raises(ScenarioError, match=complaint):
        scenarios.load(str(path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"gone\.py: no such scenario file"):
        scenarios.load(str(tmp_path / "gone.py"))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"units_per_session": 0}, "units_per_session is 0"),
        ({"portion": 0}, "portion is 0"),
        ({"first_dose": -1}, "first_dose is -1"),
        ({"needs": ("wings",)}, "no target has 'wings'; there is tls, auth"),
        ({"promises": (Promise("happiness", 1),)}, "nobody counts the promised 'happiness'"),
    ],
)
def test_a_scenario_that_cannot_be_is_refused(changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        tiny(**changes)


def test_a_dose_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="a dose of 0 units"):
        tiny().plan(1, 0, 0)


@pytest.mark.parametrize("address", ["", "bob", "b b@x", "bob@x\r\nRCPT TO:<eve@x", "b\u00f6b@x", "<bob@x>"])
def test_an_address_that_no_client_could_send_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="is no address"):
        Message(DEFAULT_SENDER, (address,))


def test_a_message_to_nobody_and_a_body_without_its_end_are_refused() -> None:
    with pytest.raises(ValueError, match="without any recipient"):
        Message(DEFAULT_SENDER, ())
    with pytest.raises(ValueError, match="a body of 1 bytes"):
        Message(DEFAULT_SENDER, (f"a@{ACCEPTED_DOMAIN}",), size_bytes=1)


def test_the_controller_stays_plain_python() -> None:
    """Neither scenarios nor the controller's side of the load may bring gevent's patches, or an event loop."""
    program = (
        "import sys; from harness import scenario; import harness.load.process\n"
        "for name in scenario.names(): scenario.load(name)\n"
        "print([name for name in ('locust', 'gevent', 'asyncio', 'aiosmtplib') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"
