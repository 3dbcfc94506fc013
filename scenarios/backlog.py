"""backlog: mail piles up before a remote MX that greets nobody, and goes out when it does; then the next pile.

seatbelt run backlog
locust -f scenarios/backlog.py --host smtp://127.0.0.1:2525 --headless -u 5 -t 10s
"""

from __future__ import annotations

from random import Random

from harness.locust_plugin import locust_user
from harness.scenario import ACCEPTED_DOMAIN, DEFAULT_SENDER, Message, Scenario, SessionPlan
from reports.record import Promise

PILE = 60  # messages: more than a relay takes at once, so that scheduler must hold some back


def session(random: Random, units: int) -> SessionPlan:
    messages = (
        Message(DEFAULT_SENDER, (f"user{random.randrange(1000)}@{ACCEPTED_DOMAIN}",), size_bytes=512)
        for _ in range(units * PILE)
    )
    return SessionPlan(tuple(messages))


SCENARIO = Scenario(
    name="backlog",
    story="The remote MX greets nobody until a pile of mail waits: what is kept of each pile, or burst, shows here.",
    unit="backlog",
    session=session,
    units_per_session=1,
    portion=1,
    hold_backlog=True,
    first_dose=2,
    promises=(Promise("delivered", 1500, advice="see in the target's log why mail was not delivered"),),
)

User = locust_user(SCENARIO)
