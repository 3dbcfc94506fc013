"""The second look: a finding's `opened_at` names the line that made what is kept, in the right process."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from harness import scenario as scenarios
from harness.run.accounts import opened
from harness.run.attribution import SecondLook
from harness.run.design import Design
from harness.targets.choice import Settings, choose
from harness.targets.embedded import Embedded
from reports.record import Finding
from tests.live import Live


def look(tmp_path: Path, scenario: str, defect: str, finding: Finding) -> str:
    make = partial(Embedded, version="test", defects=[defect])
    return explained(Design(scenarios.load(scenario), make, tmp_path), finding)


def explained(design: Design, finding: Finding) -> str:
    first = opened(design)
    first.findings = [finding]
    return SecondLook(design).explain(first)


def test_a_passed_descriptor_names_who_opened_it_and_who_received_it(tmp_path: Path) -> None:
    finding = Finding("descriptor", "file", "message file (deleted)", role="transfer", rate=0.98)
    assert look(tmp_path, "rejected-reuse", "transfer-fd-leak", finding).startswith("1 of 1 findings were seen again")
    opener, *_, receiver = finding.opened_at
    assert opener.startswith("mta_under_test/spool/disk.py:")
    assert opener.endswith("in message_fd (queue)")
    assert "(transfer), received" in receiver


@pytest.mark.parametrize("name", ["journal/*", "journal/* (deleted)"])
def test_a_file_that_was_deleted_by_the_first_run_is_known_again_when_it_is_not(tmp_path: Path, name: str) -> None:
    finding = Finding("descriptor", "file", f"spool file {name}", role="queue", rate=0.16)
    assert look(tmp_path, "tempfail-retry", "short-read-fd", finding).startswith("1 of 1 findings were seen again")
    assert finding.opened_at[0].endswith("in envelope_text (queue)")


def test_growing_memory_names_the_lines_that_made_it(tmp_path: Path) -> None:
    finding = Finding("memory", "python objects", "Python objects", role="transfer", rate=28.0)
    look(tmp_path, "one-at-a-time", "relay-object-leak", finding)
    assert any("mta_under_test/processes/transfer/" in site for site in finding.opened_at)
    assert all("(transfer)" in site for site in finding.opened_at)
    assert any("transfer.routes.Relay," in kind for kind in finding.examples)


@pytest.mark.parametrize(
    ("resource", "kind"), [("process", "died"), ("mail", "lost"), ("task", "restless"), ("socket", "broken-off")]
)
def test_what_was_never_opened_needs_no_second_look(tmp_path: Path, resource: str, kind: str) -> None:
    finding = Finding(resource, kind, kind)  # type: ignore[arg-type]
    assert look(tmp_path, "rejected-reuse", "transfer-fd-leak", finding) == ""
    assert finding.opened_at == []


def test_a_server_that_runs_already_is_left_as_it_is_and_the_record_says_so(tmp_path: Path) -> None:
    server = Live()
    try:
        make = choose("attach", Settings(attach=f":{server.port}"))
        finding = Finding("descriptor", "file", "file /tmp/*", role="python", rate=1.0)
        said = explained(Design(scenarios.load("connect-quit"), make, tmp_path), finding)
    finally:
        server.stop()
    assert said.startswith("what runs already is left as it is")
    assert f"strace -k -f -p {server.pid}" in said
    assert finding.opened_at == []
