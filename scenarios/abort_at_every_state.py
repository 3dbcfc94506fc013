"""abort-at-every-state: clients that are gone in the middle: in every state, by FIN, by RST, or in silence.

A server lets go of a session in as many places as it has states, and the place that forgets something is the one that
no well-behaved client ever reaches (OpenSMTPD 71960f60, Postfix 20080804, Exim #1329).

    seatbelt run abort-at-every-state
    locust -f scenarios/abort_at_every_state.py --host smtp://127.0.0.1:2525 --headless -u 5 -t 10s
"""

from __future__ import annotations

from random import Random

from harness.locust_plugin import locust_user
from harness.scenario import ACCEPTED_DOMAIN, UNROUTED_DOMAIN, End, Scenario, SessionPlan, Step
from harness.steps import DATA, EHLO, GREETING, RSET, body, header, mail, rcpt
from reports.record import Promise

RECIPIENT = f"user@{ACCEPTED_DOMAIN}"
WHOLE = (GREETING, EHLO, mail(), rcpt(RECIPIENT), DATA, header(RECIPIENT), body(4096))
STATES: tuple[tuple[Step, ...], ...] = (
    (Step(expect=""),),  # before the greeting is read
    *(WHOLE[:length] for length in range(1, len(WHOLE) + 1)),
    (*WHOLE[:3], rcpt(f"nobody@{UNROUTED_DOMAIN}", expect="5")),
    (*WHOLE[:4], RSET, mail()),
    (*WHOLE[:2], Step(b"MAIL FROM:<half a comm", expect="")),
    (*WHOLE, Step(b".\r\n", expect="")),  # the end of the data, and gone before the answer
    (*WHOLE[:5], Step(b"\r\n.", expect="")),  # half of the end of the data
)
ENDS: tuple[End, ...] = ("fin", "rst", "silence")


def session(random: Random, units: int) -> SessionPlan:
    # Silence takes its time: it is one in ten.
    end = random.choices(ENDS, (9, 9, 2))[0]
    return SessionPlan(steps=random.choice(STATES), end=end)


SCENARIO = Scenario(
    name="abort-at-every-state",
    story="In every state of an inbound session the client vanishes: it closes, resets, or says nothing more.",
    unit="aborted session",
    session=session,
    units_per_session=1,
    first_dose=40,
    promises=(Promise("sessions", 300, advice="see in the target's log why it did not greet"),),
)

User = locust_user(SCENARIO)
