"""tempfail-retry: the remote MX puts mail off, and takes it at another time.

seatbelt run tempfail-retry
locust -f scenarios/tempfail_retry.py --host smtp://127.0.0.1:2525 --headless -u 5 -t 10s
"""

from __future__ import annotations

from random import Random

from harness.locust_plugin import locust_user
from harness.scenario import ACCEPTED_DOMAIN, DEFAULT_SENDER, Message, Scenario, SessionPlan
from reports.record import Promise


def session(random: Random, units: int) -> SessionPlan:
    def relayed() -> Message:
        mailboxes = random.sample(range(1000), random.randint(1, 3))
        return Message(DEFAULT_SENDER, tuple(f"user{number}@{ACCEPTED_DOMAIN}" for number in mailboxes))

    return SessionPlan(tuple(relayed() for _ in range(units)))


SCENARIO = Scenario(
    name="tempfail-retry",
    story="A remote MX answers 4xx to every other recipient; each message is tried again until it is delivered.",
    unit="message",
    session=session,
    units_per_session=10,
    refuses="rcpt=451/2 end=451/5",
    promises=(Promise("delivered", 300, advice="see in the target's log why mail was not retried"),),
    hurry=True,
)

User = locust_user(SCENARIO)
