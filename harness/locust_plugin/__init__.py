"""The door of locust: every scenario file is a plain locustfile, and with a target it is a whole run.

    locust -f scenarios/rejected_reuse.py --host smtp://127.0.0.1:2525
    locust -f scenarios/rejected_reuse.py --seatbelt-target embedded --headless -u 5

Locust is in charge: it spawns the users, here or in workers, and shows its own pages. The controller that probes and
judges is a process of its own, as in every run, and plain Python: gevent's patches stay here. It orders doses over two
pipes, and locust's exit status is that of its verdict.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.load.user import MailUser
    from harness.scenario import Scenario


def locust_user(scenario: Scenario) -> type[MailUser] | None:
    """A locust user class that holds sessions of `scenario`; None where locust has not been loaded.

    So a scenario file is a plain locustfile to `locust -f`, and costs the controller, which reads it too, no import of
    locust and none of gevent's patches.
    """
    if "locust" not in sys.modules:
        return None
    from harness.load.user import endless
    from harness.locust_plugin import door

    door.listen()
    return endless(scenario)
