"""A server that must not outlive us, however we end.

prctl(2)'s PR_SET_PDEATHSIG does not do for a server that changes its user: the kernel forgets the signal then
(PR_SET_PDEATHSIG(2const)), and Postfix's master does so while it starts. Here a shell waits for the end of a pipe that
only we hold open, ends the server's process group and whatever else descends from it (setsid(2) begins a group of its
own), by force what does not end in time, and removes the directory that it leaves.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

TIMEOUT_S = 10  # for which it may end by itself
_WAIT = """
below() { for each in $(cat "/proc/$1/task/"*/children); do echo "$each"; below "$each"; done; }
read -r _
family="-$1 $(below "$1")"
for how in TERM KILL; do
    kill -s "$how" -- $family
    for look in $(seq "$3"); do
        alive=
        for each in $family; do kill -s 0 -- "$each" && alive=yes; done
        [ "$alive" ] || break 2
        sleep 0.1
    done
done
[ -z "$2" ] || rm -rf -- "$2"
"""


class Guard:
    """From its making until `dismiss`; `leader` leads the process group of the server, `room` is its directory."""

    def __init__(self, leader: int, room: Path | None = None) -> None:
        self._shell = subprocess.Popen(
            ["sh", "-c", _WAIT, "guard", str(leader), room or "", str(TIMEOUT_S * 10)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C in the terminal is not for it
        )

    def dismiss(self) -> None:
        """Nothing is left to guard. May be called twice."""
        self._shell.kill()  # before its pipe ends
        self._shell.wait()
        if self._shell.stdin is not None:
            self._shell.stdin.close()
