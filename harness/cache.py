"""Where the harness keeps what it made or fetched once: unpacked packages, compiled libraries."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """`$SEATBELT_CACHE`, or `seatbelt` in the user's cache directory (XDG Base Directory Specification)."""
    if chosen := os.environ.get("SEATBELT_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "seatbelt"
