"""files: what lies in a spool. Names only; nothing is opened.

Every name below the root that is not a directory is listed: messages, envelopes, temporary files, locks, sockets that
nobody listens on any more. Empty directories are not: daemons keep them for the next message.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from harness.probes.processes import text

MAX_FILES = 100_000  # a spool of more is not listed to its end: `Listing.problems` says so
_ENVELOPE = re.compile(r"queue/[0-9a-f]{2}/[0-9a-f]{8}/[0-9a-f]{16}")  # HH/MSGID/EVPID, as OpenSMTPD lays them out


class Listing(NamedTuple):
    names: list[str]  # relative to the root, sorted
    problems: list[str]  # why it is not all; a sentence each, with what to do


def read(root: Path, limit: int = MAX_FILES) -> Listing:
    """At most `limit` names. What disappears during the walk is skipped; a root that is no directory is a problem."""
    top = os.fsencode(root)
    names: list[bytes] = []
    problems: list[str] = []
    todo = [b""]
    while todo:
        below = todo.pop()
        try:
            with os.scandir(os.path.join(top, below)) as entries:  # bytes: names need not be UTF-8
                for entry in entries:
                    name = below + entry.name
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(name + b"/")
                    elif len(names) < limit:
                        names.append(name)
                    else:
                        todo.clear()
                        problems.append(f"spool {root}: more than {limit} files; only {limit} were listed")
                        break
        except PermissionError:
            problems.append(f"spool directory {text(top + b'/' + below)}: run as root or as its owner")
        except (FileNotFoundError, NotADirectoryError) as error:
            if not below:
                missing = isinstance(error, FileNotFoundError)
                problems.append(f"spool {root}: {'no such directory' if missing else 'not a directory'}")
    return Listing([text(name) for name in sorted(names)], problems)


def envelopes(names: Iterable[str]) -> int:
    """How many of a spool's files are envelopes, in OpenSMTPD's layout."""
    return sum(_ENVELOPE.fullmatch(name) is not None for name in names)
