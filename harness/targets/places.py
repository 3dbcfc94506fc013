"""Fixed places, made private: a daemon that insists on /var/spool/smtpd finds ours there, and the system keeps its own.

The daemon runs in a mount namespace of its own (mount_namespaces(7)), in which files and directories of ours are bound
over the system's. A directory of ours shows what else is in the system's, through links, because a cache or a project
may be there. The namespace ends with its last process; nothing is left to unmount.

Owns: what is bound over what. Never: starts the daemon.
"""

from __future__ import annotations

import grp
import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from harness.targets import TargetError
from harness.targets.debian import library_path

TOOLS = ("unshare", "nsenter", "mount", "ldconfig")
TRY_TIMEOUT_S = 20.0
RESOLVER = "lookup file\nnameserver 127.0.0.1\noptions timeout:1 attempts:1\n"  # so that nobody waits for a name server
USER_ID = 64101  # of the first private user: in nobody's range (Debian policy §9.2.2), so that it owns nothing else


def check(name: str) -> None:
    """Whether it can be done here for the target `name`. Raises TargetError."""
    if os.geteuid() != 0:
        raise TargetError(f"{name}: it insists on places and users of its own, and on changing to them: run it as root")
    for tool in TOOLS:
        if shutil.which(tool) is None:
            raise TargetError(
                f"{name}: no {tool} here, to give it places of its own: apt-get install util-linux libc-bin"
            )
    done = subprocess.run(
        ["unshare", "--mount", "true"], capture_output=True, text=True, timeout=TRY_TIMEOUT_S, check=False
    )
    if done.returncode:
        reason = done.stderr.strip().removeprefix("unshare: ")
        raise TargetError(f"{name}: no mount namespace can be made here ({reason}); a container needs CAP_SYS_ADMIN")


@dataclass(frozen=True)
class Program:
    """A daemon's program, and the unpacked package that it is part of; None where it is installed."""

    path: Path
    tree: Path | None = None

    def ask(self, *arguments: str) -> str:
        """What it says of itself when it is called outside of all places. Raises TargetError."""
        libraries = {"LD_LIBRARY_PATH": library_path(self.tree)} if self.tree is not None else {}
        try:
            done = subprocess.run(
                [self.path, *arguments],
                env={**os.environ, **libraries},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=TRY_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise TargetError(f"{self.path}: {error}") from error
        return done.stdout + done.stderr


class Places:
    """In `room`, which every user must be able to pass."""

    def __init__(self, room: Path) -> None:
        self._room = room
        self._steps: list[Sequence[str | Path]] = []

    def bind(self, ours: Path, theirs: str) -> None:
        """`ours`, a file or a directory, stands where `theirs` is, which must be there."""
        if ours.is_dir():
            was = self._room / "was" / theirs.strip("/").replace("/", "-")
            was.mkdir(parents=True)
            self._steps.append(("mount", "--rbind", theirs, was))
            for name in os.listdir(theirs):
                if not os.path.lexists(ours / name):
                    (ours / name).symlink_to(was / name)
        self._steps.append(("mount", "--bind", ours, theirs))

    def users(self, numbers: Mapping[str, int], home: str) -> None:
        """There are root, nobody, and these, each with a group of its name and number."""
        numbers = {"root": 0, "nobody": 65534, **numbers}
        lines = [f"{name}:x:{number}:{number}::{home}:/bin/false\n" for name, number in numbers.items()]
        self.file("passwd", "".join(lines), "/etc/passwd")
        groups = [f"{name}:x:{number}:\n" for name, number in numbers.items()]
        self.file("group", "".join([*groups, "nogroup:x:65534:\n", "mail:x:8:\n"]), "/etc/group")

    def file(self, name: str, text: str, theirs: str) -> None:
        """A small file of ours stands where `theirs` is."""
        ours = self._room / name
        ours.write_text(text)
        self.bind(ours, theirs)

    def program(self, program: Program) -> Path:
        """Where it is to be found inside: where every user can go, and with its libraries known to ld.so(8).

        Not by LD_LIBRARY_PATH, which a program that is setuid does not heed.
        """
        if program.tree is None:
            return program.path
        shown = self._room / "tree"
        shown.mkdir()
        self._steps.append(("mount", "--bind", program.tree, shown))
        if libraries := library_path(program.tree):
            conf = self._room / "ld.so.conf"
            there = libraries.replace(str(program.tree), str(shown)).replace(":", "\n")
            conf.write_text(f"include /etc/ld.so.conf\n{there}\n")
            cache = self._room / "ld.so.cache"
            cache.touch()
            self._steps.append(("ldconfig", "-X", "-f", conf, "-C", cache))
            self._steps.append(("mount", "--bind", cache, "/etc/ld.so.cache"))
        return shown / program.path.relative_to(program.tree)

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command that prepares the places and becomes `argv`, under the same pid."""
        steps = " && ".join(shlex.join(map(str, step)) for step in self._steps)
        return ["unshare", "--mount", "sh", "-c", f'{steps} && exec "$@"', "places", *argv]


def number(*names: str, at: int = 0) -> int:
    """Of a user and group called any of `names`: the system's, because an installed program may be setgid to it.

    Where the system has none, the private one number `at`.
    """
    for name in names:
        with suppress(KeyError):
            return grp.getgrnam(name).gr_gid
    return USER_ID + at


def inside(pid: int, argv: Sequence[str], *, group: int = 0) -> list[str]:
    """The command that runs `argv` in the places of process `pid`, as root and with the effective group `group`."""
    return ["nsenter", f"--mount=/proc/{pid}/ns/mnt", f"--setgid={group}", "--", *argv]


def owned(path: Path, number: int, mode: int) -> Path:
    """Make the directory, for a private user."""
    path.mkdir(parents=True)
    os.chown(path, number, number)
    path.chmod(mode)
    return path
