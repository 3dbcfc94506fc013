"""slow-client: commands and bodies that arrive in small pieces with pauses between them.

seatbelt run slow-client
locust -f scenarios/slow_client.py --host smtp://127.0.0.1:2525 --headless -u 5 -t 10s
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

from harness.locust_plugin import locust_user
from harness.scenario import ACCEPTED_DOMAIN, Scenario, SessionPlan, Step
from harness.steps import EHLO, GREETING, transaction
from reports.record import Promise


def session(random: Random, units: int) -> SessionPlan:
    def slowly(step: Step) -> Step:
        return replace(step, piece_bytes=max(1, len(step.send) // 3), pause_s=0.005)

    recipient = f"user{random.randrange(1000)}@{ACCEPTED_DOMAIN}"
    steps = (EHLO, *(step for _ in range(units) for step in transaction(recipient)))
    return SessionPlan(steps=(GREETING, *(slowly(step) for step in steps)))


SCENARIO = Scenario(
    name="slow-client",
    story="Commands and bodies arrive in thirds, with pauses: what waits for the rest must not stay behind.",
    unit="message",
    session=session,
    units_per_session=2,
    users=20,  # who mostly wait
    promises=(Promise("delivered", 300, advice="see in the target's log why mail was not delivered"),),
)

User = locust_user(SCENARIO)
