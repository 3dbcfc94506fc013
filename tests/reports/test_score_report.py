"""The score, drawn: recall and false alarms are what the rows say, and the page needs nothing but itself."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path

import msgspec
from rich.console import Console

from reports.score import Row, Score, page, save, sums, tables

RULES = {"64 KB": True, "count": False}


def score() -> Score:
    found = Row("fd<leak>", "certain", "accepted", verdict="leak", right=True, by="descriptor: x in smtp", rate=0.9,
                true_rate=1.0, opener="a.py:f", attributed=True, rules=RULES, verdict_s=4.0, sessions=20)  # fmt: skip
    missed = Row("slow-leak", "slow", "accepted", verdict="inconclusive", reasons=["too little work"], rules=RULES)
    innocent = Row("cache", "innocent", "accepted", verdict="clean", rules=RULES)
    twin = Row("clean accepted 1", "clean", "accepted", verdict="leak", by="memory: Python objects", rules=RULES)
    return Score([found, missed, innocent, twin], jobs=2, seconds=60.0, command="seatbelt score")


def test_the_sums() -> None:
    text = "\n".join(sums(score()))
    assert re.search(r"recall, certain +1 of 1 \(100%\)", text)
    assert re.search(r"recall, slow +0 of 1 \(0%\)", text)
    assert re.search(r"false alarms +1 of 2 \(50%\)", text)
    assert re.search(r"rate error +10.0% in the median of 1", text)
    assert re.search(r"opener right +1 of 1", text)
    assert "rule 64 KB         recall 2 of 2 (100%), false alarms 2 of 2 (100%)" in text
    assert "rule count         recall 0 of 2 (0%), false alarms 0 of 2 (0%)" in text


def test_a_score_passes_when_every_certain_leak_is_found_and_nobody_is_accused() -> None:
    one = score()
    assert not one.is_passed
    one.rows = [row for row in one.rows if row.kind != "clean"]
    assert one.is_passed


def test_the_terminal_shows_every_run_and_the_matrix() -> None:
    console = Console(width=200, file=StringIO())
    for table in tables(score()):
        console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(row.name in text for row in score().rows)
    assert re.search(r"certain +1 +1 +0 +0 +0 +1 +0", text)


def test_the_page_escapes_and_is_whole() -> None:
    html = page(score())
    assert "fd&lt;leak&gt;" in html
    assert "fd<leak>" not in html
    assert not re.search(r"(src|href)=", html)
    assert html.count('class="failed"') == 2


def test_the_file_reads_back(tmp_path: Path) -> None:
    save(score(), tmp_path / "score.json")
    assert msgspec.json.decode((tmp_path / "score.json").read_bytes(), type=Score) == score()
