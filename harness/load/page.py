"""The Seatbelt page in locust's web UI: what each process holds now, what was found so far, and to drain and check now.

Owns: its routes, below ``/seatbelt``, the tab in locust's own page, and the link to it. Never: looks at a process; what
it shows is on the board, which the controller writes. It needs no network: charts are drawn by bokeh's library, served
from here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import msgspec
from flask import Blueprint, Flask, Response, request

from harness.load import board as boards
from harness.load.board import Board
from reports.record import RecordError
from reports.record import load as load_record

if TYPE_CHECKING:
    from locust.web import WebUI

CHARTS = {"descriptors": "descriptors", "sockets": "sockets", "memory": "MiB resident"}
COLUMNS = {
    "process": "Process",
    "pid": "Pid",
    "descriptors": "Descriptors",
    "sockets": "Sockets",
    "memory": "Memory, MiB",
}
TAB = "seatbelt"
SAME_SITE = ("same-origin", "none")  # of Sec-Fetch-Site; a browser that does not send it is told nothing wrong

_decode_board = msgspec.json.Decoder(Board | None).decode


class Driven(Protocol):
    """The load that the page is about."""

    @property
    def board(self) -> Path | None:
        """None: there is no run."""

    @property
    def state(self) -> str:
        """One sentence, where the board has none to tell."""

    @property
    def in_hand(self) -> bool:
        """A dose is being given, and can be cut short."""

    def cut_short(self) -> bool: ...

    def wind_up(self) -> None: ...


def attach(web_ui: WebUI, load: Driven) -> None:
    """Add the page to a web UI that has not started yet."""
    app = cast(Flask, web_ui.app)
    prefix = app.blueprints["locust"].url_prefix or ""  # --web-base-path
    page = Blueprint("seatbelt", __name__, url_prefix=f"{prefix}/seatbelt")

    def route(path: str, method: str = "GET") -> Callable[[Callable[[], Any]], None]:
        def add(view: Callable[[], Any]) -> None:
            guarded = web_ui.auth_required_if_enabled(view)  # type: ignore[no-untyped-call]
            page.add_url_rule(path, view.__name__, guarded, methods=[method])

        return add

    @route("")
    def whole() -> str:
        return _page()

    @route("/live.json")
    def live() -> Response:
        raw = boards.read(load.board) if load.board is not None else b"null"
        state = {"state": load.state, "in_hand": load.in_hand, "board": msgspec.Raw(raw)}
        return Response(msgspec.json.encode(state), mimetype="application/json")

    @route("/bokeh.js")
    def library() -> Response:
        from bokeh.settings import settings

        script = Path(settings.bokehjs_path()) / "js" / "bokeh.min.js"
        answer = Response(script.read_bytes(), mimetype="text/javascript")
        answer.cache_control.max_age = 3600
        return answer

    @route("/report")
    def report() -> Response:
        from reports import html

        board = _board(load)
        if board is None or not board.record:
            return Response("There is no report before the run is over.", 404, mimetype="text/plain")
        try:
            return Response(html.render(load_record(Path(board.record))))
        except RecordError as error:
            return Response(str(error), 404, mimetype="text/plain")

    @route("/check", "POST")
    def check() -> Response:
        if (refused := _refused()) is not None:
            return refused
        if not load.cut_short():
            return Response("No dose is being given: the server is at rest, or drained already.", 409)
        return Response("The dose ends with the sessions that have begun; then the server is drained and checked.")

    @route("/end", "POST")
    def end() -> Response:
        if (refused := _refused()) is not None:
            return refused
        load.wind_up()
        return Response("The last dose ends with the sessions that have begun; then comes the verdict.")

    app.register_blueprint(page)
    web_ui.template_args["extended_tabs"] = [{"title": "Seatbelt", "key": TAB}]
    web_ui.template_args["extended_tables"] = [
        {"key": TAB, "structure": [{"key": key, "title": title} for key, title in COLUMNS.items()]}
    ]
    app.after_request(lambda answer: _extend(answer, prefix, load))


def _refused() -> Response | None:
    """Locust's web UI lets pages of other sites talk to it; ours may be pressed by its own page only."""
    if request.headers.get("Sec-Fetch-Site", "same-origin") in SAME_SITE:
        return None
    return Response("Press the button on the Seatbelt page itself.", 403, mimetype="text/plain")


def _board(load: Driven) -> Board | None:
    return _decode_board(boards.read(load.board)) if load.board is not None else None


def _page() -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    scripts, elements = _charts()
    environment = Environment(loader=PackageLoader("harness.load"), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("live.html").render(
        scripts=Markup(scripts), charts={name: Markup(element) for name, element in elements.items()}
    )


def _charts() -> tuple[str, dict[str, str]]:
    """Empty ones, which the page's script fills: a line a process, found by the model's name."""
    from bokeh.embed import components
    from bokeh.models import ColumnDataSource, HoverTool

    from reports import charts

    plots = {}
    for name, label in CHARTS.items():
        plot = charts.empty("seconds", label)
        plot.y_range.start = 0
        source = ColumnDataSource({"xs": [], "ys": [], "who": [], "colour": []}, name=name)
        plot.multi_line("xs", "ys", source=source, color="colour", line_width=1.8)
        plot.add_tools(
            HoverTool(tooltips=[("", "@who"), ("", "$data_y{0,0.[0]}"), ("", "$data_x{0.0} s")], line_policy="nearest")
        )
        plots[name] = plot
    script, elements = components(list(plots.values()))
    return script, dict(zip(plots, elements, strict=True))


# ---- in locust's own page


def _extend(answer: Response, prefix: str, load: Driven) -> Response:
    """The tab's rows in locust's statistics, and the link in its page: a tab of locust's can hold a table only."""
    if request.path == f"{prefix}/stats/requests" and answer.is_json:
        stats = answer.get_json()
        stats["extended_stats"] = [{"key": TAB, "data": _rows(_board(load))}]
        answer.set_data(msgspec.json.encode(stats))
    elif request.path == f"{prefix}/" and answer.mimetype == "text/html" and answer.status_code == 200:
        answer.set_data(answer.get_data(as_text=True).replace("</body>", LINK + "</body>"))
    return answer


def _rows(board: Board | None) -> list[dict[str, str | float]]:
    if board is None:
        return []
    return [
        {
            "process": line.role,
            "pid": line.pid,
            "descriptors": line.descriptors[-1] or 0,
            "sockets": line.sockets[-1] or 0,
            "memory": round((line.rss[-1] or 0) / (1 << 20), 1),
        }
        for line in board.processes
    ]


LINK = (
    '<nav aria-label="Seatbelt" style="position:fixed;left:1rem;bottom:1rem;z-index:2000">'
    '<a href="seatbelt" style="padding:.5rem .9rem;border-radius:.4rem;background:#0b4f8a;color:#fff;'
    'font:600 15px/1.4 system-ui,sans-serif;text-decoration:none">Seatbelt: what the server holds</a></nav>'
)
