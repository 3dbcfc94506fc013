"""accepted: the control. The same traffic as rejected-reuse, and nobody refuses anything.

What leaks here leaks for every message; what leaks in rejected-reuse but not here leaks because of a refusal.

    seatbelt run accepted
    locust -f scenarios/accepted.py --host smtp://127.0.0.1:2525 --headless -u 5 -t 10s
"""

from __future__ import annotations

from random import Random

from harness.locust_plugin import locust_user
from harness.scenario import ACCEPTED_DOMAIN, DEFAULT_SENDER, Message, Scenario, SessionPlan
from reports.record import Promise

MAILBOXES = 1000


def session(random: Random, units: int) -> SessionPlan:
    def relayed() -> Message:
        mailboxes = random.sample(range(MAILBOXES), random.randint(1, 3))
        return Message(DEFAULT_SENDER, tuple(f"user{number}@{ACCEPTED_DOMAIN}" for number in mailboxes))

    return SessionPlan(tuple(relayed() for _ in range(units)))


SCENARIO = Scenario(
    name="accepted",
    story="Every message is accepted, relayed and delivered, many in each session: the control of rejected-reuse.",
    unit="message",
    session=session,
    units_per_session=10,
    hold_backlog=True,
    promises=(
        Promise("delivered", 300, advice="give more sessions, or see in the target's log why mail was not delivered"),
        Promise(
            "messages_per_session_out",
            20,
            advice="the target opens a session for few messages: allow it more messages in each",
        ),
        Promise(
            "messages_per_session_in", 5, advice="the target ends sessions early: raise its limit of mails in each"
        ),
    ),
)

User = locust_user(SCENARIO)
