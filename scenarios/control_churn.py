"""control-churn: an operator who traces, profiles, asks, and hangs up in the middle, while a little mail flows.

seatbelt run control-churn
locust -f scenarios/control_churn.py --host smtp://127.0.0.1:2525 --headless -u 5 -t 10s    (the mail alone)
"""

from __future__ import annotations

from random import Random

from harness.locust_plugin import locust_user
from harness.scenario import ACCEPTED_DOMAIN, DEFAULT_SENDER, Message, Scenario, SessionPlan
from reports.record import Promise


def session(random: Random, units: int) -> SessionPlan:
    recipient = f"user{random.randrange(1000)}@{ACCEPTED_DOMAIN}"
    return SessionPlan((Message(DEFAULT_SENDER, (recipient,), size_bytes=512),) * units)


SCENARIO = Scenario(
    name="control-churn",
    story="An operator traces, profiles, lists and asks, and often hangs up before the answer; a little mail flows.",
    unit="operation",
    session=session,
    units_per_session=5,
    operations=(
        "trace",
        "show stats",
        "vanish",
        "profile",
        "show queue",
        "half a request",
        "show hosts",
        "untrace",
    ),
    first_dose=40,
    promises=(Promise("delivered", 300, advice="see in the target's log why mail was not delivered"),),
)

User = locust_user(SCENARIO)
