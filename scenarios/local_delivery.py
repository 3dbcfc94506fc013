"""local-delivery: a maildir, and programs that fail, flood, do not read, or take their time.

seatbelt run local-delivery
"""

from __future__ import annotations

from random import Random

from harness.locust_plugin import locust_user
from harness.scenario import DEFAULT_SENDER, LOCAL_DOMAINS, Message, Scenario, SessionPlan
from reports.record import Promise

PROGRAMS = [domain for domain in LOCAL_DOMAINS if domain != "maildir.test"]


def session(random: Random, units: int) -> SessionPlan:
    # One copy into the maildir, where it is found again; the other through a program.
    sizes = (100, 2048, 30_000)
    return SessionPlan(
        tuple(
            Message(DEFAULT_SENDER, ("user@maildir.test", f"user@{random.choice(PROGRAMS)}"), size_bytes=size)
            for size in random.choices(sizes, k=units)
        )
    )


SCENARIO = Scenario(
    name="local-delivery",
    story="Mail for the server's own users: a maildir, and programs that fail, flood, do not read, take their time.",
    unit="message",
    session=session,
    units_per_session=5,
    needs=("local",),
    first_dose=10,
    promises=(Promise("delivered", 120, advice="see in the target's log why mail was not delivered"),),
)

User = locust_user(SCENARIO)
