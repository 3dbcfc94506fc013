"""The record keeps what was said, so that a like dialogue can be held without the scenario."""

from __future__ import annotations

from harness.run.accounts import planned
from harness.scenario import Message, SessionPlan, Step


def test_messages_and_raw_steps_are_kept_as_they_were_planned() -> None:
    kept = planned(SessionPlan((Message("a@b.test", ("c@d.test",), refused=("e@f.test",), size_bytes=99),)), 1)
    (message,) = kept.messages
    assert (message.sender, message.recipients, message.refused, message.size_bytes) == (
        "a@b.test",
        ["c@d.test"],
        ["e@f.test"],
        99,
    )
    raw = bytes(range(256))
    kept = planned(SessionPlan(steps=(Step(raw, expect="5", tls=True),), end="rst"), 2)
    (step,) = kept.steps
    assert step.send.encode("latin-1") == raw
    assert (step.expect, step.tls, kept.end, kept.units) == ("5", True, "rst", 2)
