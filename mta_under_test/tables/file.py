"""A table in a text file, in the format of table(5) and aliases(5).

One entry a line: `key`, `key value`, `key: value` or `key:value`. `#` begins a comment at the start of a line or after
a blank. A colon inside a key that has no blank after it separates too, unless the key is a network address.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mta_under_test.tables.matching import network_of
from mta_under_test.tables.table import Entry, Table, TableError


class FileTable(Table):
    """Made of `text`, or of the file, which `reload` reads again. Raises TableError naming file and line."""

    def __init__(self, name: str, path: Path, text: bytes | None = None) -> None:
        self.path = path
        super().__init__(name, _entries(path, read_table(path) if text is None else text))

    def reload(self, text: bytes | None = None) -> None:
        """Take `text`, or read the file again. Raises TableError, and then the table still answers as before."""
        self._fill(_entries(self.path, read_table(self.path) if text is None else text))


def read_table(path: Path) -> bytes:
    """Raises TableError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise TableError(f"{path}: cannot read the table: {error.strerror}") from error


def _entries(path: Path, text: bytes) -> Iterator[Entry]:
    for number, line in enumerate(text.split(b"\n"), 1):
        where = f"{path}:{number}"
        try:
            entry = _entry(line.decode(), where)
        except UnicodeDecodeError as error:
            raise TableError(f"{where}: byte {line[error.start]:#04x} is not UTF-8") from error
        if entry is not None:
            yield entry


def _entry(line: str, where: str) -> Entry | None:
    words = line.split(maxsplit=1)
    if not words or words[0].startswith("#"):
        return None
    key, value = words[0], _without_comment(words[1] if len(words) > 1 else "")
    wants_value = bool(value)
    if ":" in key and not _is_network(key):
        key, _, start = key.partition(":")
        value = f"{start} {value}".strip()
        wants_value = True
    if not key:
        raise TableError(f"{where}: no key before the colon")
    if wants_value and not value:
        raise TableError(f"{where}: no value for {key!r}")
    return Entry(key, value or None, where)


def _without_comment(text: str) -> str:
    if text.startswith("#"):
        return ""
    cut = min((at for blank in " \t" if (at := text.find(f"{blank}#")) >= 0), default=len(text))
    return text[:cut].strip()


def _is_network(text: str) -> bool:
    try:
        network_of(text)
    except ValueError:
        return False
    return True
