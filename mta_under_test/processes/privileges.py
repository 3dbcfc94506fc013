"""Who the processes are: parent alone stays root, the others become users without rights, in places without files.

Owns: the order in which rights are given up. Started by an ordinary user, nothing changes.

A process that has changed its root can read no file that it did not have before, so all that it may need is loaded
here, before: codecs, time zone, modules that Python loads when they are first used.
"""

from __future__ import annotations

import codecs
import ctypes
import encodings.idna
import errno
import importlib
import os
import pwd
import signal
import stat
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_LATE_CODECS = ("ascii", "idna", "latin-1", "punycode", "raw_unicode_escape", "unicode_escape", "utf-8", "utf-16-le")
# What lookup loads when a rule or a new configuration first asks for it. It keeps its root, but Python may be installed
# where root alone can read.
_LATE_MODULES = ("psutil", "mta_under_test.tables.sqlite")

_libc = ctypes.CDLL(None, use_errno=True)


class Account(NamedTuple):
    name: str
    uid: int
    gid: int


class PrivilegeError(Exception):
    """The users that the processes should become are not there, or the spool is not fit for them."""


def _nobody() -> Account:
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        return Account("nobody", 65534, 65534)
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


NOBODY = _nobody()


class Drop(NamedTuple):
    """What the children become. `empty` is an open directory without a name and without files: the root of most."""

    user: Account  # of all but queue
    queue: Account
    empty: int

    def close(self) -> None:
        os.close(self.empty)


def plan(user: str | None) -> Drop | None:
    """Whom the children become: `user`, or _smtpd and _smtpq where these exist, else nobody. None: they stay as we are.

    Raises PrivilegeError.
    """
    if os.geteuid() != 0:
        if user is not None and _account(user).uid != os.geteuid():
            raise PrivilegeError(f"smtpd: --user {user}: only root can start smtpd for somebody else")
        return None
    if user is not None:
        chosen = queue = _account(user)
        if chosen.uid == 0:
            return None
    else:
        chosen = _first("_smtpd", "smtpd")
        queue = _first("_smtpq", "smtpq", "_smtpd", "smtpd")
    return Drop(chosen, queue, _empty_directory())


def _account(name: str) -> Account:
    try:
        entry = pwd.getpwnam(name)
    except KeyError as error:
        raise PrivilegeError(f"smtpd: --user {name}: no such user") from error
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def _first(*names: str) -> Account:
    for name in names:
        try:
            return _account(name)
        except PrivilegeError:
            continue
    return NOBODY


def _empty_directory() -> int:
    """A directory that has no name any more, so that nobody can ever put a file into it."""
    path = tempfile.mkdtemp(prefix="smtpd-empty-")
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        Path(path).rmdir()


def own_spool(spool: Path, account: Account) -> None:
    """The spool's directories for queue alone (0700), offline/ for everybody to leave mail in (1777), as OpenSMTPD's.

    What root has put there before is handed over as a whole. Raises PrivilegeError.
    """
    try:
        os.chown(spool, 0, account.gid)
        spool.chmod(0o751)  # queue syncs it, for which it has to read it; others go through it, to offline
        for path in spool.iterdir():
            found = path.lstat()
            if not stat.S_ISDIR(found.st_mode):
                continue
            if path.name == "offline":
                os.chown(path, 0, account.gid)
                path.chmod(0o1777)
            elif found.st_uid != account.uid:
                # Its owner was not queue: so nobody without rights could plant anything for us to stumble over.
                _hand_over(path, account)
                path.chmod(0o700)
    except OSError as error:
        raise PrivilegeError(f"smtpd: {error.filename}: {error.strerror}") from error


def _hand_over(top: Path, account: Account) -> None:
    for directory, _, names in os.walk(top, topdown=False):
        for name in names:
            os.chown(f"{directory}/{name}", account.uid, account.gid, follow_symlinks=False)
        os.chown(directory, account.uid, account.gid, follow_symlinks=False)


def load_late_things() -> None:
    """Whatever would be read from disk when it is first used. Before the forks: its memory is shared."""
    for name in _LATE_CODECS:
        codecs.lookup(name)
    for name in _LATE_MODULES:
        importlib.import_module(name)
    assert encodings.idna is not None
    time.tzset()
    time.localtime()


def enter(drop: Drop, role: str, spool: Path) -> Path:
    """In a child: become what `role` is. Returns the spool as the process sees it from here on."""
    account = drop.queue if role == "queue" else drop.user
    if role == "queue":
        os.chroot(spool)
        os.chdir("/")
        spool = Path("/")
    elif role != "lookup":  # it reads resolv.conf, hosts and the user database whenever these change
        os.fchdir(drop.empty)
        os.chroot(".")
    else:
        os.chdir("/")
    drop.close()
    os.setgroups([account.gid])
    os.setresgid(account.gid, account.gid, account.gid)
    os.setresuid(account.uid, account.uid, account.uid)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    return spool


def die_with_parent(number: signal.Signals) -> None:
    """The kernel sends us `number` when the process that forked us dies. To be set anew after every change of user."""
    _prctl(_PR_SET_PDEATHSIG, number)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {errno.errorcode.get(number, '?')}")
