"""refused: sessions with a recipient that the target refuses; half of them end by QUIT, half by hanging up.

What the C server (`leaky.c`) can be made to leak, each of these sessions makes it leak, or every other one.
"""

from __future__ import annotations

from random import Random

from harness.locust_plugin import locust_user
from harness.scenario import UNROUTED_DOMAIN, Scenario, SessionPlan
from harness.steps import EHLO, GREETING, mail, rcpt
from reports.record import Promise


def session(random: Random, units: int) -> SessionPlan:
    steps = (GREETING, EHLO, mail(), rcpt(f"nobody@{UNROUTED_DOMAIN}", expect="5"))
    return SessionPlan(steps=steps, end=random.choice(("quit", "fin")))


SCENARIO = Scenario(
    name="refused",
    story="Each session has one recipient, who is refused; then the client says QUIT, or hangs up without.",
    unit="session",
    session=session,
    units_per_session=1,
    promises=(Promise("refused_recipients", 300, advice="see in the target's log why it did not refuse"),),
)

User = locust_user(SCENARIO)
