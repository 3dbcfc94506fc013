"""descriptor-famine: more clients than the target may have descriptors; who is told 421 comes again.

seatbelt run descriptor-famine
"""

from __future__ import annotations

from random import Random

from harness.locust_plugin import locust_user
from harness.scenario import Scenario, SessionPlan, Step
from reports.record import Promise

STAYS_S = 0.1
ASK = Step(expect="24")  # 220, or 421 when there is no room


def session(random: Random, units: int) -> SessionPlan:
    if random.random() < 0.9:
        # Takes a descriptor for a while, or is turned away.
        return SessionPlan(steps=(ASK, Step(b"", expect="", pause_s=STAYS_S)), end=random.choice(("fin", "rst")))
    return SessionPlan(steps=(ASK,), end="fin")


SCENARIO = Scenario(
    name="descriptor-famine",
    story="More clients at once than the server has descriptors for: some are told 421, and nothing is kept of them.",
    unit="connection",
    session=session,
    units_per_session=1,
    nofile=64,
    users=80,
    first_dose=100,
    promises=(Promise("sessions", 1000, advice="see in the target's log why it did not greet"),),
)

User = locust_user(SCENARIO)
