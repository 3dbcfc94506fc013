"""reload-churn: the configuration is read anew for every message.

seatbelt run reload-churn
locust -f scenarios/reload_churn.py --host smtp://127.0.0.1:2525 --headless -u 5 -t 10s    (the mail alone)
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
    name="reload-churn",
    story="Configuration, tables and certificates are read again and again while mail comes and goes.",
    unit="reload",
    session=session,
    units_per_session=5,
    operations=("reload",),
    needs=("tls", "auth"),  # so that there is something to read
    first_dose=20,
    promises=(Promise("delivered", 120, advice="see in the target's log why mail was not delivered"),),
)

User = locust_user(SCENARIO)
