"""rejected-reuse: mail that a remote MX refuses, over and over in one session.

Every relayed message has one to three recipients, and the remote MX answers 550 to each of them: the message is refused
before its body is sent, the target says RSET and goes on with the next one in the same session. On the way in, each
session is reused too: now and then a recipient is one that the target itself refuses, and once a session all are, so
that the target must let go of a transaction that never got a body.

A target that ends a session after so many refusals in a row (OpenSMTPD since May 2013: ten) has the last of them
accepted, so that the session goes on; doses count what was refused.

    seatbelt run rejected-reuse
    locust -f scenarios/rejected_reuse.py --host smtp://127.0.0.1:2525 --headless -u 5 -t 10s
"""

from __future__ import annotations

from random import Random

from harness.locust_plugin import locust_user
from harness.scenario import DEFAULT_SENDER, REFUSED_DOMAIN, UNROUTED_DOMAIN, Message, Scenario, SessionPlan
from reports.record import Promise

MAILBOXES = 1000
NOBODY = f"nobody@{UNROUTED_DOMAIN}"


def session(random: Random, units: int) -> SessionPlan:
    def relayed() -> Message:
        mailboxes = random.sample(range(MAILBOXES), random.randint(1, 3))
        recipients = tuple(f"user{number}@{REFUSED_DOMAIN}" for number in mailboxes)
        return Message(DEFAULT_SENDER, recipients, refused=(NOBODY,) if random.random() < 0.25 else ())

    messages = [relayed() for _ in range(units)]
    # Never the last one: the session must go on after it.
    messages.insert(random.randrange(units), Message(DEFAULT_SENDER, (), refused=(NOBODY, f"also.{NOBODY}")))
    return SessionPlan(tuple(messages))


SCENARIO = Scenario(
    name="rejected-reuse",
    story=(
        "A remote MX refuses every recipient of every message, and the session to it is used again for the next "
        "message. Whoever opens something for a message and lets go of it only where a body ends keeps it."
    ),
    unit="refused message",
    session=session,
    units_per_session=10,
    refuses="rcpt=550",
    mixed=True,
    hold_backlog=True,
    promises=(
        Promise("refused_messages", 300, advice="give more sessions, or see in the target's log why it did not relay"),
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
