"""Debian's packages for tests: unpacked once into the cache; a test that cannot have its package is skipped, loudly."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.targets.debian import Unavailable, unpack


def unpacked(package: str, *others: str) -> Path:
    try:
        return unpack(package, *others)
    except Unavailable as reason:
        pytest.skip(f"needs Debian's {package}: {reason}")
