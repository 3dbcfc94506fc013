"""compiled: shared libraries in C, built from their source beside the code that loads them, when first needed.

Owns: finding a compiler, building, keeping what was built in the cache. Never: loads a library.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path

from harness.cache import cache_directory

COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-shared", "-fPIC", "-O2", "-g", "-pthread")
TIMEOUT_S = 60.0


class NativeError(Exception):
    """A library cannot be had here; one line says why, and what would help."""


@cache
def library(source: Path) -> Path:
    """What `source` becomes, from the cache or compiled into it. Raises NativeError."""
    text = source.read_bytes()
    what = hashlib.sha256(b"\0".join((text, " ".join(FLAGS).encode(), platform.machine().encode()))).hexdigest()[:16]
    try:
        built = cache_directory().resolve() / "native" / f"{source.stem}-{what}.so"
    except RuntimeError as error:  # nobody's home
        raise NativeError(f"no place for what is compiled: {error}; set SEATBELT_CACHE to a directory") from error
    if not built.exists():
        _compile(source, built)
    return built


def _compile(source: Path, built: Path) -> None:
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise NativeError(f"no C compiler to build {source.name} with: install gcc")
    partial = built.with_name(f"{built.name}.{os.getpid()}")  # whoever sees it under its own name sees it whole
    command = [compiler, *FLAGS, "-o", str(partial), str(source), "-ldl"]
    try:
        built.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        if done.returncode:
            lines = done.stderr.splitlines() or [f"status {done.returncode}"]
            said = next((line for line in lines if "error:" in line), lines[0])
            raise NativeError(f"{compiler} cannot build {source.name}: {said}")
        partial.rename(built)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeError(f"{source.name}: cannot be built: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
