"""backlog: mail piles up before a remote MX that greets nobody, and goes out when it does.

seatbelt run backlog
locust -f scenarios/backlog.py --host smtp://127.0.0.1:2525 --headless -u 5 -t 10s
"""

from __future__ import annotations

from random import Random

from harness.load import locust_user
from harness.scenario import ACCEPTED_DOMAIN, DEFAULT_SENDER, Message, Scenario, SessionPlan
from reports.record import Promise


def session(random: Random, units: int) -> SessionPlan:
    messages = (
        Message(DEFAULT_SENDER, (f"user{random.randrange(1000)}@{ACCEPTED_DOMAIN}",), size_bytes=1024)
        for _ in range(units)
    )
    return SessionPlan(tuple(messages))


SCENARIO = Scenario(
    name="backlog",
    story="The remote MX greets nobody until a whole dose is queued: what is kept for each waiting message shows here.",
    unit="message",
    session=session,
    units_per_session=20,
    hold_backlog=True,
    first_dose=60,
    promises=(Promise("delivered", 500, advice="see in the target's log why mail was not delivered"),),
)

User = locust_user(SCENARIO)
