"""html: a run record as one page that needs nothing but itself: no network, no other file.

Owns: the page. Pure: the same record gives the same page, but for the charts' element ids. Text that came from the
target is escaped (jinja2's autoescape); the charts are drawn by `reports.charts`, which is imported late.
"""

from __future__ import annotations

import base64
import gzip
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined

from reports import answers, terminal
from reports.record import Descriptor, Dose, Process, RunRecord

if TYPE_CHECKING:
    from markupsafe import Markup

TEMPLATE = "run.html"
MOST_OPEN = 1000  # descriptors listed of one rest: the page is to stay under 1.5 MB
Identity = tuple[object, ...]
Row = tuple[Process, Descriptor, int]  # and the dose since which it is open at every rest, from 1
_CODE = re.compile(r"`([^`]+)`")


def render(record: RunRecord) -> str:
    """The whole page."""
    from markupsafe import Markup

    from reports import charts

    drawn = charts.draw(record)
    environment = Environment(
        loader=PackageLoader("reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=terminal.number, confidence=terminal.confidence, code=_with_code, kib=_kib, device=_device
    )
    return environment.get_template(TEMPLATE).render(
        record=record,
        headline=str(terminal.headline(record)),
        answers=answers,
        work=list(terminal.work_done(record)),
        visible=list(terminal.visible(record)),
        processes=list(_processes(record)),
        rests=list(_rests(record)),
        most_open=MOST_OPEN,
        packed=base64.b64encode(gzip.compress(drawn.script.encode(), mtime=0)).decode() if drawn.script else "",
        charts=[(chart.title, chart.told, Markup(chart.element)) for chart in drawn.charts],
    )


def _rests(record: RunRecord) -> Iterator[tuple[str, list[Row]]]:
    """What was open at the first rest and at the last, in the order in which lsof lists it."""
    for name, doses in (("first", record.doses[:1]), ("last", record.doses)):
        since: dict[Identity, int] = {}
        for number, dose in enumerate(doses, 1):
            since = {_identity(*row): since.get(_identity(*row), number) for row in _open(dose)}
        if doses:
            yield name, [(*row, since[_identity(*row)]) for row in _open(doses[-1])]


def _open(dose: Dose) -> Iterator[tuple[Process, Descriptor]]:
    for process in dose.snapshot.processes:
        for each in process.descriptors:
            yield process, each


def _identity(process: Process, each: Descriptor) -> Identity:
    return process.pid, process.started, each.fd, each.kind, each.device, each.inode


def _processes(record: RunRecord) -> Iterator[tuple[Process | None, Process | None]]:
    """Each process, as it was at the first and at the last rest; None where it was not there."""
    if not record.doses:
        return
    ends = (record.doses[0], record.doses[-1])
    first, last = ({(each.pid, each.started): each for each in dose.snapshot.processes} for dose in ends)
    for identity in {**first, **last}:
        yield first.get(identity), last.get(identity)


def _with_code(text: str) -> Markup:
    """What stands between backquotes as code; everything escaped."""
    from markupsafe import Markup, escape

    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(text))))


def _kib(size: int) -> str:
    return f"{size / 1024:,.0f} KiB"


def _device(number: int) -> str:
    """``8,1``, as lsof writes it."""
    return f"{os.major(number)},{os.minor(number)}"
