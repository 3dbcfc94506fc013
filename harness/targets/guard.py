"""A server that must not outlive us, however we end.

prctl(2)'s PR_SET_PDEATHSIG does not do for a server that changes its user: the kernel forgets the signal then
(PR_SET_PDEATHSIG(2const)), and Postfix's master does so while it starts. Here a shell waits for the end of a pipe that
only we hold open, and then ends the server's process group.
"""

from __future__ import annotations

import subprocess

_WAIT = 'read -r _; kill -s TERM -- "-$1"'


class Guard:
    """From its making until `dismiss`; `leader` leads the process group of the server."""

    def __init__(self, leader: int) -> None:
        self._shell = subprocess.Popen(
            ["sh", "-c", _WAIT, "guard", str(leader)],
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
