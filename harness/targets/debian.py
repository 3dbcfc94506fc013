"""Debian's packages, unpacked and not installed: real servers in a directory of ours, without touching the system.

`apt-get download` fetches, `dpkg -x` unpacks, both without any right on the system. A package is unpacked once and
kept in the cache; several processes may ask for the same one at once.

Owns: the cache directory. Never: installs, runs a package's scripts.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from harness.cache import cache_directory

TIMEOUT_S = 300.0
DEPTH = 3  # libraries of libraries of libraries
_MISSING = re.compile(r"^\s*(\S+) => not found$", re.MULTILINE)


class Unavailable(Exception):
    """A package cannot be had here; says why and what would help."""


def unpack(package: str, *others: str, cache: Path | None = None) -> Path:
    """The directory that holds the package's files (`usr/sbin/…` and so on), and those of others that it needs.

    Libraries are found without being named. Raises Unavailable.
    """
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise Unavailable(f"{package}: no {tool} here; packages can be unpacked on Debian and its like")
    root = (cache or cache_directory()) / "debian"
    root.mkdir(parents=True, exist_ok=True)
    # Named after all of them, and short: it is in many a path that an error tells.
    mark = f"+{sha256(' '.join(others).encode()).hexdigest()[:8]}" if others else ""
    tree = root / f"{package}{mark}"
    with locked(root / f"{tree.name}.lock"):
        if not tree.exists():
            _fetch((package, *others), tree)
    return tree


def library_path(tree: Path) -> str:
    """LD_LIBRARY_PATH for programs of an unpacked tree."""
    directories = sorted({str(path.parent) for path in tree.rglob("*.so*") if path.is_file()})
    return ":".join(directories)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time, of all that ask for the same `path`, which is made."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(packages: Sequence[str], tree: Path) -> None:
    """Unpack beside the place and rename, so that a tree which is there is whole."""
    parts = tree.with_name(f"{tree.name}.part")
    shutil.rmtree(parts, ignore_errors=True)
    downloads = parts / "downloads"
    downloads.mkdir(parents=True)
    files = parts / "files"
    for package in packages:
        _download(package, downloads)
    _unpack_all(downloads, files)
    wanted = list(packages)
    for _ in range(DEPTH):
        if not _missing_libraries(files):
            break
        libraries = dict.fromkeys(library for name in wanted for library in _dependencies(name))
        wanted = [library for library in libraries if not _is_installed(library)]
        for library in wanted:
            _download(library, downloads)
        _unpack_all(downloads, files)
    if missing := _missing_libraries(files):
        raise Unavailable(f"{packages[0]}: lacks {', '.join(sorted(missing))}; install what it depends on")
    files.rename(tree)
    shutil.rmtree(parts)


def _download(package: str, into: Path) -> None:
    done = _run(["apt-get", "download", package], into)
    if done.returncode and os.geteuid() == 0:
        # The lists of packages may be missing or old, as in a fresh container.
        _run(["apt-get", "update", "-qq"], into)
        done = _run(["apt-get", "download", package], into)
    if done.returncode:
        reason = next((line for line in done.stderr.splitlines() if line.startswith("E:")), "apt-get download failed")
        raise Unavailable(f"{package}: {reason.removeprefix('E: ')} (no network, or `apt-get update` was never run?)")


def _unpack_all(downloads: Path, files: Path) -> None:
    for archive in sorted(downloads.glob("*.deb")):
        done = _run(["dpkg", "-x", str(archive), str(files)], downloads)
        if done.returncode:
            raise Unavailable(f"{archive.name}: {done.stderr.strip()}")


def _dependencies(package: str) -> list[str]:
    done = _run(["apt-cache", "depends", "--no-recommends", "--no-suggests", package], Path("/"))
    found = re.findall(r"^\s*Depends: ([a-z0-9][a-z0-9+.-]*)$", done.stdout, re.MULTILINE)
    return [name for name in found if name.startswith("lib")]


def _is_installed(package: str) -> bool:
    done = _run(["dpkg-query", "--show", "--showformat", "${db:Status-Status}", package], Path("/"))
    return done.stdout == "installed"


def _missing_libraries(files: Path) -> set[str]:
    missing: set[str] = set()
    environment = {**os.environ, "LD_LIBRARY_PATH": library_path(files)}
    for folder in ("usr/sbin", "usr/bin", "usr/libexec", "usr/lib"):
        for program in (files / folder).rglob("*"):
            if program.is_file() and os.access(program, os.X_OK) and program.open("rb").read(4) == b"\x7fELF":
                done = subprocess.run(
                    ["ldd", str(program)], capture_output=True, text=True, env=environment, timeout=60, check=False
                )
                missing.update(_MISSING.findall(done.stdout))
    return missing


def _run(command: list[str], directory: Path) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{' '.join(command)}: no answer within {TIMEOUT_S:.0f} s") from error
