"""charts: what a run looked like, drawn by bokeh for the HTML page: hover, zoom, no network.

Owns: which series belong in which chart. Pure. Never: judges. Colours are of the Okabe-Ito palette, told apart by the
colour-blind; text and grid are of a grey that reads on white and on black, as the page follows the reader's scheme.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bokeh.embed import components
from bokeh.models import ColumnDataSource, DataRange1d, HoverTool
from bokeh.models.annotations import BoxAnnotation
from bokeh.plotting import figure
from bokeh.resources import Resources

from reports.record import Process, RunRecord, Snapshot
from reports.terminal import number, quantity

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#999933")
GREY = "#767676"  # 4.5 to 1 on white; the page makes everything lighter on black
HEIGHT = 260
MOST_TOLD = 3  # changes of a chart, in words
MOST_POINTS = 240  # of one line; a page is to stay under 1.5 MB
Series = dict[str, list[float]]


@dataclass(frozen=True)
class Chart:
    title: str
    told: str  # what it shows, in words
    element: str = ""  # where the script draws it


@dataclass(frozen=True)
class Drawn:
    charts: list[Chart]
    script: str  # the library with the charts' own; JavaScript


def draw(record: RunRecord) -> Drawn:
    """Charts of what was measured: those without a number other than 0 are left out."""
    if not record.doses:
        return Drawn([], "")
    unit = record.judgement.unit
    work = _cumulative(record)
    over_work = (
        ("Descriptors over work", _by_role(record, _descriptors), "descriptors", False),
        (_memory_title(record), _by_role(record, _memory), "growth", True),
        ("Sockets by state", _sockets(record), "sockets", False),
        ("Load rate", _rates(record), "a second", False),
        ("Time to an answer", _answer_times(record), "ms", False),
        ("Messages per session", _reuse(record), "messages", False),
    )
    over_time = (
        ("Descriptors over time", _sampled(record, lambda fds, rss: fds), "descriptors"),
        ("Resident memory over time", _sampled(record, lambda fds, rss: round(rss / 2**20, 1)), "MiB"),
    )
    charts, plots = [], []
    for title, levels, what, since_first in over_work:
        if any(any(values) for values in levels.values()):
            series = _growth(levels) if since_first else levels
            charts.append(Chart(title, _told(series)))
            plots.append(_lines(work, series, unit, what))
    for title, sampled, what in over_time:
        if sampled:
            charts.append(
                Chart(title, f"{_told({name: y for name, (_, y) in sampled.items()})} Dark: load; light: drain.")
            )
            plots.append(_over_time(record, sampled, what))
    script, elements = components(plots, wrap_script=False)
    library = "\n".join(Resources(mode="inline", components=["bokeh"]).js_raw)
    return Drawn([replace(each, element=at) for each, at in zip(charts, elements, strict=True)], f"{library}\n{script}")


def _growth(levels: Series) -> Series:
    """A level of hundreds of thousands would hide what it grows by."""
    return {name: [value - values[0] for value in values] for name, values in levels.items()}


def _told(series: Series) -> str:
    """``transfer: 22 to 318; parent: 11 to 12; 6 others do not change.`` The largest changes first."""
    changes = {name: (values[0], values[-1]) for name, values in series.items() if values[0] != values[-1]}
    most = sorted(changes.items(), key=lambda each: -abs(each[1][1] - each[1][0]))[:MOST_TOLD]
    words = [f"{name}: {number(first)} to {number(last)}" for name, (first, last) in most]
    if others := len(changes) - len(most):
        words.append(f"{quantity(others, 'other')} less")
    if still := len(series) - len(changes):
        words.append(f"{still} {'does' if still == 1 else 'do'} not change")
    return "; ".join(words) + "."


def _cumulative(record: RunRecord) -> list[float]:
    total, points = 0, []
    for dose in record.doses:
        total += dose.units
        points.append(float(total))
    return points


def _snapshots(record: RunRecord) -> list[Snapshot]:
    return [dose.snapshot for dose in record.doses]


def _by_role(record: RunRecord, reading: Callable[[Process], float]) -> Series:
    roles = sorted({process.role for snapshot in _snapshots(record) for process in snapshot.processes})
    return {
        role: [
            sum(reading(process) for process in snapshot.processes if process.role == role)
            for snapshot in _snapshots(record)
        ]
        for role in roles
    }


def _memory_title(record: RunRecord) -> str:
    counted = any(process.agent for snapshot in _snapshots(record) for process in snapshot.processes)
    return "Python objects since the first rest" if counted else "Private memory since the first rest, KiB"


def _descriptors(process: Process) -> float:
    return len(process.descriptors)


def _memory(process: Process) -> float:
    return process.agent.blocks if process.agent is not None else process.memory.private_dirty / 1024


def _sockets(record: RunRecord) -> Series:
    counts = [
        Counter(
            f"{each.kind} {each.state}".strip()
            for process in snapshot.processes
            for each in process.descriptors
            if each.kind in ("tcp", "udp", "unix")
        )
        for snapshot in _snapshots(record)
    ]
    return {
        state: [float(count[state]) for count in counts] for state in sorted({each for one in counts for each in one})
    }


def _rates(record: RunRecord) -> Series:
    def rate(number: Callable[[Any], float]) -> list[float]:
        return [
            round(number(dose.work) / (dose.ended - dose.began), 1) if dose.ended > dose.began else 0.0
            for dose in record.doses
        ]

    return {
        "messages": rate(lambda work: work.messages),
        "sessions": rate(lambda work: work.sessions),
    }


def _answer_times(record: RunRecord) -> Series:
    measured = sorted({name for dose in record.doses for name in dose.response_ms})
    return {name: [dose.response_ms.get(name, 0.0) for dose in record.doses] for name in measured}


def _reuse(record: RunRecord) -> Series:
    """Of the sessions of each dose: what a leak in the reuse of sessions needs."""
    return {
        "from clients": [round(dose.work.messages_per_session_in, 1) for dose in record.doses],
        "to the remote MX": [round(dose.work.messages_per_session_out, 1) for dose in record.doses],
    }


def _sampled(record: RunRecord, reading: Callable[[int, int], float]) -> dict[str, tuple[list[float], list[float]]]:
    """By role: seconds, and what was read of all its processes then; thinned, the largest reading of each step kept."""
    role_of = {process.pid: process.role for snapshot in _snapshots(record) for process in snapshot.processes}
    rows: dict[str, dict[float, float]] = defaultdict(lambda: defaultdict(float))
    for t, pid, fds, rss in record.samples.rows:
        rows[role_of.get(pid, str(pid))][round(t, 2)] += reading(fds, rss)
    found = {}
    for role, readings in sorted(rows.items()):
        points = sorted(readings.items())
        step = -(-len(points) // MOST_POINTS)
        kept = [max(points[at : at + step], key=lambda point: point[1]) for at in range(0, len(points), step)]
        found[role] = [t for t, _ in kept], [y for _, y in kept]
    return found


def empty(x: str, y: str) -> Any:
    """An empty chart as all of ours look."""
    plot = figure(
        height=HEIGHT, sizing_mode="stretch_width", tools="pan,box_zoom,reset", x_axis_label=x, y_axis_label=y
    )
    plot.toolbar.logo = None
    plot.toolbar.autohide = True
    plot.background_fill_alpha = plot.border_fill_alpha = 0.0
    plot.grid.grid_line_color, plot.grid.grid_line_alpha = GREY, 0.25
    plot.outline_line_color = None
    for axis in plot.axis:
        axis.axis_label_text_color = axis.major_label_text_color = GREY
        axis.axis_line_color = axis.major_tick_line_color = axis.minor_tick_line_color = GREY
    return plot


def _lines(work: Sequence[float], series: Series, unit: str, what: str) -> Any:
    plot = empty(f"work ({unit})", what)
    plot.y_range = DataRange1d(start=min(0, *(min(values) for values in series.values())))
    for place, (name, values) in enumerate(series.items()):
        source = ColumnDataSource({"x": list(work), "y": values})
        colour = PALETTE[place % len(PALETTE)]
        plot.line("x", "y", source=source, color=colour, width=1.5, legend_label=name, name=name)
        plot.scatter("x", "y", source=source, color=colour, size=4, legend_label=name, name=name)
    _finish(plot, f"@x{{0,0}} ({unit})")
    return plot


def _over_time(record: RunRecord, sampled: dict[str, tuple[list[float], list[float]]], what: str) -> Any:
    plot = empty("seconds", what)
    for dose in record.doses:
        for left, right, alpha in ((dose.began, dose.ended, 0.28), (dose.ended, dose.ended + dose.drained_s, 0.1)):
            plot.add_layout(BoxAnnotation(left=left, right=right, fill_color=GREY, fill_alpha=alpha, line_alpha=0))
    for place, (role, (x, y)) in enumerate(sampled.items()):
        source = ColumnDataSource({"x": x, "y": y})
        colour = PALETTE[place % len(PALETTE)]
        plot.line("x", "y", source=source, color=colour, width=1.2, legend_label=role, name=role)
    _finish(plot, "@x{0.0} s")
    return plot


def _finish(plot: Any, where: str) -> None:
    plot.add_tools(HoverTool(tooltips=[("", "$name"), ("", "@y{0,0.[0]}"), ("", where)]))
    if plot.legend:
        legend = plot.legend[0]
        plot.add_layout(legend, "right")
        legend.background_fill_alpha = legend.border_line_alpha = 0.0
        legend.label_text_color, legend.label_text_font_size, legend.spacing = GREY, "11px", 0
        legend.click_policy = "hide"
