"""bounce-storm: every message fails for good, and every bounce too.

Half of the reports find the sender's server; the others are refused there, and a bounce that cannot be delivered is
dropped, for it has nobody to go to (RFC 5321 §6.1).

    seatbelt run bounce-storm
    locust -f scenarios/bounce_storm.py --host smtp://127.0.0.1:2525 --headless -u 5 -t 10s
"""

from __future__ import annotations

from random import Random

from harness.locust_plugin import locust_user
from harness.scenario import DEFAULT_SENDER, REFUSED_DOMAIN, Message, Scenario, SessionPlan
from reports.record import Promise

DEAF_SENDER = f"bob@{REFUSED_DOMAIN}"  # its server refuses all


def session(random: Random, units: int) -> SessionPlan:
    def doomed(number: int) -> Message:
        recipients = tuple(f"user{number}@{REFUSED_DOMAIN}" for number in range(random.randint(1, 4)))
        return Message(DEAF_SENDER if number % 2 else DEFAULT_SENDER, recipients)

    return SessionPlan(tuple(doomed(number) for number in range(units)))


SCENARIO = Scenario(
    name="bounce-storm",
    story="Every message is refused and bounced, and half of the bounces are refused as well.",
    unit="refused message",
    session=session,
    units_per_session=10,
    refuses=f"end@{REFUSED_DOMAIN}=554",
    promises=(Promise("accepted", 300, advice="see in the target's log why it took so little"),),
)

User = locust_user(SCENARIO)
