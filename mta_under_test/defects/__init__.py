"""Historical bugs that can be re-opened, one file each; the MTA's own code knows nothing of them.

A defect wraps what is born in one process (`processes.parent.Birth`) so that the process runs with one method of a
few lines replaced. `python -m mta_under_test.defects NAME[:P] ... -- SMTPD-ARGUMENTS` starts an smtpd with defects.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mta_under_test.processes.parent import Birth


class DefectError(Exception):
    """No such defect, or a probability that is none."""


Chance = Callable[[], bool]  # does the bug strike this time?


@dataclass(frozen=True)
class Defect:
    """One bug: its story and ground truth, and the overlay that re-opens it."""

    name: str
    role: str  # the process that leaks
    resource: str  # as in the run record
    trigger: str
    rate: str  # what a perfect measurement would say
    scenario: str  # shows it
    source: str  # project, commit or changelog entry, date
    story: str
    overlay: Callable[[Birth, Chance], Birth]


@dataclass(frozen=True)
class Seeded:
    """A defect as asked for: it strikes with this probability each time that it could."""

    defect: Defect
    probability: float = 1.0

    def birth(self, born: Birth, seed: int) -> Birth:
        generator = random.Random(f"{seed} {self.defect.name}")
        return self.defect.overlay(born, lambda: generator.random() < self.probability)

    def __str__(self) -> str:
        return self.defect.name if self.probability == 1.0 else f"{self.defect.name}:{self.probability:g}"


def names() -> list[str]:
    """Every defect's name, as the command line writes it."""
    return sorted(found.name.replace("_", "-") for found in pkgutil.iter_modules(__path__) if found.name != "__main__")


def load(name: str) -> Defect:
    """The defect called `name` ('-' and '_' mean the same). Raises DefectError."""
    known = names()
    wanted = name.replace("_", "-")
    if wanted not in known:
        near = difflib.get_close_matches(wanted, known, 1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise DefectError(f"no defect called {name!r}{hint} There is: {', '.join(known)}")
    module = importlib.import_module(f"{__name__}.{wanted.replace('-', '_')}")
    defect: Defect = module.DEFECT
    return defect


def parse(text: str) -> Seeded:
    """`NAME` or `NAME:PROBABILITY`. Raises DefectError."""
    name, colon, probability_text = text.partition(":")
    defect = load(name)
    try:
        probability = float(probability_text) if colon else 1.0
    except ValueError:
        probability = 0.0
    if not 0.0 < probability <= 1.0:
        raise DefectError(f"{text!r}: the probability is a number above 0 and at most 1, as in {name}:0.02")
    return Seeded(defect, probability)


def reopened(births: dict[str, Birth], seeded: Sequence[Seeded], seed: int) -> dict[str, Birth]:
    """`births` with every defect's overlay in the process that it belongs to."""
    changed = dict(births)
    for one in seeded:
        changed[one.defect.role] = one.birth(changed[one.defect.role], seed)
    return changed
