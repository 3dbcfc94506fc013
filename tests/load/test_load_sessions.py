"""Tickets out, outcomes back: what is cut short is counted exactly."""

from __future__ import annotations

import time

import gevent
import pytest

from harness.load.doses import Doses
from harness.load.orders import GiveDose
from harness.load.sessions import LoadStuck, Sessions
from harness.load.tally import Outcome, Tally, Ticket
from harness.scenario import Message, Scenario, SessionPlan

ADDRESS = ("192.0.2.1", 25)


def scenario(units_per_session: int = 10) -> Scenario:
    return Scenario(
        name="any",
        story="",
        unit="message",
        session=lambda random, units: SessionPlan((Message("a@sender.test", ("b@accepted.test",)),) * units),
        units_per_session=units_per_session,
    )


def user(sessions: Sessions, took_s: float = 0.0, taken: list[Ticket] | None = None) -> gevent.Greenlet:
    """Holds one session after the other."""

    def hold() -> None:
        while True:
            ticket = sessions.take()
            if taken is not None:
                taken.append(ticket)
            gevent.sleep(took_s)
            sessions.give(Outcome(greeted=True, finished=True, messages=len(ticket.plan.messages)))

    return gevent.spawn(hold)


def test_a_dose_is_held_by_whoever_takes_it() -> None:
    sessions = Sessions()
    taken: list[Ticket] = []
    users = [user(sessions, taken=taken) for _ in range(3)]
    tally = Doses(scenario(), 7, ADDRESS, sessions).give_dose(GiveDose(2, 25, 0, 10.0))
    assert (tally.dose, tally.units, tally.sessions, tally.messages, tally.last) == (2, 25, 3, 25, False)
    assert [ticket.name for ticket in taken] == ["7.2.0", "7.2.10", "7.2.20"]
    assert [ticket.units for ticket in taken] == [10, 10, 5]
    assert {ticket.address for ticket in taken} == {ADDRESS}
    gevent.killall(users)


def test_a_dose_that_is_cut_short_is_worth_the_sessions_that_had_begun() -> None:
    sessions = Sessions()
    taken: list[Ticket] = []
    users = [user(sessions, took_s=0.05, taken=taken) for _ in range(2)]
    doses = Doses(scenario(), 7, ADDRESS, sessions)
    gevent.spawn_later(0.12, doses.cut_short)
    tally = doses.give_dose(GiveDose(0, 1000, 0, 10.0))
    assert 0 < tally.units < 1000
    assert tally.units == 10 * len(taken) == tally.messages, "and none of them was cut off"
    assert (tally.unfinished, tally.last) == (0, False)
    assert doses.give_dose(GiveDose(1, 20, 0, 10.0)).units == 20, "the next dose is a whole one"
    assert not doses.cut_short(), "between two doses there is nothing to cut"
    gevent.killall(users)


def test_after_the_end_no_dose_holds_a_session() -> None:
    sessions = Sessions()
    users = [user(sessions, took_s=0.05)]
    doses = Doses(scenario(), 7, ADDRESS, sessions)
    gevent.spawn_later(0.02, doses.wind_up)
    last = doses.give_dose(GiveDose(0, 1000, 0, 10.0))
    assert (last.units, last.last) == (10, True)
    after = doses.give_dose(GiveDose(1, 20, 0, 10.0))
    assert (after.units, after.sessions, after.last) == (0, 0, True)
    gevent.killall(users)


def test_sessions_that_do_not_come_back_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.load.sessions.GRACE_S", 0.05)
    plan = SessionPlan((Message("a@sender.test", ("b@accepted.test",)),))
    with pytest.raises(LoadStuck, match="2 of 2 sessions of the dose did not come back"):
        Sessions().hold(0, [Ticket(f"1.0.{number}", plan, time.monotonic() + 0.05) for number in range(2)])


def test_tallies_of_several_holders_add_up() -> None:
    one = Tally(3, 10, 1.0, 1, 0, 0, 10, ["a"], 2, 40, 0, [], {10: 30, 20: 10})
    two = Tally(3, 20, 2.0, 2, 1, 1, 19, ["b", "c"], 3, 80, 1, ["RCPT: no"], {10: 80})
    both = Tally(3)
    both.include(one)
    both.include(two)
    assert both == Tally(3, 30, 2.0, 3, 1, 1, 29, ["a", "b", "c"], 5, 120, 1, ["RCPT: no"], {10: 110, 20: 10})
