"""compiled: shared libraries in C, built from their source beside the code that loads them, when first needed.

Owns: finding a compiler, building, keeping what was built in the cache. Never: loads a library.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from harness.cache import cache_directory

COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-shared", "-fPIC", "-O2", "-g", "-pthread")
TIMEOUT_S = 60.0


class NativeError(Exception):
    """A library cannot be had here; one line says why, and what would help."""


@cache
def library(source: Path, *others: Path) -> Path:
    """What `source`, with its other sources and headers, becomes, from the cache or compiled into it.

    Raises NativeError.
    """
    texts = [each.read_bytes() for each in (source, *others)]
    what = hashlib.sha256(b"\0".join([*texts, _for_whom().encode()])).hexdigest()[:16]
    try:
        built = cache_directory().resolve() / "native" / f"{source.stem}-{what}.so"
        if not built.exists():
            _compile([source, *(each for each in others if each.suffix == ".c")], built)
    except RuntimeError as error:  # nobody's home
        raise NativeError(f"no place for what is compiled: {error}; set SEATBELT_CACHE to a directory") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeError(f"{source.name}: cannot be built: {error}") from error
    return built


def _for_whom() -> str:
    """A cache may be shared among machines and containers, and what one builds another's C library may refuse."""
    version = os.confstr("CS_GNU_LIBC_VERSION") if "CS_GNU_LIBC_VERSION" in os.confstr_names else None
    return " ".join((*FLAGS, platform.machine(), sysconfig.get_config_var("SOABI") or "", version or ""))


def _compile(sources: Sequence[Path], built: Path) -> None:
    source = sources[0]
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise NativeError(f"no C compiler to build {source.name} with: install gcc")
    built.parent.mkdir(parents=True, exist_ok=True)
    # Whoever sees it under its own name sees it whole: it is built beside, where nobody else builds.
    with tempfile.TemporaryDirectory(prefix=f"{source.stem}-", dir=built.parent) as beside:
        partial = Path(beside) / built.name
        done = subprocess.run(
            [compiler, *FLAGS, "-o", str(partial), *map(str, sources), "-ldl"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "LC_ALL": "C"},
            timeout=TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            lines = done.stderr.splitlines() or [f"status {done.returncode}"]
            said = next((line for line in lines if "error:" in line), lines[0])
            hint = "; install libc6-dev, or linux-headers where that is it" if "No such file" in said else ""
            raise NativeError(f"{compiler} cannot build {source.name}: {said}{hint}")
        partial.rename(built)
