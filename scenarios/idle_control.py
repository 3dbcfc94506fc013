"""idle-control: nothing. What grows here grows by itself, and is not to be laid at the door of any mail.

seatbelt run idle-control
"""

from __future__ import annotations

from random import Random

from harness.locust_plugin import locust_user
from harness.scenario import Scenario, SessionPlan
from harness.steps import GREETING


def session(random: Random, units: int) -> SessionPlan:
    return SessionPlan(steps=(GREETING,))


SCENARIO = Scenario(
    name="idle-control",
    story="A single connection a dose, to see that the target is there, and otherwise nothing.",
    unit="look",
    session=session,
    units_per_session=1,
    first_dose=1,
)

User = locust_user(SCENARIO)
