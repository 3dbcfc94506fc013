"""ddmin: delta debugging: of many parts, those without which the failure is gone. Pure.

Source: A. Zeller and R. Hildebrandt, Simplifying and Isolating Failure-Inducing Input, IEEE Transactions on Software
Engineering 28(2), 2002, section 3.2. A test that cannot be judged counts as one that does not fail.

What is returned fails, and is 1-minimal: without any single one of its parts it does not. That takes at most about
n² + 3n tests of n parts; when one part alone is guilty, and every test that has it fails, about 2 log₂ n.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

T = TypeVar("T")


def ddmin(parts: Sequence[T], fails: Callable[[Sequence[T]], bool]) -> list[T]:
    """Some of `parts`, in their order. `parts` themselves must fail; `fails` is asked once about the same ones.

    What `fails` raises ends the search.
    """
    known: dict[tuple[int, ...], bool] = {}

    def test(chosen: tuple[int, ...]) -> bool:
        if chosen not in known:
            known[chosen] = fails([parts[number] for number in chosen])
        return known[chosen]

    left = tuple(range(len(parts)))
    pieces = 2
    while len(left) >= 2:
        subsets = _split(left, pieces)
        complements = [tuple(one for one in left if one not in subset) for subset in map(frozenset, subsets)]
        if (smaller := next(filter(test, subsets), None)) is not None:
            left, pieces = smaller, 2
        elif pieces > 2 and (smaller := next(filter(test, complements), None)) is not None:
            left, pieces = smaller, pieces - 1
        elif pieces < len(left):
            pieces = min(len(left), 2 * pieces)
        else:
            break
    return [parts[number] for number in left]


def _split(numbers: tuple[int, ...], pieces: int) -> list[tuple[int, ...]]:
    """`pieces` runs, as equal as can be; none is empty while there are at least as many numbers."""
    ends = [len(numbers) * piece // pieces for piece in range(pieces + 1)]
    return [numbers[start:end] for start, end in pairwise(ends)]
