"""JUnit XML: what a CI server counts, and that nothing of the target's can break the document."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports import junit
from tests.reports.drawn import record


def test_a_finding_is_the_failure_of_its_role_and_resource() -> None:
    root = ET.fromstring(junit.render(record()))
    [suite] = root
    failed = [case for case in suite.iter("testcase") if case.find("failure") is not None]
    assert [case.get("name") for case in failed] == ["transfer: descriptor is let go of"]
    failure = failed[0].find("failure")
    assert failure is not None
    assert failure.text is not None
    assert "disk.py:184" in failure.text
    assert suite.get("failures") == "1"
    assert suite.get("tests") == str(len(list(suite.iter("testcase"))))


def test_a_clean_run_has_no_failure_and_an_inconclusive_one_is_an_error() -> None:
    for verdict, errors in (("clean", "0"), ("inconclusive", "1")):
        root = ET.fromstring(junit.render(record(verdict)))  # type: ignore[arg-type]
        assert (root.get("failures"), root.get("errors")) == ("0", errors)
    error = next(root.iter("error"))
    assert "promises 300" in error.get("message", "")


@pytest.mark.parametrize(("kind", "name"), junit.INVARIANTS.items())
def test_every_invariant_is_a_case_that_its_finding_fails(kind: str, name: str) -> None:
    one = record()
    one.findings[0].kind = kind
    failed = {
        case.get("name")
        for case in ET.fromstring(junit.render(one)).iter("testcase")
        if case.find("failure") is not None
    }
    assert failed == {name}


def test_where_no_mail_was_accepted_no_case_is_about_mail() -> None:
    one = record("clean")
    assert "mail:" not in junit.render(one)
    one.work.accepted = 1
    assert junit.render(one).count('name="mail: ') == 2


@given(st.text())
def test_whatever_the_target_says_the_document_is_well_formed(said: str) -> None:
    one = record()
    one.findings[0].message = one.findings[0].examples[0] = one.scenario = said
    ET.fromstring(junit.render(one))
