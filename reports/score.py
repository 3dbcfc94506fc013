"""The score: how the defect catalogue came out, as data, as JSON, as text and as one HTML page. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec
from rich.table import Table

from reports.record import RecordError, Verdict

SCHEMA = 1
Kind = Literal["certain", "rare", "slow", "wrong way", "innocent", "clean"]
GUILTY: tuple[Kind, ...] = ("certain", "rare", "slow", "wrong way")
GUILTLESS: tuple[Kind, ...] = ("innocent", "clean")
VERDICTS: dict[str, str] = {"leak": "leak", "inconclusive": "not sure", "clean": "clean", "": "failed"}


class Row(msgspec.Struct, omit_defaults=True):
    """One run of a defect, of an innocent, or of a clean twin, and the truth beside it."""

    name: str
    kind: Kind
    scenario: str
    profile: str = "quick"
    seed: int = 1
    chapter: str = ""
    role: str = ""  # the truth …
    resources: list[str] = msgspec.field(default_factory=list)
    true_rate: float | None = None
    opener: str = ""
    verdict: Verdict | Literal[""] = ""  # … and what was said; "": the run failed
    right: bool = False  # … of the right process and resource
    by: str = ""  # the finding that said it
    rate: float = 0.0
    low: float = 0.0
    high: float = 0.0
    unit: str = ""
    opened_at: list[str] = msgspec.field(default_factory=list)
    attributed: bool | None = None  # None: the truth names no opener
    sessions: int = 0
    units: int = 0
    verdict_s: float = 0.0  # from the start to the last rest
    seconds: float = 0.0  # of the whole command, the traced run included
    reasons: list[str] = msgspec.field(default_factory=list)
    rules: dict[str, bool] = msgspec.field(default_factory=dict)  # what other rules made of the same run

    @property
    def is_guilty(self) -> bool:
        return self.kind in GUILTY

    @property
    def is_passed(self) -> bool:
        """As it should be: a leak found in the right place, the guiltless not accused."""
        return self.right and self.verdict == "leak" if self.is_guilty else self.verdict == "clean"


class Score(msgspec.Struct):
    rows: list[Row]
    schema: int = SCHEMA
    seatbelt: str = ""
    jobs: int = 1
    seconds: float = 0.0
    command: str = ""

    def of(self, *kinds: Kind) -> list[Row]:
        return [row for row in self.rows if row.kind in kinds]

    @property
    def false_alarms(self) -> list[Row]:
        return [row for row in self.of(*GUILTLESS) if row.verdict == "leak"]

    @property
    def is_passed(self) -> bool:
        """Every certain leak found, and nobody accused who is not guilty."""
        return all(row.is_passed for row in self.of("certain")) and not self.false_alarms


def save(score: Score, path: Path) -> None:
    """Raises RecordError."""
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(score), indent=1) + b"\n")
    except OSError as error:
        raise RecordError(f"{path}: cannot write the score: {error.strerror}") from error


def load(path: Path) -> Score:
    """Raises RecordError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Score)
    except OSError as error:
        raise RecordError(f"{path}: cannot read the score: {error.strerror}") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise RecordError(f"{path}: not a score: {error}") from error


# ---- as text


def tables(score: Score) -> Iterator[Table | str]:
    """What the terminal shows: the runs, the confusion matrix, and the sums."""
    yield _runs(score.rows)
    yield _confusion(score)
    yield from sums(score)


def _runs(rows: Sequence[Row]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "run", "scenario", "verdict", "by", "rate", "truth", "opener", "sessions", "seconds"):
        table.add_column(column, justify="right" if column in ("rate", "truth", "sessions", "seconds") else "left")
    for row in rows:
        table.add_row(
            "ok" if row.is_passed else "--",
            row.name,
            row.scenario,
            VERDICTS[row.verdict],
            row.by or "; ".join(row.reasons)[:60],
            f"{row.rate:.3g}" if row.verdict == "leak" else "",
            "" if row.true_rate is None else f"{row.true_rate:.3g}",
            {True: "right", False: "wrong", None: ""}[row.attributed],
            str(row.sessions),
            f"{row.verdict_s:.1f}",
        )
    return table


def _confusion(score: Score) -> Table:
    """Rows: the truth. Columns: what was said, by Seatbelt and by each of the other rules."""
    rules = _rules(score)
    table = Table(box=None, pad_edge=False, header_style="bold", title="truth against verdict", title_justify="left")
    for column in ("truth", "runs", *VERDICTS.values(), *(f"{rule}: leak" for rule in rules)):
        table.add_column(column, justify="left" if column == "truth" else "right")
    for kind in (*GUILTY, *GUILTLESS):
        rows = score.of(kind)
        if rows:
            said = [sum(row.verdict == verdict for row in rows) for verdict in VERDICTS]
            other = [sum(row.rules.get(rule, False) for row in rows) for rule in rules]
            table.add_row(kind, *map(str, (len(rows), *said, *other)))
    return table


def sums(score: Score) -> Iterator[str]:
    """Recall, false alarms, rates, attribution, time; then the other rules' recall and false alarms."""
    for kind in GUILTY:
        if rows := score.of(kind):
            yield f"recall, {kind:<9}  {_share(row.is_passed for row in rows)}"
    if guiltless := score.of(*GUILTLESS):
        yield f"false alarms       {_share(row.verdict == 'leak' for row in guiltless)}"
        yield f"proven clean       {_share(row.verdict == 'clean' for row in guiltless)}"
    told = [row for row in score.rows if row.true_rate is not None and row.is_passed]
    if told:
        errors = [abs(row.rate - (row.true_rate or 0.0)) / (row.true_rate or 1.0) for row in told]
        yield f"rate error         {statistics.median(errors):.1%} in the median of {len(errors)}"
    for what, is_memory in (("descriptors and the like", False), ("memory", True)):
        known = [row for row in score.rows if row.attributed is not None and row.by.startswith("memory") == is_memory]
        if known:
            yield f"opener right       {_share(bool(row.attributed) for row in known)} of {what}"
    if found := [row for row in score.rows if row.is_guilty and row.is_passed]:
        yield f"time to a verdict  {statistics.median(row.verdict_s for row in found):.1f} s in the median"
        yield f"sessions to it     {statistics.median(row.sessions for row in found):.0f} in the median"
    for rule in _rules(score):
        recall = _share(row.rules.get(rule, False) for row in score.of(*GUILTY))
        alarms = _share(row.rules.get(rule, False) for row in guiltless)
        yield f"rule {rule:<13} recall {recall}, false alarms {alarms}"
    yield f"the whole          {len(score.rows)} runs in {score.seconds / 60:.1f} min, {score.jobs} at a time"


def _rules(score: Score) -> list[str]:
    return list(dict.fromkeys(rule for row in score.rows for rule in row.rules))


def _share(flags: Iterable[bool]) -> str:
    each = list(flags)
    return f"{sum(each)} of {len(each)}" + (f" ({sum(each) / len(each):.0%})" if each else "")


# ---- as a page


def page(score: Score) -> str:
    """One HTML file that needs nothing else."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("reports"), autoescape=True, undefined=jinja2.StrictUndefined
    )

    def confusion(kind: Kind, verdict: str) -> int:
        return sum(row.verdict == verdict for row in score.of(kind))

    def accused(kind: Kind, rule: str) -> int:
        return sum(row.rules.get(rule, False) for row in score.of(kind))

    return environment.get_template("score.html").render(
        score=score,
        kinds=[kind for kind in (*GUILTY, *GUILTLESS) if score.of(kind)],
        verdicts=VERDICTS,
        confusion=confusion,
        accused=accused,
        rules=_rules(score),
        sums=list(sums(score)),
    )
