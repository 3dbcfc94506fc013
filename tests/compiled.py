"""C programs for tests: compiled from the tests' sources; where there is no compiler the test is skipped, loudly."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parent


def compiled(source: str, directory: Path, *flags: str) -> Path:
    """`source` is below tests/; with debugging information unless `flags` say otherwise."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip(f"needs a C compiler to build {source}: install gcc")
    program = directory / Path(source).stem
    subprocess.run([compiler, "-g", "-O1", *flags, "-o", program, SOURCES / source], check=True, timeout=60)
    return program
