"""The page: whole in one file, escaped, of a size that can be mailed; in a real browser, at a phone's width."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from reports import charts, html
from reports.record import Samples, Work
from tests.reports.drawn import record

BROWSER = shutil.which("chromium")
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


CHARTS = (
    "Descriptors over work",
    "Private memory since the first rest, KiB",
    "Sockets by state",
    "Load rate",
    "Time to an answer",
    "Messages per session",
    "Descriptors over time",
    "Resident memory over time",
)


class Links(HTMLParser):
    """What a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.found += [str(value) for name, value in attributes if name in ("src", "href", "action", "data")]


def test_the_page_needs_nothing_but_itself() -> None:
    page = html.render(record())
    links = Links()
    links.feed(page)
    assert links.found == []
    assert len(page.encode()) < 1_500_000
    assert "<script>alert(1)</script>" not in page
    assert "And 201 more, all of them in the record." in page


def test_the_verdict_the_rate_and_the_opener_are_told_before_any_chart() -> None:
    page = html.render(record())
    top = page[: page.index("What happened")]
    for text in ("LEAK:", "0.987 for each refused message", "dose 2 of 3, after 20 refused messages", "disk.py:184"):
        assert text in top


def test_every_chart_says_in_words_what_it_shows() -> None:
    drawn = charts.draw(record())
    assert tuple(chart.title for chart in drawn.charts) == CHARTS
    assert drawn.charts[0].told == "transfer: 1 to 1,201."
    assert drawn.charts[1].told == "1 does not change."
    assert "<figcaption><b>Descriptors over work</b>" in html.render(record())


def test_a_chart_of_nothing_is_left_out() -> None:
    one = record()
    one.samples = Samples()
    for dose in one.doses:
        dose.work, dose.response_ms = Work(), {}
    assert [chart.title for chart in charts.draw(one).charts] == list(CHARTS[:3])


def test_what_is_open_tells_since_when_and_a_finding_how_long() -> None:
    page = html.render(record())
    last = page[page.index("What was open at the last rest") :]
    assert last.count('<tr class="new">') == html.MOST_OPEN - 1  # all but the socket, which was there at the first
    assert "296 at the last rest, none of them let go of; the oldest held for" in page


def test_a_run_of_many_doses_still_fits() -> None:
    one = record()
    one.doses *= 18  # 54: as many as a quick run may have
    one.samples.rows = [(0.1 * n, pid, 10 + n % 50, n << 12) for n in range(2500) for pid in range(8)]
    assert len(html.render(one).encode()) < 1_500_000


def test_a_run_without_a_dose_has_a_page_too() -> None:
    one = record("inconclusive")
    one.doses = []
    page = html.render(one)
    assert "promises 300" in page
    assert "<script" not in page


@pytest.mark.skipif(BROWSER is None, reason="no chromium here; install Debian's package")
def test_in_a_browser_every_chart_is_drawn_and_a_phone_need_not_scroll_sideways(tmp_path: Path) -> None:
    probe = """<script>
    addEventListener("error", event => document.title += " error " + event.message);
    addEventListener("load", () => setTimeout(() => {
      const beyond = document.documentElement.scrollWidth - innerWidth;
      document.title = JSON.stringify([beyond, Bokeh.documents.length, Bokeh.documents[0].roots().length]);
    }, 1500))</script>"""
    page = tmp_path / "page.html"
    page.write_text(html.render(record()).replace("<body>", f"<body>{probe}", 1))
    assert BROWSER is not None
    shown = subprocess.run(
        [BROWSER, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=500,900",
         "--virtual-time-budget=6000", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip
    found = re.search(r"<title>(.*?)</title>", shown)
    assert found is not None
    beyond, documents, charts = json.loads(found[1])
    assert beyond <= 0
    assert documents == 1
    assert charts == len(CHARTS)
