"""html: a run record as one page that needs nothing but itself: no network, no other file.

Owns: the page. Pure: the same record gives the same page, but for the charts' element ids. Text that came from the
target is escaped (jinja2's autoescape); the charts are drawn by `reports.charts`, which is imported late.
"""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined

from reports import terminal
from reports.record import Descriptor, Dose, Finding, Process, RunRecord, Snapshot

TEMPLATE = "run.html"
MOST_OPEN = 400  # descriptors listed of one rest: the page is to stay under 1.5 MB


def render(record: RunRecord) -> str:
    """The whole page."""
    from markupsafe import Markup

    from reports import charts

    script, elements = charts.draw(record)
    environment = Environment(
        loader=PackageLoader("reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = terminal.number
    rests = [(name, open_at(dose.snapshot)) for name, dose in zip(("first", "last"), _ends(record), strict=False)]
    return environment.get_template(TEMPLATE).render(
        record=record,
        headline=str(terminal.headline(record)),
        is_leak=is_leak,
        where=where,
        rests=rests,
        most_open=MOST_OPEN,
        script=Markup(script),
        charts={title: Markup(element) for title, element in elements.items()},
    )


def _ends(record: RunRecord) -> list[Dose]:
    return [record.doses[0], record.doses[-1]] if record.doses else []


def open_at(snapshot: Snapshot) -> list[tuple[Process, Descriptor]]:
    """What every process held, as lsof lists it."""
    return [(process, each) for process in snapshot.processes for each in process.descriptors]


def is_leak(finding: Finding) -> bool:
    return finding.kind not in terminal.NOT_KEPT


def where(finding: Finding) -> str:
    """What the lines of `opened_at` are of this resource."""
    return {"memory": "Made at", "process": "Started at", "thread": "Started at"}.get(finding.resource, "Opened at")
