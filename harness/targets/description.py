"""Descriptions of servers: TOML files, those that come with Seatbelt (`servers/`) and anybody's.

A mistake is told with file, line and key. What the keys mean: `harness.targets.server`, and docs/targets.md.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from harness.targets import TargetError
from harness.targets.server import COMMAND, Key, Queue, Server, check

SUFFIX = ".toml"
_FOLDER = Path(__file__).resolve().parent / "servers"
_AT = re.compile(r" - at `\$\.?(.*)`$")  # msgspec's word for where: `$.queue.command[1]`
_INDEX = re.compile(r"\[.*?\]")
_UNKNOWN = re.compile(r"unknown field `(.*)`")
_TABLE = re.compile(r"\s*\[([\w.-]+)\]\s*(?:#.*)?$")
_ASSIGNED = re.compile(r"""\s*(?:"([^"]+)"|'([^']+)'|([\w-]+))\s*=""")
_LONG = re.compile(r'"""|' + "'''")


def names() -> list[str]:
    """Of the descriptions that come with Seatbelt."""
    return sorted(path.stem for path in _FOLDER.glob(f"*{SUFFIX}"))


def load(name: str) -> Server:
    """The description called `name`, or the one in the file `name`, which ends in .toml. Raises TargetError."""
    if name.endswith(SUFFIX):
        return read(Path(name))
    if name not in (known := names()):
        near = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise TargetError(f"no server called {name!r}{hint} There is: {', '.join(known)}; a file ends in {SUFFIX}")
    return read(_FOLDER / f"{name}{SUFFIX}")


def read(path: Path) -> Server:
    """Raises TargetError with file, line and key."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise TargetError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TargetError(f"{path}: {error}") from error

    def where(key: Key) -> str:
        line = _line_of(text, key)
        return f"{path}{f':{line}' if line else ''}: {'.'.join(key)}"

    try:
        server = msgspec.toml.decode(text, type=Server)
    except msgspec.ValidationError as error:
        found = _AT.search(str(error))
        key = tuple(filter(None, _INDEX.sub("", found[1]).split("."))) if found else ()
        what = _AT.sub("", str(error))
        if unknown := _UNKNOWN.search(what):
            there_is = (Queue if key else Server).__struct_fields__
            raise TargetError(f"{where((*key, unknown[1]))}: no such key; there is {', '.join(there_is)}") from error
        raise TargetError(f"{where(key) if key else path}: {what}") from error
    except msgspec.DecodeError as error:
        raise TargetError(f"{path}: {error}") from error
    name = path.stem if server.name == COMMAND else server.name
    server = msgspec.structs.replace(server, name=name, here=str(path.resolve().parent))
    check(server, where)
    return server


def _line_of(text: str, key: Key) -> int:
    """The line on which `key` is set, else that of its table; 0 when neither is found."""
    table_line = 0
    for number, each in _keys(text):
        if each == key:
            return number
        if each == key[: len(each)] and not table_line:
            table_line = number
    return table_line


def _keys(text: str) -> Iterator[tuple[int, Key]]:
    """Each table and each key with its line, beginning with 1. Lines of long strings are passed over."""
    table: Key = ()
    is_inside = False
    for number, line in enumerate(text.splitlines(), 1):
        if not is_inside:
            if found := _TABLE.match(line):
                table = tuple(found[1].split("."))
                yield number, table
            elif found := _ASSIGNED.match(line):
                yield number, (*table, found[1] or found[2] or found[3])
        is_inside ^= len(_LONG.findall(line)) % 2 == 1
