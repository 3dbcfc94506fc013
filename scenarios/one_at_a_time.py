"""one-at-a-time: one message, then silence, then the next.

On a server that sends a message now and then, everything that stands for its destination (relay, route, host,
connector) is built for one message and torn down after it. What is forgotten in the tearing down is lost once a
message. Under steady load nothing shows: the objects live on and are used again. So here each message is drained before
the next.

    seatbelt run one-at-a-time
    locust -f scenarios/one_at_a_time.py --host smtp://127.0.0.1:2525 --headless -u 1 -t 10s
"""

from __future__ import annotations

from random import Random

from harness.locust_plugin import locust_user
from harness.scenario import ACCEPTED_DOMAIN, DEFAULT_SENDER, Message, Scenario, SessionPlan
from reports.record import Promise


def session(random: Random, units: int) -> SessionPlan:
    recipient = f"user{random.randrange(1000)}@{ACCEPTED_DOMAIN}"
    return SessionPlan((Message(DEFAULT_SENDER, (recipient,)),) * units)


SCENARIO = Scenario(
    name="one-at-a-time",
    story=(
        "One message is delivered and the target comes to rest before the next one is submitted, so that whatever "
        "stands for the destination is built and torn down once a message."
    ),
    unit="message",
    session=session,
    units_per_session=1,
    first_dose=5,
    portion=1,
    promises=(
        Promise("delivered", 75, advice="see in the target's log why messages were not delivered"),
        Promise(
            "sessions_out",
            75,
            advice="the target keeps its session to the remote MX for the next message: shorten its idle time",
        ),
    ),
)

User = locust_user(SCENARIO)
