"""starttls-failures: clients that ask for TLS and then do not speak it, speak it half, or hang up in it.

seatbelt run starttls-failures
locust -f scenarios/starttls_failures.py --host smtp://127.0.0.1:2525 --headless -u 5 -t 10s
"""

from __future__ import annotations

from random import Random

from harness.locust_plugin import locust_user
from harness.scenario import ACCEPTED_DOMAIN, End, Scenario, SessionPlan, Step
from harness.steps import EHLO, GREETING, STARTTLS, transaction
from reports.record import Promise

ASKED = (GREETING, EHLO, Step(b"STARTTLS\r\n"))  # … and no handshake follows
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"  # as a ClientHello begins (RFC 8446 §4.1.2)
SECURE = (GREETING, EHLO, STARTTLS, EHLO)
FAILURES: tuple[tuple[tuple[Step, ...], End], ...] = (
    (ASKED, "fin"),
    (ASKED, "rst"),
    ((*ASKED, Step(HELLO, expect="")), "fin"),
    ((*ASKED, Step(HELLO, expect="")), "rst"),
    ((*ASKED, Step(b"this is no handshake\r\n" * 20, expect="")), "fin"),
    ((GREETING, EHLO, Step(b"STARTTLS now\r\n", expect="5")), "quit"),
    (SECURE, "fin"),
    (SECURE, "rst"),
    (SECURE, "quit"),
    ((*SECURE, *transaction(f"user@{ACCEPTED_DOMAIN}")), "quit"),
)


def session(random: Random, units: int) -> SessionPlan:
    steps, end = random.choice(FAILURES)
    return SessionPlan(steps=steps, end=end)


SCENARIO = Scenario(
    name="starttls-failures",
    story="After STARTTLS the client says nonsense, half a hello, or nothing, and hangs up; some speak TLS well.",
    unit="session",
    session=session,
    units_per_session=1,
    needs=("tls",),
    first_dose=20,
    promises=(Promise("sessions", 300, advice="see in the target's log why it did not greet"),),
)

User = locust_user(SCENARIO)
