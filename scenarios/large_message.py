"""large-message: messages of a megabyte, beside small ones, and some that are too large to be taken.

seatbelt run large-message
locust -f scenarios/large_message.py --host smtp://127.0.0.1:2525 --headless -u 5 -t 10s
"""

from __future__ import annotations

from random import Random

from harness.locust_plugin import locust_user
from harness.scenario import ACCEPTED_DOMAIN, DEFAULT_SENDER, Message, Scenario, SessionPlan
from reports.record import Promise

SIZES = (2, 1 << 10, 1 << 16, 1 << 20)  # bytes; the largest and the smallest body in each session


def session(random: Random, units: int) -> SessionPlan:
    sizes = [SIZES[number % len(SIZES)] for number in range(units)]
    random.shuffle(sizes)
    recipient = f"user{random.randrange(1000)}@{ACCEPTED_DOMAIN}"
    return SessionPlan(tuple(Message(DEFAULT_SENDER, (recipient,), size_bytes=size) for size in sizes))


SCENARIO = Scenario(
    name="large-message",
    story="Bodies from two bytes to a megabyte in one session: whoever keeps a buffer for a message shows it here.",
    unit="message",
    session=session,
    units_per_session=4,
    first_dose=8,
    promises=(Promise("delivered", 120, advice="see in the target's log why mail was not delivered"),),
)

User = locust_user(SCENARIO)
