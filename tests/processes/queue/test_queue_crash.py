"""A few rounds of benchmarks/crash.py: kill -9 of every role and loss of power, under load."""

from __future__ import annotations

import asyncio
from pathlib import Path

from benchmarks.crash import rounds


def test_nothing_acknowledged_is_lost_and_nothing_is_delivered_changed(tmp_path: Path) -> None:
    ledger = asyncio.run(rounds(8, 3, tmp_path))
    assert ledger.acknowledged
    assert ledger.crashes.total() == 8
    assert ledger.lost == []
    assert ledger.wrong == []
