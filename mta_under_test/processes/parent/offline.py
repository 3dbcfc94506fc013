"""parent's look into offline/: mail that `sendmail` left there while nobody answered.

Owns: the files there, until they are submitted. Each is submitted by a child that has become its owner.
Never: follows a link, trusts a name.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import sys
from pathlib import Path

from mta_under_test.ipc.messages import Kind
from mta_under_test.processes.process import Process, Refusal

LOOK_S = 10.0  # between looks: who may not use the control socket leaves mail while we run, too
REFUSED = ".refused"  # ends the name of a file that smtpd does not take; a person looks at it

logger = logging.getLogger("smtpd")


async def watch(parent: Process) -> None:
    """Until the daemon ends."""
    while True:
        await look(parent, parent.spool_root / "offline")
        await asyncio.sleep(LOOK_S)


async def look(parent: Process, directory: Path) -> None:
    """Submit what is there, one after the other."""
    try:
        names = sorted(os.listdir(directory))
    except OSError as error:
        logger.warning("%s: cannot look for mail: %s", directory, error.strerror)
        return
    for name in names:
        if not name.startswith(".") and not name.endswith(REFUSED):
            await _submit(parent, directory / name)


async def _submit(parent: Process, path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        logger.warning("offline/%s: %s", path.name, error.strerror)
        return
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            logger.warning("offline/%s is no file of its own: left alone", path.name)
            return
        status = await _run(parent, descriptor, found.st_uid)
    except Refusal as refusal:
        logger.warning("offline/%s: %s; trying again", path.name, refusal)
        return
    finally:
        os.close(descriptor)
    if status == os.EX_OK:
        path.unlink()
        parent.stats["offline.submitted"] += 1
    elif status != os.EX_TEMPFAIL:
        logger.error("offline/%s is not taken (exit status %d): renamed", path.name, status)
        path.rename(path.with_name(path.name + REFUSED))


async def _run(parent: Process, descriptor: int, uid: int) -> int:
    """The child's exit status. Raises Refusal, when smtp gives no session."""
    answer = await parent.ask("smtp", Kind.SMTP_SESSION)
    session = answer.take_descriptor()
    if session is None:
        raise Refusal("no session: out of descriptors")
    try:
        os.set_inheritable(session, True)
        command = [sys.executable, "-m", "mta_under_test.sendmail", "--offline", str(session), str(uid)]
        child = await asyncio.create_subprocess_exec(*command, stdin=descriptor, pass_fds=(session,))
    finally:
        os.close(session)
    return await child.wait()
