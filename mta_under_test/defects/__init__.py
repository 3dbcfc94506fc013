"""Historical bugs that can be re-opened; the MTA's own code knows nothing of them.

A defect replaces one or two methods of a few lines, in one process, when that process is born. They stand in
`catalogue/`, one file for each process, each with its story and its ground truth. So do the innocents: behaviour that
looks like a leak and is none. `python -m mta_under_test.defects NAME[:P] ... -- SMTPD-ARGUMENTS` starts an smtpd with
defects.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import pkgutil
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mta_under_test.processes.parent.parent import Birth
from mta_under_test.processes.process import Process, Sockets, Start


class DefectError(Exception):
    """No such defect, or a probability that is none."""


Chance = Callable[[], bool]  # does the bug strike this time?
Overlay = Callable[[Chance], None]  # re-opens the bug in the process that calls it
Chapter = Literal[  # of the list of leaks that real mail servers had
    "message file", "socket", "pipe", "exhaustion", "memory", "tls memory", "cache", "child", "counter"
]
Difficulty = Literal["certain", "rare", "slow", "wrong way", "innocent"]


@dataclass(frozen=True)
class Defect:
    """One bug: its story and ground truth, and the overlay that re-opens it."""

    name: str
    role: str  # the process that leaks
    chapter: Chapter
    resources: tuple[str, ...]  # as in the run record; a finding about any of them is right; empty for an innocent
    trigger: str
    rate: float | None  # for each unit of the scenario, as a perfect measurement would find it; None: not countable
    scenario: str  # shows it
    source: str  # project, commit or changelog entry, date
    story: str
    overlay: Overlay
    difficulty: Difficulty = "certain"  # rare: 1 in 50 or less; wrong way: closes or frees too much
    probability: float = 1.0  # with which it strikes unless told otherwise
    profile: str = "quick"  # of the run that must find it
    # `file.py:function` where what leaks is opened or made; several, with spaces between them, where objects that hold
    # each other are made in several places; empty: nowhere in particular.
    opener: str = ""


REGISTRY: dict[str, Defect] = {}


def defect(
    *,
    role: str,
    chapter: Chapter,
    resources: tuple[str, ...],
    trigger: str,
    rate: float | None,
    scenario: str,
    source: str,
    difficulty: Difficulty = "certain",
    probability: float = 1.0,
    profile: str = "quick",
    opener: str = "",
) -> Callable[[Overlay], Overlay]:
    """Put an overlay into the catalogue: its name is the function's, with `-` for `_`; its docstring is the story."""

    def enter(overlay: Overlay) -> Overlay:
        name = overlay.__name__.replace("_", "-")
        assert name not in REGISTRY, name
        story = " ".join(inspect.cleandoc(overlay.__doc__ or "").split())
        REGISTRY[name] = Defect(
            name,
            role,
            chapter,
            resources,
            trigger,
            rate,
            scenario,
            source,
            story,
            overlay,
            difficulty,
            probability,
            profile,
            opener,
        )
        return overlay

    return enter


def around(owner: Any, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Put the decorated function in the place of `owner.name`: it gets the original first, then the arguments.

    Raises AttributeError when there is nothing of that name to replace: then the defect is out of date.
    """
    original = getattr(owner, name)

    def put(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def instead(*arguments: Any, **keywords: Any) -> Any:
            return function(original, *arguments, **keywords)

        setattr(owner, name, instead)
        return function

    return put


@dataclass(frozen=True)
class Seeded:
    """A defect as asked for: it strikes with this probability each time that it could."""

    defect: Defect
    probability: float = 1.0

    def birth(self, born: Birth, seed: int) -> Birth:
        generator = random.Random(f"{seed} {self.defect.name}")

        def birth(start: Start, sockets: Sockets) -> Process:
            # In the child already: what is replaced here is replaced in this process alone.
            self.defect.overlay(lambda: generator.random() < self.probability)
            return born(start, sockets)

        return birth

    def __str__(self) -> str:
        name, usual = self.defect.name, self.defect.probability
        return name if self.probability == usual else f"{name}:{self.probability:g}"


def names() -> list[str]:
    """Every defect's name, as the command line writes it."""
    return sorted(every())


def every() -> dict[str, Defect]:
    """Every defect by its name."""
    package = importlib.import_module(f"{__name__}.catalogue")
    for found in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{found.name}")
    return REGISTRY


def load(name: str) -> Defect:
    """The defect called `name` ('-' and '_' mean the same). Raises DefectError."""
    known = every()
    wanted = name.replace("_", "-")
    if wanted not in known:
        near = difflib.get_close_matches(wanted, known, 1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise DefectError(f"no defect called {name!r}{hint} There is: {', '.join(sorted(known))}")
    return known[wanted]


def parse(text: str) -> Seeded:
    """`NAME` or `NAME:PROBABILITY`. Raises DefectError."""
    name, colon, probability_text = text.partition(":")
    defect = load(name)
    try:
        probability = float(probability_text) if colon else defect.probability
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
