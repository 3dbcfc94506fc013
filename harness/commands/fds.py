"""fds: what lsof shows of a process tree, classified. `seatbelt fds PID`.

On a terminal a table; otherwise one line a descriptor in columns, unwrapped and without colours, for grep and awk.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from harness.probes import processes
from harness.probes.snapshot import inspect
from harness.probes.twins import Holder, twins
from reports.record import Descriptor, Process

COLUMNS = ("ROLE", "PID", "FD", "KIND", "STATE/FLAGS", "DEVICE", "INODE", "TWINS", "NAME")
SUMMARY_COLUMNS = ("ROLE", "KIND", "COUNT", "DELETED")
RIGHT_ALIGNED = frozenset({"PID", "FD", "DEVICE", "INODE", "TWINS", "COUNT", "DELETED"})

_ACCESS = {os.O_RDONLY: "r", os.O_WRONLY: "w", os.O_RDWR: "rw"}
_FLAGS = {
    os.O_APPEND: "append",
    os.O_NONBLOCK: "nonblock",
    os.O_DIRECT: "direct",
    os.O_DSYNC: "dsync",
    os.O_PATH: "path",
    os.O_CLOEXEC: "cloexec",
}
_VISIBLE = {number: f"\\x{number:02x}" for number in (*range(32), *range(127, 160))}  # one descriptor, one line


class Row(msgspec.Struct, frozen=True):
    """One descriptor, as ``--json`` prints it."""

    role: str
    pid: int
    fd: int
    kind: str
    state: str
    flags: list[str]
    device: str  # major,minor
    inode: int
    name: str
    deleted: bool
    local: str
    peer: str
    watches: int  # what an epoll or an inotify watches
    stale_watches: int  # of an epoll's, those that the process has closed
    twins: list[str]  # pid/fd of the others that are the same open file: duplicated, inherited or passed


class SummaryRow(msgspec.Struct, frozen=True):
    role: str
    kind: str
    count: int
    deleted: int  # of the count


def run(pid: int, as_json: bool, summary: bool, tree: bool = True) -> int:
    """Print what `pid`, and with `tree` everything below it, has open. The exit status: 0, or 2 with the reason told.

    What cannot be read of some processes of the tree is told on standard error; the rest is printed.
    """
    found, unreadable = inspect(processes.tree(pid) if tree else [pid])
    if not found:
        return _refuse(f"no process with pid {pid}")
    if unreadable and not any(process.descriptors for process in found):
        return _refuse(unreadable[0])
    for problem in unreadable:
        print(f"seatbelt: {problem}", file=sys.stderr)
    same = twins(found)
    rows = [_row(process, descriptor, same) for process in found for descriptor in process.descriptors]
    if as_json:
        answer: Sequence[Row] | Sequence[SummaryRow] = summarized(rows) if summary else rows
        print(msgspec.json.format(msgspec.json.encode(answer), indent=2).decode())
    elif summary:
        cells = [(each.role, each.kind, str(each.count), str(each.deleted)) for each in summarized(rows)]
        _print_table(SUMMARY_COLUMNS, cells)
    else:
        _print_table(COLUMNS, [_cells(row) for row in rows])
    return 0


def summarized(rows: Sequence[Row]) -> list[SummaryRow]:
    """Counts by role and kind, in the order of the roles' first appearance."""
    counts = Counter((row.role, row.kind) for row in rows)
    deleted = Counter((row.role, row.kind) for row in rows if row.deleted)
    roles = list(dict.fromkeys(row.role for row in rows))
    return [
        SummaryRow(role, kind, count, deleted[role, kind])
        for (role, kind), count in sorted(counts.items(), key=lambda item: (roles.index(item[0][0]), item[0][1]))
    ]


def _refuse(reason: str) -> int:
    print(f"seatbelt: {reason}", file=sys.stderr)
    return 2


def _row(process: Process, descriptor: Descriptor, same: Mapping[Holder, Sequence[Holder]]) -> Row:
    return Row(
        role=process.role,
        pid=process.pid,
        fd=descriptor.fd,
        kind=descriptor.kind,
        state=descriptor.state,
        flags=_flags(descriptor.flags),
        device=f"{os.major(descriptor.device)},{os.minor(descriptor.device)}",
        inode=descriptor.inode,
        name=descriptor.target,
        deleted=descriptor.deleted,
        local=descriptor.local,
        peer=descriptor.peer,
        watches=descriptor.watches,
        stale_watches=descriptor.stale_watches,
        twins=[f"{other.pid}/{other.fd}" for other in same.get(Holder(process.pid, descriptor.fd), ())],
    )


def _flags(flags: int) -> list[str]:
    """The access mode, then every flag that fcntl(2) can tell, by name."""
    return [_ACCESS.get(flags & os.O_ACCMODE, "?")] + [name for bit, name in _FLAGS.items() if flags & bit == bit]


def _cells(row: Row) -> tuple[str, ...]:
    name = row.name
    if row.peer:
        name = f"{row.local}->{row.peer}"
    elif row.local:
        name = row.local
    if row.watches:
        name += f" watches {row.watches}" + (f", {row.stale_watches} of them closed" if row.stale_watches else "")
    if row.deleted:
        name += " (deleted)"
    return (
        row.role.replace(" ", "-").translate(_VISIBLE),
        str(row.pid),
        str(row.fd),
        row.kind,
        row.state or ",".join(row.flags),
        row.device,
        str(row.inode),
        str(len(row.twins) or "-"),
        name.translate(_VISIBLE),
    )


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if sys.stdout.isatty():
        _print_rich(columns, rows)
        return
    widths = [max(len(cell) for cell in column) for column in zip(columns, *rows, strict=True)]
    for row in (columns, *rows):
        cells = [
            cell.rjust(width) if column in RIGHT_ALIGNED else cell.ljust(width)
            for column, cell, width in zip(columns, row, widths, strict=True)
        ]
        print("  ".join(cells).rstrip())


def _print_rich(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console  # late: slow to import
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in RIGHT_ALIGNED else "left", overflow="fold")
    for row in rows:
        deleted = row[-1].endswith("(deleted)")
        table.add_row(*(Text(cell) for cell in row), style="red" if deleted else "")
    Console().print(table)
