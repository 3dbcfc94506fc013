"""Which target a run is given: its name and its settings, checked before anything starts.

A target's own module is imported when it is chosen, not before: `seatbelt --help` need not know how each one starts.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from harness import __version__
from harness.targets import Target, TargetError, Untraceable

TARGETS = {
    "embedded": "the MTA of this repository, with --defect to re-open a historical bug",
    "attach": "a server that runs already, untouched: --attach PID, :PORT or UNIT.service",
    "command": "any server: --command 'PROGRAM … {port}', or --server NAME, or --server FILE.toml that describes it",
    "postfix": "Debian's Postfix, unpacked and not installed; needs root and, the first time, a network",
    "opensmtpd": "Debian's OpenSMTPD, the same way, in a mount namespace where its fixed places are ours",
    "exim": "Debian's Exim, the same way",
}
DEFAULT = "embedded"
FEWEST_DESCRIPTORS = 50  # that it starts with: its parent has the channels of all processes at once
LOOPBACK = "127.0.0.1"
WITH_ADDRESS = ("embedded", "attach")  # that can take mail elsewhere
WITH_BINARY = ("postfix", "opensmtpd", "exim")  # started from their own programs, Debian's or those that --binary says
NR_OPEN = Path("/proc/sys/fs/nr_open")  # how far root may raise the limit (proc_sys_fs(5))
MEANT = {"attach": "attach", "command": "command", "server": "command"}  # settings that say which target is meant


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the command line and the scenario ask of a target, whichever it is."""

    seed: int = 0
    address: str = LOOPBACK  # where mail is taken
    port: int = 0  # 0: any free one
    nofile: int | None = None  # limit of descriptors
    needs: tuple[str, ...] = ()  # of the scenario
    defects: tuple[str, ...] = ()  # NAME or NAME:P
    attach: str = ""  # PID, :PORT or UNIT.service
    command: str = ""  # its words, with placeholders
    server: str = ""  # a description: its name, or a file
    preload: bool = True  # into programs that are no Python (`harness.agent.native`)
    relays: bool = False  # the scenario's promises are kept by a target that relays only
    binary: Path | None = None  # the daemon's program, instead of Debian's


class MakeTarget(Protocol):
    """Given its directory and the remote MX's ports by name; `traced`: it shall remember where it opens things."""

    def __call__(self, directory: Path, ports: dict[str, int], *, traced: bool = False) -> Target: ...


def choose(name: str | None, settings: Settings) -> MakeTarget:
    """What makes the target called `name`, or if None the one that the settings mean. It may have to be fetched first.

    Raises TargetError for what there is not, or what it cannot have.
    """
    return _MAKERS[named(name, settings)](settings)


def named(name: str | None, settings: Settings) -> str:
    """Which one is chosen. Raises TargetError for settings that contradict each other, or the name."""
    said = {option: getattr(settings, option) for option in MEANT if getattr(settings, option)}
    if len(said) > 1:
        raise TargetError(f"{' and '.join(f'--{option}' for option in said)} are two targets: choose one")
    for option, text in said.items():
        if name not in (None, MEANT[option]):
            raise TargetError(f"--{option} {text} is a target of its own: leave out --target {name}")
    name = name or next((MEANT[option] for option in said), DEFAULT)
    if name not in _MAKERS:
        from harness.targets import description

        hint = f"; it is a server: --server {name}." if name in description.names() else "."
        raise TargetError(f"no target called {name!r}{hint} There is: {', '.join(TARGETS)}")
    if settings.address != LOOPBACK and name not in WITH_ADDRESS:
        raise TargetError(f"--address is for {', '.join(WITH_ADDRESS)}; {name} takes mail at {LOOPBACK}")
    if name == DEFAULT and settings.nofile is not None and settings.nofile < FEWEST_DESCRIPTORS:
        raise TargetError(f"--nofile {settings.nofile}: {name} starts with {FEWEST_DESCRIPTORS} at least")
    if settings.nofile is not None and settings.nofile > (most := _most_descriptors()):
        raise TargetError(f"--nofile {settings.nofile}: a process may have {most} descriptors here (setrlimit(2))")
    if settings.binary is not None:
        if name not in WITH_BINARY:
            raise TargetError(f"--binary is for {', '.join(WITH_BINARY)}; {name} has no program to choose")
        if not os.access(settings.binary, os.X_OK) or settings.binary.is_dir():
            raise TargetError(f"--binary {settings.binary}: no such program")
    return name


def _most_descriptors() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1] if os.geteuid() else int(NR_OPEN.read_text())


def _embedded(settings: Settings) -> MakeTarget:
    from harness.targets.embedded import Embedded

    return partial(
        Embedded,
        version=__version__,
        defects=_defects(settings.defects) if settings.defects else [],
        seed=settings.seed,
        host=settings.address,
        port=settings.port,
        nofile=settings.nofile,
        needs=settings.needs,
    )


def _defects(texts: Sequence[str]) -> list[str]:
    from mta_under_test.defects import DefectError, parse  # the whole server, which each overlay must know

    try:
        return [str(parse(text)) for text in texts]
    except DefectError as error:
        raise TargetError(str(error)) from error


def _postfix(settings: Settings) -> MakeTarget:
    from harness.targets.postfix import Postfix, programs

    _only_relays("postfix", settings)
    return partial(
        Postfix,
        programs=programs(settings.binary),
        port=settings.port,
        nofile=settings.nofile,
        preload=settings.preload,
    )


def _opensmtpd(settings: Settings) -> MakeTarget:
    from harness.targets.opensmtpd import OpenSMTPD, program

    _only_relays("opensmtpd", settings)
    return partial(OpenSMTPD, program=program(settings.binary), port=settings.port, nofile=settings.nofile)


def _exim(settings: Settings) -> MakeTarget:
    from harness.targets.exim import Exim, program

    _only_relays("exim", settings)
    return partial(Exim, program=program(settings.binary), port=settings.port, nofile=settings.nofile)


def _command(settings: Settings) -> MakeTarget:
    from harness.targets import description
    from harness.targets.command import Command, unpacked
    from harness.targets.server import from_command

    if not settings.command and not settings.server:
        raise TargetError("command: which? --command 'PROGRAM ARGUMENT … {port}', or --server NAME or FILE.toml")
    server = description.load(settings.server) if settings.server else from_command(settings.command)
    _only_relays(server.name, settings, server.offers)
    if settings.relays and not server.is_relay:
        raise TargetError(
            f"the scenario needs a server that relays to {{relay_port}}, which {server.name} is not told to: "
            "choose another scenario, or see docs/targets.md"
        )
    return partial(
        Command,
        server=server,
        tree=unpacked(server),
        port=settings.port,
        nofile=settings.nofile,
        preload=settings.preload,
    )


def _attach(settings: Settings) -> MakeTarget:
    from harness.targets.attach import Attached

    if not settings.attach:
        raise TargetError("attach: to what? --attach PID, :PORT or UNIT.service")
    _only_relays("attach", settings)
    if settings.nofile is not None:
        raise TargetError("attach: a server that runs already has its limit of descriptors (prlimit(1) changes it)")
    target = Attached(settings.attach, host=settings.address, port=settings.port)

    def make(directory: Path, ports: dict[str, int], *, traced: bool = False) -> Target:
        if traced:
            pid = target.root_pid
            raise Untraceable(f"what runs already is left as it is; `strace -k -f -p {pid}` may show where it opens it")
        return target

    return make


def _only_relays(name: str, settings: Settings, offers: Collection[str] = ()) -> None:
    """Raises TargetError for what is asked of a server that we did not write, and that it is not set up for."""
    if settings.defects:
        raise TargetError(f"--defect re-opens bugs of the embedded target; {name} has its own")
    if lacking := [need for need in settings.needs if need not in offers]:
        raise TargetError(f"the scenario needs {', '.join(lacking)}, which {name} is not set up with")


_MAKERS: dict[str, Callable[[Settings], MakeTarget]] = {
    "embedded": _embedded,
    "attach": _attach,
    "command": _command,
    "postfix": _postfix,
    "opensmtpd": _opensmtpd,
    "exim": _exim,
}
