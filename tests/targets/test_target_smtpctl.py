"""What smtpctl says, read: OpenSMTPD's own words."""

from __future__ import annotations

from harness.targets import smtpctl

STATS = """\
control.session=1
mta.session=2
mta.task=3
scheduler.envelope=12
scheduler.envelope.inflight=5
uptime=381
uptime.human=6m21s
"""
ROUTES = """\
1. [] <-> 127.0.0.1 (localhost) nconn=0 nerror=0 penalty=1 timeout=12s
12. [] <-> 127.0.0.2 --- nconn=1 nerror=0 penalty=0 timeout=-
"""


def test_what_moves_what_waits_and_what_is_counted() -> None:
    counted = smtpctl.counters(STATS)
    assert "uptime.human" not in counted
    rest = smtpctl.rest(counted, ["smtp.session", "mta.task", "scheduler.envelope.inflight"], {"mta.task": "transfer"})
    assert rest.busy == {"mta.task": 3, "scheduler.envelope.inflight": 5}
    assert (rest.backlog, rest.gauges) == (7, {"mta.task": "transfer"})
    assert rest.counters == counted


def test_numbers_of_routes() -> None:
    assert smtpctl.routes(ROUTES) == ["1", "12"]
    assert smtpctl.routes("") == []
