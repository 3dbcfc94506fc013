"""auth-failures: logins that are wrong, broken off, no base64, or too late; and some that are right.

seatbelt run auth-failures
locust -f scenarios/auth_failures.py --host smtp://127.0.0.1:2525 --headless -u 5 -t 10s
"""

from __future__ import annotations

from base64 import b64encode
from random import Random

from harness.locust_plugin import locust_user
from harness.scenario import ACCEPTED_DOMAIN, LOGIN, PASSWORD, End, Scenario, SessionPlan, Step
from harness.steps import EHLO, GREETING, STARTTLS, transaction
from reports.record import Promise


def plain(user: str, password: str) -> bytes:
    """RFC 4616."""
    return b"AUTH PLAIN " + b64encode(f"\0{user}\0{password}".encode()) + b"\r\n"


SECURE = (GREETING, EHLO, STARTTLS, EHLO)
WRONG = Step(plain(LOGIN, "wrong"), expect="5")
NOBODY = Step(plain("nobody", PASSWORD), expect="5")
RIGHT = Step(plain(LOGIN, PASSWORD))
ASKS = Step(b"AUTH LOGIN\r\n", expect="3")
NAME = Step(b64encode(LOGIN.encode()) + b"\r\n", expect="3")
ENDINGS: tuple[tuple[tuple[Step, ...], End], ...] = (
    ((*SECURE, WRONG), "quit"),
    ((*SECURE, NOBODY, WRONG), "fin"),
    ((*SECURE, Step(b"AUTH PLAIN !\r\n", expect="5")), "quit"),
    ((*SECURE, Step(b"AUTH PLAIN\r\n", expect="3"), Step(b"*\r\n", expect="5")), "quit"),
    ((*SECURE, ASKS, NAME, Step(b"*\r\n", expect="5")), "quit"),
    ((*SECURE, ASKS), "fin"),
    ((*SECURE, ASKS, NAME), "rst"),
    ((GREETING, EHLO, Step(plain(LOGIN, PASSWORD), expect="5")), "quit"),  # not without TLS
    ((*SECURE, RIGHT), "quit"),
    ((*SECURE, WRONG, RIGHT, *transaction(f"user@{ACCEPTED_DOMAIN}")), "quit"),
)


def session(random: Random, units: int) -> SessionPlan:
    steps, end = random.choice(ENDINGS)
    return SessionPlan(steps=steps, end=end)


SCENARIO = Scenario(
    name="auth-failures",
    story="Logins that are wrong, cancelled, no base64 or broken off, and the client is gone; some are right.",
    unit="session",
    session=session,
    units_per_session=1,
    needs=("tls", "auth"),
    first_dose=20,
    promises=(Promise("sessions", 300, advice="see in the target's log why it did not greet"),),
)

User = locust_user(SCENARIO)
