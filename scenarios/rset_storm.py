"""rset-storm: transactions that are begun and taken back, hundreds in a session.

seatbelt run rset-storm
locust -f scenarios/rset_storm.py --host smtp://127.0.0.1:2525 --headless -u 5 -t 10s
"""

from __future__ import annotations

from random import Random

from harness.locust_plugin import locust_user
from harness.scenario import ACCEPTED_DOMAIN, DEFAULT_SENDER, Scenario, SessionPlan, Step
from harness.steps import EHLO, GREETING, RSET, mail, rcpt
from reports.record import Promise

RECIPIENT = f"user@{ACCEPTED_DOMAIN}"


def session(random: Random, units: int) -> SessionPlan:
    steps: list[Step] = [GREETING, EHLO]
    for _ in range(units):
        steps += (mail(DEFAULT_SENDER), *(rcpt(RECIPIENT) for _ in range(random.randrange(3))))
        # RSET, or EHLO, which does the same (RFC 5321 §4.1.4).
        steps.append(random.choices((RSET, EHLO), (4, 1))[0])
    return SessionPlan(steps=tuple(steps))


SCENARIO = Scenario(
    name="rset-storm",
    story="Each transaction is taken back before its data, by RSET or by another EHLO, many times in each session.",
    unit="abandoned transaction",
    session=session,
    units_per_session=20,
    first_dose=40,
    promises=(Promise("messages", 600, advice="see in the target's log why it refused MAIL"),),
)

User = locust_user(SCENARIO)
