from __future__ import annotations

import numpy as np
from detector_worlds import World, connection, record_of

from harness.detectors import invariants
from reports.record import Incident, RunRecord


def clean() -> RunRecord:
    return record_of(World(np.random.default_rng(1)))


def test_a_clean_run_breaks_none() -> None:
    assert invariants.judge(clean()) == []


def test_a_death_is_a_finding_with_its_words() -> None:
    record = clean()
    record.doses[3].began = 8.0
    record.incidents.append(Incident("died", "transfer died: signal 11", at=9.0, role="transfer", pid=107))
    [finding] = invariants.judge(record)
    assert (finding.resource, finding.kind, finding.role, finding.pids) == ("process", "died", "transfer", [107])
    assert finding.label == "transfer died"
    assert finding.message == "transfer died: signal 11"


def test_deaths_of_one_role_are_one_finding_and_say_how_often() -> None:
    record = clean()
    for pid in (107, 207):
        record.incidents.append(Incident("died", "signal 6", role="transfer", pid=pid, dose=2))
    [finding] = invariants.judge(record)
    assert finding.message == "transfer died: signal 6 (2 times)"
    assert (finding.count, finding.first_dose, finding.pids) == (2, 2, [107, 207])


def test_sessions_that_were_broken_off_are_a_finding_of_who_serves_them() -> None:
    record = clean()
    said = "3 sessions of dose 3 were broken off: RCPT: the server closed the connection"
    record.incidents.append(Incident("broken-off", said, role="smtp", pid=103, dose=2, count=3))
    [finding] = invariants.judge(record)
    assert (finding.resource, finding.kind, finding.role, finding.pids) == ("socket", "broken-off", "smtp", [103])
    assert (finding.count, finding.unit, finding.first_dose, finding.examples) == (3, "session", 2, [said])
    assert finding.message == "smtp broke off 3 sessions in the middle, without a 421"
    record.incidents[0].role, record.incidents[0].count = "", 1
    assert invariants.judge(record)[0].message == "the target broke off 1 session in the middle, without a 421"


def test_lost_mail_is_named_by_message_id() -> None:
    record = clean()
    record.work.accepted, record.work.lost = 300, 2
    record.mail = {"a@x": "delivered", "b@x": "lost", "c@x": "lost"}
    [finding] = invariants.judge(record)
    assert (finding.resource, finding.kind, finding.count) == ("mail", "lost", 2)
    assert finding.examples == ["b@x", "c@x"]
    assert finding.low < finding.rate == 2 / 300 < finding.high
    assert finding.message.startswith("2 of 300 accepted messages were lost")


def test_duplicated_mail_is_a_finding() -> None:
    record = clean()
    record.work.duplicated = 1
    [finding] = invariants.judge(record)
    assert (finding.resource, finding.kind) == ("mail", "duplicated")
    assert "1 of 320 accepted messages was delivered more than once" in finding.message


def test_not_coming_to_rest_says_what_was_still_open() -> None:
    record = clean()
    dose = record.doses[-1]
    dose.rested = False
    dose.snapshot.backlog = 3
    dose.snapshot.counters = {"mta.session": 2, "mta.session.total": 900, "scheduler.envelope.inflight": 0}
    dose.snapshot.processes[6].descriptors.append(connection(90, 90))
    record.incidents.append(Incident("restless", "not at rest 30 s after dose 5: mta.session 2", dose=4))
    [finding] = invariants.judge(record)
    assert (finding.resource, finding.kind, finding.first_dose) == ("task", "restless", 4)
    for seen in ("3 envelopes", "mta.session 2", "1 tcp/ESTABLISHED to *:high in transfer"):
        assert seen in finding.message
    assert "mta.session.total" not in finding.message
    assert finding.pids == [107]


def test_an_incident_alone_is_enough_to_be_restless() -> None:
    record = clean()
    record.incidents.append(Incident("restless", "descriptors that keep changing 1", dose=2))
    [finding] = invariants.judge(record)
    assert finding.first_dose == 2
    assert finding.examples == ["descriptors that keep changing 1"]


def test_other_incidents_are_no_findings() -> None:
    record = clean()
    record.incidents += [Incident("load", "gone"), Incident("interrupted", "Ctrl-C"), Incident("target", "mute")]
    assert invariants.judge(record) == []
