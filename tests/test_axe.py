"""The accessibility of every page that we make, as axe-core judges it in a real browser; and that it would say so."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from reports import html, score
from tests.axe import looked
from tests.reports.drawn import record
from tests.reports.test_score_report import score as a_score


def test_axe_sees_what_is_wrong_and_what_is_fetched(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        '<html><title>bad</title><p style="color:#bbb">pale</p><img src="none.png"><script>nothing()</script>'
    )
    seen = looked(page.as_uri())
    assert {each.rule for each in seen.violations} >= {"color-contrast", "html-has-lang", "image-alt"}
    assert len(seen.serious) >= 3
    assert [Path(address).name for address in seen.requested] == ["bad.html", "none.png"]
    assert "nothing is not defined" in seen.errors[0]


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_the_report_has_no_serious_violation_and_fetches_nothing(
    tmp_path: Path, scheme: Literal["light", "dark"], width: int
) -> None:
    page = tmp_path / "page.html"
    page.write_text(html.render(record()))
    seen = looked(page.as_uri(), scheme=scheme, width=width, wait_for=".bk-Figure")
    assert seen.serious == []
    assert seen.errors == []
    assert seen.requested == [page.as_uri()]


def test_the_score_has_no_serious_violation(tmp_path: Path) -> None:
    page = tmp_path / "score.html"
    page.write_text(score.page(a_score()))
    assert looked(page.as_uri(), scheme="dark").serious == []
