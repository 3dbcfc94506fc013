"""Markdown and GitHub's annotations: read by people and by a runner, neither misled by what a target said."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from reports import markdown
from tests.reports.drawn import HOSTILE, record


def outside_code(text: str) -> str:
    return re.sub(r"^(`{3,})\n.*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)


def test_the_verdict_comes_first_and_the_proof_is_a_table() -> None:
    lines = markdown.render(record()).splitlines()
    assert lines[0].startswith("### ❌ Seatbelt: LEAK: transfer keeps")
    assert "- How much: 0.987 for each refused message (95 % interval 0.966 to 0.996)" in lines
    assert "- Since when: dose 2 of 3, after 20 refused messages, 1.0 s into the run" in lines
    assert "| refused message | 20 | 40 |" in lines
    assert "| left | 19 | 39 |" in lines
    assert "mta_under_test/spool/disk.py:184 in message_fd (queue)" in lines


def test_nothing_that_the_target_said_is_markup() -> None:
    told = outside_code(markdown.render(record()))
    assert "<script>" not in told
    assert "@user" not in told
    assert HOSTILE not in told


def test_an_annotation_points_at_the_line_where_it_was_opened() -> None:
    [line] = markdown.workflow_commands(record())
    assert line.startswith(
        "::error file=mta_under_test/spool/disk.py,line=184,title=Seatbelt%3A rejected-reuse::transfer"
    )


def test_an_inconclusive_run_is_a_warning_and_a_clean_one_is_silent() -> None:
    assert markdown.workflow_commands(record("clean")) == []
    [line] = markdown.workflow_commands(record("inconclusive"))
    assert line.startswith("::warning title=")


@given(st.text())
def test_an_annotation_is_one_line_whatever_the_target_said(said: str) -> None:
    one = record()
    one.findings[0].message = said
    [line] = markdown.workflow_commands(one)
    assert "\n" not in line
    assert "\r" not in line
