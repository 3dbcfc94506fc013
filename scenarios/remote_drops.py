"""remote-drops: the remote MX vanishes: after the greeting, at EHLO, MAIL, RCPT, DATA, or when the message is sent.

Every drop defers the message, so each dose is retried until it is through: the third time a recipient's domain is met
its session survives.

    seatbelt run remote-drops
    locust -f scenarios/remote_drops.py --host smtp://127.0.0.1:2525 --headless -u 5 -t 10s
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
    name="remote-drops",
    story="The remote MX drops the connection in every state of an outbound session; the mail goes through later.",
    unit="message",
    session=session,
    units_per_session=5,
    refuses="connect=drop/7 ehlo=fin/7 mail=drop/9 rcpt=fin/9 data=drop/9 end=drop/9",
    promises=(Promise("accepted", 75, advice="see in the target's log why it took so little"),),
    first_dose=5,
    hurry=True,
)

User = locust_user(SCENARIO)
