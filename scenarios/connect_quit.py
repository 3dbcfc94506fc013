"""connect-quit: sessions in which nothing happens: greeting, EHLO, QUIT; or greeting and QUIT; or nothing at all.

Health checks and port scans do this all day. Whatever a session costs when it is set up must be paid back when it ends,
without any mail that would exercise the rest.

    seatbelt run connect-quit
    locust -f scenarios/connect_quit.py --host smtp://127.0.0.1:2525 --headless -u 5 -t 10s
"""

from __future__ import annotations

from random import Random

from harness.locust_plugin import locust_user
from harness.scenario import Scenario, SessionPlan
from harness.steps import EHLO, GREETING, HELO, NOOP
from reports.record import Promise


def session(random: Random, units: int) -> SessionPlan:
    return SessionPlan(steps=random.choice(((GREETING,), (GREETING, EHLO), (GREETING, HELO, NOOP))))


SCENARIO = Scenario(
    name="connect-quit",
    story="Sessions without mail: a greeting, perhaps EHLO, and QUIT, as health checks and scanners hold them.",
    unit="session",
    session=session,
    units_per_session=1,
    promises=(Promise("sessions", 300, advice="see in the target's log why it did not greet"),),
)

User = locust_user(SCENARIO)
