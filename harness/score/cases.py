"""cases: which runs a score is made of. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

from mta_under_test.defects import Defect


@dataclass(frozen=True)
class Case:
    """One run; without a defect it is a clean twin, and whatever is found in it is a false alarm."""

    scenario: str
    profile: str
    seed: int
    defect: Defect | None = None

    @property
    def name(self) -> str:
        return self.defect.name if self.defect is not None else f"clean {self.scenario} {self.seed}"

    @property
    def is_short(self) -> bool:
        """A finding of what is counted ends a run before the memory rounds."""
        defect = self.defect
        return defect is not None and defect.difficulty != "innocent" and "memory" not in defect.resources


def cases(
    defects: Iterable[Defect], scenarios: Sequence[str], *, only: str = "*", clean: int = 1, seed: int = 1
) -> list[Case]:
    """The defects whose names match the glob `only`, and `clean` twins of each scenario whose `clean NAME` does."""
    chosen = [Case(defect.scenario, defect.profile, seed, defect) for defect in defects if fnmatch(defect.name, only)]
    twins = [
        Case(scenario, "quick", seed + number)
        for number in range(clean)
        for scenario in scenarios
        if fnmatch(f"clean {scenario}", only)
    ]
    return chosen + twins


def haste(case: Case) -> tuple[bool, bool]:
    """A sort key. The longest runs first, so that the last to end is a short one."""
    return case.profile == "quick", case.is_short
