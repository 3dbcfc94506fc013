"""What the right side of an alias and a `.forward` file say: nodes, and which entry of a table a name finds.

Text in, `Node`s out: aliases(5) and forward(5). Never: reads a file, decides who may deliver where.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import NamedTuple

from mta_under_test.tables.table import Service, Table
from mta_under_test.wire.address import AddressError, parse_mailbox


class NodeKind(enum.Enum):
    USER = "user"
    ADDRESS = "address"
    FILE = "file"
    PROGRAM = "program"
    INCLUDE = "include"
    ERROR = "error"


class Node(NamedTuple):
    """One target. `text` is without the sign that told its kind; `final` (`\\user`): it is not expanded further."""

    kind: NodeKind
    text: str
    final: bool = False


class BadNode(Exception):
    """Text that is no target of mail; says which, and why."""


def parse_nodes(text: str) -> list[Node]:
    """Targets by comma or line end; `#` begins a comment at the start of a line or after a blank. Raises BadNode."""
    return [_node(part) for line in text.splitlines() for part in _parts(line)]


def _parts(line: str) -> Iterator[str]:
    """What commas separate: not those inside quotes, nor in the text of `error:`, which is the rest of its line."""
    part, quoted, escaped = "", False, False
    for place, character in enumerate(line):
        if escaped:
            escaped = False
        elif character == "\\" and quoted:
            escaped = True
        elif character == '"':
            quoted = not quoted
        elif character == "#" and not quoted and (place == 0 or line[place - 1].isspace()):
            break
        elif character == "," and not quoted and not part.strip().strip('"').lower().startswith("error:"):
            if part.strip():
                yield part.strip()
            part = ""
            continue
        part += character
    if quoted:
        raise BadNode(f"{line.strip()!r}: the quote has no end")
    if part.strip():
        yield part.strip()


def _node(text: str) -> Node:
    inner = text
    if inner.startswith("|") and len(inner) > 1 and inner[1] == '"':  # |"command with blanks", as sendmail has it
        inner = "|" + _unquoted(inner[1:])
    elif inner.startswith('"') and inner.endswith('"') and len(inner) > 1:
        inner = _unquoted(inner)
    lowered = inner.lower()
    if lowered.startswith("error:"):
        return Node(NodeKind.ERROR, inner[6:].strip() or "550 5.1.1 Invalid recipient")
    if lowered.startswith(":include:"):
        return _file(NodeKind.INCLUDE, inner[9:].strip().strip('"'), text)
    if inner.startswith("|"):
        command = inner[1:].strip()
        if not command:
            raise BadNode(f"{text!r} has no command after the |")
        return Node(NodeKind.PROGRAM, command)
    if inner.startswith("/"):
        return _file(NodeKind.FILE, inner, text)
    if "@" in text:
        try:
            return Node(NodeKind.ADDRESS, str(parse_mailbox(text.removeprefix("\\"))))
        except AddressError as error:
            raise BadNode(f"{text!r}: {error}") from error
    final = inner.startswith("\\")
    name = inner.removeprefix("\\")
    if not name or any(character.isspace() or character in ',;:<>()"' for character in name):
        raise BadNode(f"{text!r} is neither a user, an address, /file, |program nor :include:file")
    return Node(NodeKind.USER, name.lower(), final)


def _file(kind: NodeKind, path: str, text: str) -> Node:
    if not path.startswith("/") or "\0" in path or path.endswith("/"):
        raise BadNode(f"{text!r}: write the whole path of a file")
    return Node(kind, path)


def _unquoted(text: str) -> str:
    """Without the quotes around it; inside them a backslash keeps the character after it."""
    plain, escaped = "", False
    for character in text[1:-1] if text.endswith('"') else text[1:]:
        if escaped or character != "\\":
            plain, escaped = plain + character, False
        else:
            escaped = True
    return plain


def alias_of(table: Table, user: str, delimiter: str) -> str | None:
    """The alias of a user: with its tag first (`user+tag`), then without."""
    return _first(table, (user, user.partition(delimiter)[0]) if delimiter in user else (user,))


def virtual_of(table: Table, user: str, domain: str, delimiter: str) -> str | None:
    """What a virtual table says of an address: `user+tag@domain`, `user@domain`, `user`, `@domain`, `@`, in this order.

    The order is aliases.c's of OpenSMTPD.
    """
    plain = user.partition(delimiter)[0]
    tagged = (f"{user}@{domain}",) if plain != user else ()
    return _first(table, (*tagged, f"{plain}@{domain}", plain, f"@{domain}", "@"))


def _first(table: Table, keys: tuple[str, ...]) -> str | None:
    for key in keys:
        if (found := table.value(Service.ALIAS, key)) is not None:
            return found
    return None
