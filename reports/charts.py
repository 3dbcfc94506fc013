"""charts: what a run looked like, drawn by bokeh for the HTML page: hover, zoom, no network.

Owns: which series belong in which chart. Pure. Never: judges. Colours are of the Okabe-Ito palette, told apart by the
colour-blind; text and grid are of a grey that reads on white and on black, as the page follows the reader's scheme.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from bokeh.embed import components
from bokeh.models import ColumnDataSource, HoverTool
from bokeh.models.annotations import BoxAnnotation
from bokeh.plotting import figure
from bokeh.resources import Resources

from reports.record import Process, RunRecord, Snapshot

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#999933")
GREY = "#808080"
HEIGHT = 260
MOST_POINTS = 240  # of one line; a page is to stay under 1.5 MB
Series = dict[str, list[float]]


def draw(record: RunRecord) -> tuple[str, dict[str, str]]:
    """The library with the charts' script, and a chart's element by its title. Nothing to draw: ``("", {})``."""
    if not record.doses:
        return "", {}
    unit = record.judgement.unit
    work = _cumulative(record)
    charts = {
        "Descriptors over work": _lines(work, _by_role(record, _descriptors), unit, "descriptors"),
        _memory_title(record): _lines(work, _by_role(record, _memory), unit, ""),
        "Sockets by state": _lines(work, _sockets(record), unit, "sockets"),
        "Load rate": _lines(work, _rates(record), unit, "a second"),
        "Descriptors over time": _over_time(record),
    }
    script, elements = components(list(charts.values()))
    return Resources(mode="inline", components=["bokeh"]).render_js() + script, dict(zip(charts, elements, strict=True))


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
    return "Python objects since the first rest" if counted else "Private memory over work, KiB"


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


def _plot(x: str, y: str) -> Any:
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
    since_first = what == ""  # a level of hundreds of thousands hides what it grows by
    plot = _plot(f"work ({unit})", what or "growth")
    for number, (name, values) in enumerate(series.items()):
        shown = [value - values[0] for value in values] if since_first else values
        source = ColumnDataSource({"x": list(work), "y": shown})
        colour = PALETTE[number % len(PALETTE)]
        plot.line("x", "y", source=source, color=colour, width=1.5, legend_label=name, name=name)
        plot.scatter("x", "y", source=source, color=colour, size=4, legend_label=name, name=name)
    _finish(plot, f"@x{{0,0}} ({unit})")
    return plot


def _over_time(record: RunRecord) -> Any:
    plot = _plot("seconds", "descriptors")
    for dose in record.doses:
        plot.add_layout(BoxAnnotation(left=dose.began, right=dose.ended, fill_color=GREY, fill_alpha=0.18))
    role_of = {process.pid: process.role for snapshot in _snapshots(record) for process in snapshot.processes}
    rows: dict[str, dict[float, int]] = defaultdict(lambda: defaultdict(int))
    for t, pid, fds, _ in record.samples.rows:
        rows[role_of.get(pid, str(pid))][t] += fds
    for number, (role, readings) in enumerate(sorted(rows.items())):
        step = max(1, len(readings) // MOST_POINTS)
        points = sorted(readings.items())[::step]
        source = ColumnDataSource({"x": [round(t, 2) for t, _ in points], "y": [y for _, y in points]})
        plot.line(
            "x", "y", source=source, color=PALETTE[number % len(PALETTE)], width=1.2, legend_label=role, name=role
        )
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
