"""parent's part in filters: the programs are started once, before any process of the daemon, and end with it.

Owns: how a program is started: by its words and never by a shell, as the user that the configuration names, in a
session of its own, with one socket for its questions and answers and one for what it has to complain about.
"""

from __future__ import annotations

import grp
import os
import pwd
import shlex
import signal
import socket
import subprocess
from collections.abc import Callable, Iterable
from typing import NamedTuple

from mta_under_test.config import Config, ProcFilter
from mta_under_test.processes.privileges import Account, Drop


class FilterError(Exception):
    """A filter's program cannot be started; one line says which, and why."""


class FilterProgram(NamedTuple):
    """A running program, and our ends of its sockets."""

    pid: int
    lines: socket.socket
    complaints: socket.socket

    def close(self) -> None:
        self.lines.close()
        self.complaints.close()


def start_programs(config: Config, drop: Drop | None) -> dict[str, FilterProgram]:
    """Start each program that a filter names, once; as `drop`'s user where it names none. By its name.

    Raises FilterError, and then none is left.
    """
    wanted = {one.name: one for one in config.filters.values() if isinstance(one, ProcFilter)}
    started: dict[str, FilterProgram] = {}
    try:
        for name, filter_ in wanted.items():
            started[name] = _start(filter_, None if drop is None else drop.user)
    except FilterError:
        _end(started.values())
        raise
    return started


def _start(wanted: ProcFilter, account: Account | None) -> FilterProgram:
    words, become = _words(wanted), _become(wanted, account)
    ours, theirs = socket.socketpair()
    hears, complains = socket.socketpair()
    try:
        process = subprocess.Popen(
            words,
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=complains.fileno(),
            start_new_session=True,
            preexec_fn=become,
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        ours.close()
        hears.close()
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise FilterError(f"smtpd: filter {wanted.name}: cannot run {wanted.command!r}: {reason}") from error
    finally:
        theirs.close()
        complains.close()
    process.returncode = 0  # parent waits for the process itself; Popen must neither wait nor warn
    return FilterProgram(process.pid, ours, hears)


def _words(wanted: ProcFilter) -> list[str]:
    try:
        return shlex.split(wanted.command)
    except ValueError as error:
        raise FilterError(f"smtpd: filter {wanted.name}: cannot read {wanted.command!r}: {error}") from error


def _become(wanted: ProcFilter, account: Account | None) -> Callable[[], None] | None:
    """What the child does before it runs the program: its root, its group, its user; in this order."""
    if not (wanted.chroot or wanted.user or wanted.group or account):
        return None
    uid, gid = (-1, -1) if account is None else (account.uid, account.gid)
    try:
        if wanted.user:
            entry = pwd.getpwnam(wanted.user)
            uid, gid = entry.pw_uid, entry.pw_gid
        if wanted.group:
            gid = grp.getgrnam(wanted.group).gr_gid
    except KeyError as error:
        raise FilterError(f"smtpd: filter {wanted.name}: {error.args[0]}") from error

    def become() -> None:
        if wanted.chroot:
            os.chroot(wanted.chroot)
            os.chdir("/")
        if gid != -1 and os.geteuid() == 0:
            os.setgroups([gid])
            os.setresgid(gid, gid, gid)
        if uid != -1 and os.geteuid() != uid:
            os.setresuid(uid, uid, uid)

    return become


def _end(programs: Iterable[FilterProgram]) -> None:
    for program in programs:
        program.close()
        os.kill(program.pid, signal.SIGKILL)
        os.waitpid(program.pid, 0)
