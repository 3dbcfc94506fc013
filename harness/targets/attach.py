"""A server that runs already, found by its pid, a port that it listens on, or its systemd unit.

Owns: which process is meant. Never: starts, stops or signals it, reads its configuration.

It cannot be asked whether it rests: it does when it is still (`stillness`).
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.probes import processes, sockets
from harness.probes import snapshot as probe
from harness.targets import Rest, TargetError
from harness.targets.stillness import STILL_S, Stillness
from reports.record import Incident

SYSTEMCTL_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Found:
    """The process at the top, and the ports on which it or what is below it listens."""

    pid: int
    started: int  # with the pid, its identity
    title: str
    ports: tuple[int, ...]


class Attached:
    """`what`: a pid, `:PORT`, or a unit as `postfix.service`. `host` and `port`: where mail is submitted; the port need
    not be said if it has one only.
    """

    name = "attach"
    defects: Sequence[str] = ()
    spool: Path | None = None
    mailboxes: Path | None = None

    def __init__(
        self,
        what: str,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        still_s: float = STILL_S,
        clients_stay: bool = False,
        agent_directory: Path | None = None,
    ) -> None:
        """`clients_stay`: it may rest with clients connected. `agent_directory`: of an agent that somebody else started
        it with. Raises TargetError.
        """
        self.agent_directory = agent_directory
        self.found = locate(what)
        self.version = f"{self.found.title} (pid {self.found.pid})"
        self._host = host
        self._port = port or _port(what)
        ports = () if clients_stay else self.found.ports
        self._stillness = Stillness(self.found.pid, ports, still_s=still_s)

    @property
    def root_pid(self) -> int:
        return self.found.pid

    @property
    def address(self) -> tuple[str, int]:
        """Raises TargetError when there is none, or more than one."""
        if self._port:
            return self._host, self._port
        if len(self.found.ports) != 1:
            which = "no port" if not self.found.ports else f"ports {', '.join(map(str, self.found.ports))}"
            raise TargetError(f"{self.version} listens on {which}; say with --port where mail is submitted")
        return self._host, self.found.ports[0]

    def start(self) -> None:
        """It has started long ago. Raises TargetError when it is gone."""
        _ = self.address
        if not self.lives():
            raise TargetError(f"{self.version} has ended")

    def stop(self) -> None:
        """It is not ours to stop."""

    def lives(self) -> bool:
        now = processes.stat(self.found.pid)
        return now is not None and now.started == self.found.started and now.state != "Z"

    def rest(self) -> Rest:
        return Rest(self._stillness.busy())

    def owed(self) -> None:
        """Nobody here can look into its queue."""

    def hurry(self) -> None:
        raise TargetError(
            "attach: nobody here can make a server that runs already try its queue; choose another scenario"
        )

    def operate(self, operation: str) -> None:
        raise TargetError(f"attach: nobody here can {operation!r}; choose a scenario without operations")

    def deaths(self) -> list[Incident]:
        if self.lives():
            return []
        return [Incident(kind="died", text=f"{self.version} has ended", role=self.found.title, pid=self.found.pid)]


def locate(what: str) -> Found:
    """Raises TargetError when there is no such process, or we may not look into it."""
    if what.isascii() and what.isdecimal():
        pid = int(what)
    elif what.startswith(":"):
        pid = _listener(_port(what))
    elif "." in what:
        pid = _main_pid(what)
    else:
        raise TargetError(f"{what!r} is no pid, no :PORT and no unit such as postfix.service")
    now = processes.stat(pid)
    if now is None:
        raise TargetError(f"no process with pid {pid}")
    _may_look(processes.tree(pid))
    return Found(pid, now.started, now.comm, _ports(pid))


def _port(what: str) -> int:
    """Of `:PORT`; 0 for all else. Raises TargetError."""
    if not what.startswith(":"):
        return 0
    if not what.isascii() or not what[1:].isdecimal() or not 0 < int(what[1:]) < 65536:
        raise TargetError(f"{what!r} is no port; write it as :25")
    return int(what[1:])


def _listener(port: int) -> int:
    """The process at the top of those that hold the listening socket: the others have it from there."""
    table = sockets.by_netlink(os.getpid())
    wanted = {
        f"socket:[{inode}]" for inode, each in table.items() if each.state == "LISTEN" and _at(each.local) == port
    }
    if not wanted:
        raise TargetError(f"nobody listens on port {port} here (in another container? give the pid)")
    holders: set[int] = set()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and wanted & _links(int(entry.name)):
            holders.add(int(entry.name))
    tops = [pid for pid in sorted(holders) if not holders & set(_ancestors(pid))]
    if not tops:
        raise TargetError(f"somebody listens on port {port}, whom you may not look at: {remedy()}")
    if len(tops) > 1:
        raise TargetError(f"several listen on port {port}: give one of the pids {', '.join(map(str, tops))}")
    return tops[0]


def _main_pid(unit: str) -> int:
    """What systemd started for the unit."""
    if shutil.which("systemctl") is None:
        raise TargetError(f"{unit}: no systemctl here to ask for its process; give the pid, or :PORT")
    command = ["systemctl", "show", "--property", "MainPID", "--value", "--", unit]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SYSTEMCTL_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise TargetError(f"{unit}: systemctl gave no answer; give the pid, or :PORT") from error
    if done.returncode or not done.stdout.strip().isdigit():
        raise TargetError(f"{unit}: {done.stderr.strip() or 'systemctl knows no process of it'}")
    if (pid := int(done.stdout)) == 0:
        raise TargetError(f"{unit} does not run; see `systemctl status {unit}`")
    return pid


def _may_look(pids: Iterable[int]) -> None:
    """Raises TargetError with the command that would help."""
    for pid in pids:
        try:
            for name in os.listdir(f"/proc/{pid}/fd")[:1]:
                os.readlink(f"/proc/{pid}/fd/{name}")
        except PermissionError as error:
            title = processes.read(pid, processes.default_role)
            who = f"{title.role} (pid {pid})" if title else f"pid {pid}"
            raise TargetError(f"not permitted to see what {who} holds: {remedy()}") from error
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended, or closed since


def remedy() -> str:
    """The command that would have been permitted (ptrace(2), "ptrace access mode checking"; capabilities(7))."""
    if os.geteuid() == 0:
        return (
            "this root lacks CAP_SYS_PTRACE; start the container with `--cap-add SYS_PTRACE`, or Seatbelt outside of it"
        )
    again = shlex.join([sys.executable, "-m", "harness.cli", *sys.argv[1:]])
    python = shlex.quote(os.path.realpath(sys.executable))
    rights = f"sudo setcap cap_sys_ptrace,cap_dac_read_search+ep {python}"
    return f"try `sudo {again}`; or, for every program in that Python, `{rights}`"


def _links(pid: int) -> set[str]:
    """What the descriptors of a process point to; nothing for one that is gone or not ours to see."""
    found: set[str] = set()
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return found
    for name in names:
        try:
            found.add(os.readlink(f"/proc/{pid}/fd/{name}"))
        except OSError:
            continue  # closed since
    return found


def _ancestors(pid: int) -> Iterable[int]:
    now = processes.stat(pid)
    while now is not None and now.ppid:
        yield now.ppid
        now = processes.stat(now.ppid)


def _ports(pid: int) -> tuple[int, ...]:
    """TCP ports on which the tree listens."""
    found, _ = probe.inspect(processes.tree(pid), positions=False)
    return tuple(
        sorted(
            {
                _at(each.local)
                for process in found
                for each in process.descriptors
                if each.kind == "tcp" and each.state == "LISTEN"
            }
        )
    )


def _at(address: str) -> int:
    port = address.rpartition(":")[2]
    return int(port) if port.isdigit() else 0
