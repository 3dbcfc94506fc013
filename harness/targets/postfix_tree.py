"""An unpacked Postfix of Debian's, in directories of its own: what it needs to start without being installed.

Owns: main.cf's paths and identity, master.cf, the queue's directories. Never: starts it, decides how it relays.

Three things differ from an installed one: `import_environment` hands the unpacked libraries' path on to its services;
no service is chrooted, since a chroot would lack them too; and it writes a log file of its own, because a syslog socket
that nobody reads would stop it (postlogd(8)).
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from harness.agent.native import METER_VARIABLE, TRACKER_VARIABLE
from harness.targets import TargetError
from harness.targets.debian import library_path

OWNER = "daemon"  # it wants an owner of its mail that owns nothing else of it; any that every Debian has will do
GROUP = "mail"
QUEUES = ("maildrop", "incoming", "active", "deferred", "hold")  # where messages are (qmgr(8))
ROOMS = (*QUEUES, "bounce", "corrupt", "defer", "flush", "private", "saved", "trace", "public", "pid")

MASTER = """\
127.0.0.1:{port} inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
smtp unix - - n - {clients} smtp
relay unix - - n - {clients} smtp
proxymap unix - - n - - proxymap
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
error unix - - n - - error
retry unix - - n - - error
"""
MAIN = """\
compatibility_level = 3.6
queue_directory = {state}/spool
data_directory = {state}/data
daemon_directory = {daemons}
command_directory = {tools}
shlib_directory = {shared}
meta_directory = {directory}/etc
mail_owner = {owner}
setgid_group = {group}
import_environment = LD_LIBRARY_PATH MAIL_CONFIG GLIBC_TUNABLES LD_PRELOAD {meter} {tracker}
export_environment = LD_LIBRARY_PATH MAIL_CONFIG GLIBC_TUNABLES
maillog_file = {directory}/maillog
maillog_file_prefixes = {directory}
myhostname = postfix.test
mydestination =
alias_maps =
alias_database =
local_recipient_maps =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
smtpd_relay_restrictions = permit_mynetworks, reject
"""


@dataclass(frozen=True)
class Programs:
    """Where the pieces of a Postfix are."""

    daemons: Path  # master(8) and its services
    tools: Path  # postconf(1), postqueue(1)
    shared: Path  # its own libraries and tables
    libraries: str = ""  # of other packages; LD_LIBRARY_PATH

    @classmethod
    def unpacked(cls, tree: Path) -> Programs:
        """Debian's package, unpacked in `tree`."""
        lib = tree / "usr/lib/postfix"
        return cls(lib / "sbin", tree / "usr/sbin", lib, library_path(tree))

    @classmethod
    def beside(cls, binary: Path) -> Programs:
        """`binary` is master(8) where it is installed, as /usr/lib/postfix/sbin/master. Raises TargetError."""
        daemons = binary.resolve().parent
        for above in daemons.parents if (daemons / "trivial-rewrite").exists() else ():
            if (above / "sbin/postconf").exists():
                return cls(daemons, above / "sbin", daemons.parent)
        raise TargetError(f"postfix: {binary} is no master(8) with its services beside it and sbin/postconf above")


def furnish(
    programs: Programs, directory: Path, state: Path, port: int, settings: str, *, clients: int | None = None
) -> None:
    """Everything that `master -c DIRECTORY/etc` asks for. Raises OSError.

    `directory` gets configuration and log, `state` the queue; Postfix's user must be able to pass all that is above
    `state`. `settings` are more lines of main.cf(5); `clients` limits the processes of each transport.
    """
    etc, spool, data = directory / "etc", state / "spool", state / "data"
    for room in (etc, spool, data):
        room.mkdir(parents=True)
    words = {"directory": directory, "state": state, "owner": OWNER, "group": GROUP}
    words |= {"meter": METER_VARIABLE, "tracker": TRACKER_VARIABLE}  # where they are set
    words |= {"daemons": programs.daemons, "tools": programs.tools, "shared": programs.shared}
    (etc / "master.cf").write_text(MASTER.format(port=port, clients="-" if clients is None else clients))
    (etc / "main.cf").write_text(MAIN.format(**words) + settings)
    (etc / "dynamicmaps.cf").touch()
    for name in ROOMS:
        (spool / name).mkdir()
        shutil.chown(spool / name, "root" if name == "pid" else OWNER)
    shutil.chown(data, OWNER)
    for name, mode in (("maildrop", 0o730), ("public", 0o710)):
        shutil.chown(spool / name, group=GROUP)
        (spool / name).chmod(mode)


def master(programs: Programs, directory: Path) -> list[str]:
    """The command: in the foreground, and telling its log."""
    return [str(programs.daemons / "master"), "-c", str(directory / "etc"), "-d"]


def environment(programs: Programs, directory: Path) -> dict[str, str]:
    """For every program of it."""
    libraries = f"{programs.shared}:{programs.libraries}".rstrip(":")
    return {**os.environ, "LD_LIBRARY_PATH": libraries, "MAIL_CONFIG": str(directory / "etc")}


def files(*directories: Path) -> list[Path]:
    """All files below: each message is one, in one of the queues. What disappears meanwhile may or may not be there."""
    return [Path(above, name) for directory in directories for above, _, names in os.walk(directory) for name in names]
