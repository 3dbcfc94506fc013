"""The load: locust users that hold whole SMTP sessions over aiosmtplib, in a process of their own."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.load.user import MailUser
    from harness.scenario import Scenario


def locust_user(scenario: Scenario) -> type[MailUser] | None:
    """A locust user class that holds sessions of `scenario` without end; None where locust has not been loaded.

    So a scenario file is a plain locustfile to `locust -f`, and costs the controller, which reads it too, no import of
    locust and none of gevent's patches.
    """
    if "locust" not in sys.modules:
        return None
    from harness.load.user import endless

    return endless(scenario)
