"""dns-trouble: mail to names that the DNS does not know, fails to say, says late, or says too much of.

Every failure but "unknown" and "takes no mail" passes when it is tried again, so that each dose comes to its end.

seatbelt run dns-trouble
"""

from __future__ import annotations

from random import Random

from harness.locust_plugin import locust_user
from harness.scenario import DEFAULT_SENDER, DNS_DOMAINS, Message, Scenario, SessionPlan
from reports.record import Promise

TIMEOUTS = "timeout.test"  # a second each: now and then is enough


def session(random: Random, units: int) -> SessionPlan:
    weights = [1 if domain == TIMEOUTS else 8 for domain in DNS_DOMAINS]
    domains = random.choices(DNS_DOMAINS, weights, k=units)
    return SessionPlan(tuple(Message(DEFAULT_SENDER, (f"user@{domain}",), size_bytes=512) for domain in domains))


SCENARIO = Scenario(
    name="dns-trouble",
    story="Names that are unknown, take no mail, fail or time out at first, or need TCP; by name to the remote MX.",
    unit="message",
    session=session,
    units_per_session=5,
    needs=("dns",),
    hurry=True,
    first_dose=10,
    promises=(Promise("accepted", 150, advice="see in the target's log why it took so little"),),
)

User = locust_user(SCENARIO)
