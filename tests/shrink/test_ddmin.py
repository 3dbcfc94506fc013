"""Delta debugging keeps what matters, and nothing else, whatever the failure is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.shrink.ddmin import ddmin


@given(st.lists(st.integers(), max_size=40, unique=True), st.data())
def test_what_is_needed_together_is_all_that_is_left(parts: list[int], data: st.DataObject) -> None:
    needed = set(data.draw(st.lists(st.sampled_from(parts), min_size=1, max_size=5))) if parts else set()
    found = ddmin(parts, lambda chosen: needed <= set(chosen))
    assert found == [part for part in parts if part in needed] or (not needed and len(found) <= 1)


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers())
def test_any_failure_is_left_1_minimal(parts: list[bool], seed: int) -> None:
    """With a failure of no rule at all: some sets of parts fail, as a hash of them says."""
    numbered = list(enumerate(parts))

    def fails(chosen: Sequence[tuple[int, bool]]) -> bool:
        return list(chosen) == numbered or bool(chosen and hash((seed, tuple(chosen))) % 3 == 0)

    found = ddmin(numbered, fails)
    assert fails(found)
    assert found == sorted(found)
    if len(found) > 1:
        assert not any(fails([each for each in found if each != left_out]) for left_out in found)


@given(st.integers(min_value=2, max_value=1000), st.data())
def test_one_guilty_part_is_found_in_twice_the_logarithm(size: int, data: st.DataObject) -> None:
    guilty = data.draw(st.integers(min_value=0, max_value=size - 1))
    asked: list[Sequence[int]] = []

    def fails(chosen: Sequence[int]) -> bool:
        asked.append(chosen)
        return guilty in chosen

    assert ddmin(range(size), fails) == [guilty]
    assert len(asked) <= 2 * math.ceil(math.log2(size))


@given(st.integers(min_value=0, max_value=30))
def test_when_everything_is_needed_the_worst_case_is_as_published(size: int) -> None:
    tests = 0

    def fails(chosen: Sequence[int]) -> bool:
        nonlocal tests
        tests += 1
        return len(chosen) == size

    assert ddmin(range(size), fails) == list(range(size))
    assert tests <= size**2 + 3 * size


def test_nothing_is_asked_twice() -> None:
    asked: list[tuple[int, ...]] = []

    def fails(chosen: Sequence[int]) -> bool:
        asked.append(tuple(chosen))
        return {1, 6} <= set(chosen)

    assert ddmin(range(8), fails) == [1, 6]
    assert len(asked) == len(set(asked))


def test_what_the_test_raises_ends_the_search() -> None:
    def fails(chosen: Sequence[int]) -> bool:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        ddmin(range(4), fails)
