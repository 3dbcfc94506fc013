"""room: a directory of its own for a server that is started here: what a run's directory may be too far away for.

Owns: making it. Never: removes it; who asked for it does.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

PATH_BYTES = 107  # of a unix socket: unix(7)
WITHIN_BYTES = 65  # of it, for the room's own name, and those of directories and sockets in it
TEMPORARY = "/tmp"  # hier(7)


def make_room() -> Path:
    """A new directory, which every user may pass: a run's may be where a server's user cannot go.

    In the temporary directory that is meant (`$TMPDIR`), or in /tmp where sockets in that would have too long a path.
    Raises OSError.
    """
    meant = tempfile.gettempdir()
    if len(os.fsencode(meant)) > PATH_BYTES - WITHIN_BYTES:
        meant = TEMPORARY
    room = Path(tempfile.mkdtemp(prefix="seatbelt-", dir=meant))
    room.chmod(0o711)
    return room
