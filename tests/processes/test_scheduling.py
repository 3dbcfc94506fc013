"""When the next try is due."""

from __future__ import annotations

from mta_under_test.processes.scheduler import next_try


def test_retries_are_quadratic_as_opensmtpds() -> None:
    assert [next_try(1000, tries, 800) - 1000 for tries in (1, 2, 3, 4)] == [400, 1600, 3600, 6400]
    assert [next_try(0, tries, 10) for tries in (1, 2, 3)] == [5, 20, 45]
