"""The Seatbelt page in locust's web UI, over real HTTP."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from smtp_sink import SmtpSink

from harness.load import board as boards
from harness.load.board import Board, Line, Seen
from harness.load.orders import WebOrder
from harness.load.process import LoadError, LoadProcess
from harness.load.tally import Tally
from tests.axe import looked

SLOW = """\
from harness.scenario import *
ASK = (Step(), Step(b"NOOP\\r\\n", pause_s=0.05), Step(b"QUIT\\r\\n"))
SCENARIO = Scenario(name="slow", story="", unit="visit", units_per_session=1,
                    session=lambda random, units: SessionPlan(steps=ASK, end="fin"))
"""


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        text: str = answer.read().decode()
        return text


def press(url: str, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(url, method="POST", headers={k.replace("_", "-"): v for k, v in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def board() -> Board:
    line = Line(4711, "transfer", [3, 4], [1, 2], [1 << 20, 3 << 20])
    seen = Seen("descriptor: message file in transfer", "transfer keeps <b>one</b>", "1 for each message (1 to 1)", 3)
    return Board("slow", "embedded 0.1.0", "visit", "dose: 20 x visit", 20, 300, [0.5, 1.0], [line], [], [seen])


def test_the_page_shows_the_board_and_locusts_own_page_leads_to_it(tmp_path: Path) -> None:
    path = tmp_path / "live.json"
    with SmtpSink() as sink, LoadProcess("accepted", 1, seed=1, web=WebOrder("127.0.0.1", 0, str(path))) as load:
        page = load.ready("127.0.0.1", sink.port).page
        assert page.startswith("http://127.0.0.1:")
        base = page.removesuffix("seatbelt")
        live = msgspec.json.decode(get(f"{page}/live.json"))
        assert live["board"] is None
        assert live["in_hand"] is False
        boards.write(board(), path)
        assert msgspec.json.decode(get(f"{page}/live.json"))["board"]["processes"][0]["descriptors"] == [3, 4]
        text = get(page)
        assert "Drain and check now" in text
        assert "http" not in text.replace("https://bokeh", "").split("<body>")[0], "everything comes from here"
        assert "Bokeh" in get(f"{page}/bokeh.js")
        assert 'href="seatbelt"' in get(base)
        (tab,) = msgspec.json.decode(get(f"{base}stats/requests"))["extended_stats"]
        assert tab["data"] == [{"process": "transfer", "pid": 4711, "descriptors": 4, "sockets": 2, "memory": 3.0}]
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(f"{page}/report")


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_the_page_has_no_serious_violation_and_fetches_from_here_only(
    tmp_path: Path, scheme: Literal["light", "dark"], width: int
) -> None:
    path = tmp_path / "live.json"
    boards.write(board(), path)
    with SmtpSink() as sink, LoadProcess("accepted", 1, seed=1, web=WebOrder("127.0.0.1", 0, str(path))) as load:
        page = load.ready("127.0.0.1", sink.port).page
        next_run = "(showFindings([]), at('findings').textContent)"  # in the same page, as locust starts it
        script = f"[document.title, {next_run}]"
        seen = looked(page, scheme=scheme, width=width, wait_for="#processes tr", script=script)
    assert seen.serious == []
    assert seen.errors == []
    assert all(address.startswith(page) for address in seen.requested)
    title, findings = seen.answer
    assert title == "leak so far: slow (Seatbelt)"
    assert findings.startswith("Nothing so far.")


def test_a_press_ends_the_dose_with_the_sessions_that_have_begun(tmp_path: Path) -> None:
    scenario = tmp_path / "slow.py"
    scenario.write_text(SLOW)
    web = WebOrder("127.0.0.1", 0, str(tmp_path / "live.json"))
    with SmtpSink() as sink, LoadProcess(str(scenario), 2, seed=1, web=web) as load:
        page = load.ready("127.0.0.1", sink.port).page
        assert press(f"{page}/check")[0] == 409, "no dose is being given"
        tallies: list[Tally] = []
        dose = threading.Thread(target=lambda: tallies.append(load.dose(0, 10_000, timeout_s=60.0)))
        dose.start()
        wait_for(lambda: sink.sessions > 4)
        assert press(f"{page}/check", Sec_Fetch_Site="cross-site")[0] == 403
        assert dose.is_alive(), "another site's button does nothing"
        assert press(f"{page}/check", Sec_Fetch_Site="same-origin")[0] == 200
        dose.join(10)
        (tally,) = tallies
        assert 4 < tally.units == tally.sessions == sink.sessions < 10_000
        assert (tally.unfinished, tally.last) == (0, False)
        assert load.dose(1, 4, timeout_s=60.0).units == 4
        dose = threading.Thread(target=lambda: tallies.append(load.dose(2, 10_000, timeout_s=60.0)))
        dose.start()
        wait_for(lambda: msgspec.json.decode(get(f"{page}/live.json"))["in_hand"])
        assert press(f"{page}/end")[0] == 200
        dose.join(10)
        assert tallies[-1].last


def test_a_taken_port_is_told(tmp_path: Path, unused_port: int) -> None:
    web = WebOrder("127.0.0.1", unused_port, str(tmp_path / "live.json"))
    with (
        SmtpSink() as sink,
        LoadProcess("accepted", 1, seed=1, web=web) as load,
        pytest.raises(LoadError, match=r"Address already in use.*choose with --web-port"),
    ):
        load.ready("127.0.0.1", sink.port)


def wait_for(condition: Any, timeout_s: float = 10.0) -> None:
    deadline = threading.Event()
    threading.Timer(timeout_s, deadline.set).start()
    while not condition():
        assert not deadline.wait(0.02), "it did not come to pass"
