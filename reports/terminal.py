"""terminal: a run record as a person reads it, 80 columns wide.

Owns: the words and the layout. Pure: the same record prints the same text. Never: judges, opens files.
Colours are rich's affair, which honours NO_COLOR. Text that came from the target is never taken for markup, and control
characters in it are shown, not sent to the terminal.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.text import Text

from reports.record import Finding, RunRecord, Tested, Work

COLUMNS = 80
UNFOLDED = 10_000  # columns: nothing is as long
LABEL_COLUMNS = 16
TEXT_COLUMNS = COLUMNS - LABEL_COLUMNS
INDENT = "   "  # of what belongs to a finding
MAX_EXAMPLES = 3
MAX_DOSES = 7  # that fit beside each other
COLOURS = {"leak": "bold red", "clean": "bold green", "inconclusive": "bold yellow"}
# Findings that are failures, not leaks.
NOT_KEPT = frozenset({"died", "broken-off", "lost", "duplicated", "restless", "footprint"})
NOUNS = {
    "python objects": "Python objects",
    "heap": "bytes of heap",
    "private dirty": "bytes of private memory",
    "anonymous": "bytes of anonymous memory",
}
METER = "heap meter"  # in `TargetInfo.loaded`
FATES = ("delivered", "bounced", "queued", "lost", "duplicated")


def print_report(record: RunRecord, console: Console) -> None:
    """The whole report, verdict first; into a pipe or a file the verdict's sentence is one line, for grep(1)."""
    if console.is_terminal:
        console.print(render(record))
    else:
        console.print(as_text(record, columns=UNFOLDED), end="", soft_wrap=True, markup=False, highlight=False)


def as_text(record: RunRecord, *, columns: int = COLUMNS) -> str:
    """The whole report without colours, for files. The verdict's sentence is one line if it fits into `columns`."""
    console = Console(width=columns, file=io.StringIO(), color_system=None, highlight=False)
    with console.capture() as captured:
        console.print(render(record))
    return captured.get()


def render(record: RunRecord) -> RenderableType:
    """The whole report, as one rich renderable."""
    parts: list[RenderableType] = [headline(record), _subject(record)]
    for number, finding in enumerate(record.findings, 1):
        parts += [Text(), *_finding(number, finding)]
    if record.attribution and not all(finding.opened_at for finding in record.findings):
        parts += [Text(), _line("attribution", record.attribution)]
    if record.verdict == "inconclusive" and len(record.reasons) > 1:
        parts += [Text(), Text("It is also inconclusive because:"), *map(_bullet, record.reasons[1:])]
    told = [_line(*each) for each in (*work_done(record), *visible(record))]
    parts += [Text(), *told] if told else []
    parts += [Text(), *_footer(record)]
    return Group(*parts)


def headline(record: RunRecord) -> Text:
    """The verdict in one sentence."""
    if record.verdict == "leak" and record.findings:
        first, *others = record.findings
        word = "FAILED" if first.kind in NOT_KEPT else "LEAK"
        said = first.message or f"{first.role} keeps {first.label}"
        more = f" (and {quantity(len(others), 'other finding')})" if others else ""
        return _verdict(record, word, said + more)
    if record.verdict == "inconclusive":
        return _verdict(record, "INCONCLUSIVE", record.reasons[0] if record.reasons else "no reason was recorded")
    judged = [dose for dose in record.doses if dose.phase != "warm-up"]
    units = quantity(sum(dose.units for dose in judged), record.judgement.unit)
    return _verdict(record, record.verdict.upper(), f"nothing is kept after {units} in {quantity(len(judged), 'dose')}")


def shorten(text: str, columns: int) -> str:
    """`text` within `columns`, its middle left out: both ends of a path tell what it is."""
    if len(text) <= columns:
        return text
    tail = (columns - 1) * 2 // 3
    return f"{text[: columns - 1 - tail]}…{text[-tail:]}"


def number(value: float) -> str:
    """Three significant digits, never an exponent for what a person can read."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-4 else f"{value:.1e}"


def _verdict(record: RunRecord, word: str, said: str) -> Text:
    return Text.assemble((f"{word}: ", COLOURS[record.verdict]), (_plain(said), "bold"), overflow="fold")


def _subject(record: RunRecord) -> Text:
    version = f" {record.target.version}" if record.target.version else ""
    defects = f" with {', '.join(record.target.defects)}" if record.target.defects else ""
    text = f"{record.scenario} on {record.target.name}{version}{defects}, profile {record.judgement.profile}"
    if METER in record.target.loaded:
        text += f", {METER} preloaded"
    return Text(_plain(text), style="dim", overflow="fold")


def _finding(index: int, finding: Finding) -> Iterator[Text]:
    who = f" in {finding.role}" if finding.role and finding.role not in finding.label else ""
    pids = f" (pid {some(finding.pids)})" if finding.pids else ""
    yield Text(_plain(f"{index}. {finding.resource}: {finding.label}{who}{pids}"), style="bold", overflow="fold")
    if index > 1:  # the first is the headline
        yield _line(f"{INDENT}what", finding.message)
    if finding.high > 0:
        interval = f"95 % interval {number(finding.low)} to {number(finding.high)}"
        yield _line(f"{INDENT}rate", f"{number(finding.rate)} for each {finding.unit}, {interval}")
    if finding.kind not in NOT_KEPT:
        held = {"memory": "grown by", "counter": "off by"}.get(finding.resource, "held")
        yield _line(f"{INDENT}{held}", f"{number(finding.count)} at the last rest; first seen in {_dose(finding)}")
        yield _line(f"{INDENT}confidence", confidence(finding.confidence))
    elif finding.resource != "mail":
        yield _line(f"{INDENT}when", f"in {_dose(finding)}")
    yield from _proof(finding)
    where = {"memory": "made at", "process": "started at", "thread": "started at"}.get(finding.resource, "opened at")
    for label, texts in (("for example", finding.examples[:MAX_EXAMPLES]), (where, finding.opened_at)):
        for position, text in enumerate(texts):
            told = _plain(text) if label == where else shorten(_plain(text), TEXT_COLUMNS)
            yield _line("" if position else INDENT + label, told)
    if finding.traced_by:
        yield _line(f"{INDENT}told by", finding.traced_by)
    if finding.advice:
        yield _line(f"{INDENT}next", finding.advice)


def _dose(finding: Finding) -> str:
    return f"dose {finding.first_dose + 1}"


def _proof(finding: Finding) -> Iterator[Text]:
    """Work and what it left, dose by dose; the last ones where they do not all fit."""
    pairs = list(zip(finding.dose_units, finding.survivors, strict=False))[-MAX_DOSES:]
    if not pairs:
        return
    width = max(len(str(value)) for pair in pairs for value in pair)
    by = "by round" if finding.resource == "memory" else "by dose"
    for label, values in (
        (by, [f"{units:>{width}}" for units, _ in pairs] + [f"({finding.unit})"]),
        ("left", [f"{kept:>{width}}" for _, kept in pairs]),
    ):
        yield _line(INDENT + label, "  ".join(values))


def work_done(record: RunRecord) -> Iterator[tuple[str, str]]:
    """What was done and what became of it: a label and a sentence each; nothing where nobody counted."""
    work = record.work
    if not (work.sessions or work.messages):
        return
    yield (
        "work",
        f"{quantity(work.sessions, 'session')}, {quantity(work.messages, 'message')} "
        f"({number(work.messages_per_session_in)} a session), {work.accepted:,} accepted",
    )
    if work.messages or work.messages_out:
        yield (
            "relayed",
            f"{quantity(work.messages_out, 'transaction')} in {quantity(work.sessions_out, 'session')} "
            f"({number(work.messages_per_session_out)} a session), {work.refused_messages:,} refused entirely; "
            f"{quantity(work.refused_recipients, 'recipient')} refused by the target",
        )
        yield "mail", _fates(work)
    yield from _kernel(record)
    failures = record.load.failures
    if failures:
        yield "load", f"{quantity(failures, 'failure')}: {'; '.join(record.load.errors[:MAX_EXAMPLES])}"


def _kernel(record: RunRecord) -> Iterator[tuple[str, str]]:
    """What the kernel holds for the target, at the first and the last judged rest. It is told and not judged: names of
    files that are gone, which it may drop at any time, are among it.
    """
    told = [dose for dose in record.doses if dose.phase != "warm-up" and dose.snapshot.kernel is not None]
    units = sum(dose.units for dose in told[1:])
    if not units:
        return
    first, last = told[0].snapshot.kernel, told[-1].snapshot.kernel
    assert first is not None
    assert last is not None
    each = number((last.total - first.total) / units)
    yield (
        "kernel",
        f"holds {first.total / 1e6:.1f} MB for these processes at the first judged rest, {last.total / 1e6:.1f} MB at "
        f"the last (caches included, so not judged): {each} bytes for each {record.judgement.unit}",
    )


def _fates(work: Work) -> str:
    return ", ".join(f"{getattr(work, fate):,} {fate}" for fate in FATES)


def visible(record: RunRecord) -> Iterator[tuple[str, str]]:
    """What the run would have shown, had it been there, and what it could not look at: a label and a sentence each."""
    counted = [each for each in record.tested if each.resource != "memory"]
    memory = [each for each in record.tested if each.resource == "memory"]
    unit = record.judgement.unit
    smallest = max((each.smallest_visible for each in counted), default=0.0)
    if smallest > 0:
        kinds = ", ".join(dict.fromkeys(each.resource for each in counted))
        yield "would show", f"{number(smallest)} for each {unit} of any of {len(counted)} classes of {kinds}"
    for metric, roles in _by_metric(memory).items():
        worst = max(each.smallest_visible for each in roles)
        who = f"in any of {quantity(len(roles), 'role')}"
        yield "would show", f"{number(worst)} {NOUNS.get(metric, metric)} for each {unit} {who}"
    unjudged: dict[str, list[str]] = {}
    for each in memory:
        if each.verdict == "inconclusive":
            unjudged.setdefault(each.reason, []).append(each.role)
    for reason, names in unjudged.items():
        yield "not judged", f"{', '.join(names)}: {reason}"
    for each in memory:
        if each.verdict == "clean" and each.reason:
            yield "in part", f"memory of {each.role}: {each.reason}"


def _by_metric(tested: Iterable[Tested]) -> dict[str, list[Tested]]:
    metrics: dict[str, list[Tested]] = {}
    for each in tested:
        if each.verdict != "inconclusive":
            metrics.setdefault(each.metric, []).append(each)
    return metrics


def _footer(record: RunRecord) -> Iterator[Text]:
    yield _line("seed", str(record.seed))
    if record.command:
        yield _line("repeat", record.command)


def _line(label: str, text: str) -> Text:
    """A label and its text, with a hanging indent."""
    lines = textwrap.wrap(_plain(text), TEXT_COLUMNS, break_on_hyphens=False) or [""]
    indent = "\n" + " " * LABEL_COLUMNS
    return Text.assemble((label.ljust(LABEL_COLUMNS), "dim"), indent.join(lines))


def _bullet(text: str) -> Text:
    return Text(_plain(f"- {text}"), overflow="fold")


def confidence(level: float) -> str:
    """``99.87 %``."""
    return "over 99.99 %" if level > 0.9999 else f"{100 * level:.2f} %"


def some(values: Sequence[int]) -> str:
    """The first five, and how many more."""
    shown = " ".join(map(str, values[:5]))
    return f"{shown} and {len(values) - 5} more" if len(values) > 5 else shown


def quantity(count: int, noun: str) -> str:
    """``1 dose``, ``1,200 doses``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _plain(text: str) -> str:
    """Without anything that a terminal would obey."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
