"""many-recipients: messages to three, ten, thirty and a hundred recipients; target and remote MX refuse some of them.

seatbelt run many-recipients
locust -f scenarios/many_recipients.py --host smtp://127.0.0.1:2525 --headless -u 5 -t 10s
"""

from __future__ import annotations

from random import Random

from harness.locust_plugin import locust_user
from harness.scenario import (
    ACCEPTED_DOMAIN,
    DEFAULT_SENDER,
    REFUSED_DOMAIN,
    UNROUTED_DOMAIN,
    Message,
    Scenario,
    SessionPlan,
)
from reports.record import Promise

SIZES = (3, 10, 30, 100)  # in turns; a hundred every server takes (RFC 5321, 4.5.3.1.8)


def session(random: Random, units: int) -> SessionPlan:
    def addressed(size: int) -> Message:
        refused = random.randrange(size // 2)
        recipients = [f"user{number}@{ACCEPTED_DOMAIN}" for number in range(size - refused)]
        recipients += [f"user{number}@{REFUSED_DOMAIN}" for number in range(refused)]
        random.shuffle(recipients)
        nobody = tuple(f"nobody{number}@{UNROUTED_DOMAIN}" for number in range(random.randrange(5)))
        return Message(DEFAULT_SENDER, tuple(recipients), refused=nobody)

    return SessionPlan(tuple(addressed(SIZES[number % len(SIZES)]) for number in range(units)))


SCENARIO = Scenario(
    name="many-recipients",
    story="Messages to 3, 10, 30 and 100 recipients: some are delivered, some refused here, some far away.",
    unit="message",
    session=session,
    units_per_session=4,
    first_dose=12,
    refuses=f"rcpt@{REFUSED_DOMAIN}=550",
    promises=(Promise("delivered", 60, advice="see in the target's log why mail was not delivered"),),
)

User = locust_user(SCENARIO)
