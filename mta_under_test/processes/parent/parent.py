"""parent: starts the others, and ends them all when one of them ends.

Owns: the configuration, the listening sockets until their process has them, the children.
Never: speaks SMTP.
Takes: SHUTDOWN, RELOAD from control; what others cannot do themselves (`services`).
Sends: LISTENER, CONFIG. That its channel ends is what tells a child to end.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import ClassVar, NoReturn

import setproctitle
import uvloop

from mta_under_test.ipc.channel import Channel, Message
from mta_under_test.ipc.messages import Kind
from mta_under_test.processes.control import Control
from mta_under_test.processes.delivery.delivery import Delivery
from mta_under_test.processes.filter_birth import start_programs
from mta_under_test.processes.lookup.lookup import Lookup
from mta_under_test.processes.parent import offline
from mta_under_test.processes.parent.reload import ReloadError, reload
from mta_under_test.processes.parent.services import Services
from mta_under_test.processes.privileges import enter, load_late_things
from mta_under_test.processes.process import Process, Sockets, Start, takes
from mta_under_test.processes.queue.queue import Queue
from mta_under_test.processes.scheduler import Scheduler
from mta_under_test.processes.smtp.smtp import Smtp
from mta_under_test.processes.tls_settings import Secrets
from mta_under_test.processes.transfer.transfer import Transfer

ROLES = ("control", "lookup", "queue", "scheduler", "smtp", "transfer", "delivery")
PAIRS = (
    *(("parent", role) for role in ROLES),
    *(("control", role) for role in ROLES if role != "control"),
    ("smtp", "lookup"),
    ("smtp", "queue"),
    ("lookup", "queue"),
    ("queue", "scheduler"),
    ("queue", "transfer"),
    ("queue", "delivery"),
    ("transfer", "lookup"),
    ("delivery", "lookup"),
)
STOP_TIMEOUT_S = 5.0
REASON_BYTES = 4000  # of why a configuration was refused, to smtpctl; the log has all of it
DELIVERY_TIMEOUT_S = 1.0  # for local deliveries to end in, when we are told to stop

logger = logging.getLogger("smtpd")

# Who is born in which child. An overlay puts a class of its own here, and nothing else knows of it.
Birth = Callable[[Start, Sockets], Process]
BIRTHS: Mapping[str, Birth] = {
    "control": Control,
    "lookup": Lookup,
    "queue": Queue,
    "scheduler": Scheduler,
    "smtp": Smtp,
    "transfer": Transfer,
    "delivery": Delivery,
}


class DescriptorsError(Exception):
    """The limit of descriptors is too low to start with; one line says so."""

    def __init__(self) -> None:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        super().__init__(f"smtpd: too few descriptors ({limit}): raise the limit (ulimit -n)")


class Parent(Services):
    role: ClassVar[str] = "parent"

    def __init__(self, start: Start, sockets: Sockets, children: Mapping[int, str]) -> None:
        super().__init__(start, sockets)
        self._children = dict(children)  # pid -> role
        self._pidfds: dict[int, int] = {}
        self._stopping = False

    def run(self) -> int:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._main())
        return self._status

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        for pid in self._children:
            self._pidfds[pid] = os.pidfd_open(pid)
            loop.add_reader(self._pidfds[pid], self._child_ended, pid)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._asked_to_stop, signal.Signals(number).name)
        loop.add_signal_handler(signal.SIGHUP, self._hung_up)
        self.spawn(offline.watch(self), "offline")
        logger.info("ready")

    async def finish(self) -> None:
        """End every child, gently first: its channel to us closes. None outlives us."""
        self._stopping = True
        await self.deliveries.close(DELIVERY_TIMEOUT_S)
        for channel in self.channels.values():
            channel.close()
        for pid, role in self._children.items():
            if role not in ROLES:  # a filter's program has no channel to us
                signal.pidfd_send_signal(self._pidfds[pid], signal.SIGTERM)
        deadline = asyncio.get_running_loop().time() + STOP_TIMEOUT_S
        while self._children and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.005)
        for pid, role in list(self._children.items()):
            logger.error("%s (pid %d) does not end: killed", role, pid)
            signal.pidfd_send_signal(self._pidfds[pid], signal.SIGKILL)
        while self._children:
            await asyncio.sleep(0.005)

    def gauges(self) -> dict[str, int]:
        return {"parent.children": len(self._children), "parent.mda": len(self.deliveries)}

    @takes(Kind.SHUTDOWN)
    def shutdown(self, peer: str, message: Message) -> None:
        self._asked_to_stop("smtpctl stop")

    @takes(Kind.RELOAD)
    def reload(self, peer: str, message: Message) -> None:
        self.spawn(self._reload(peer, message.integers[0]), "reload")

    def _hung_up(self) -> None:
        self.spawn(self._reload(), "reload")

    async def _reload(self, peer: str | None = None, request: int = 0) -> None:
        try:
            await reload(self)
        except ReloadError as error:
            logger.warning("the configuration is not reloaded: %s", error)
            if peer is not None:
                self.refuse(peer, request, str(error)[:REASON_BYTES])
        else:
            logger.info("configuration reloaded")
            if peer is not None:
                self.answer(peer, request)

    def _asked_to_stop(self, who: str) -> None:
        logger.info("%s: ending", who)
        self.stop()

    def _child_ended(self, pid: int) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfds[pid])
        _, wait_status = os.waitpid(pid, 0)
        os.close(self._pidfds.pop(pid))
        role = self._children.pop(pid)
        if not self._stopping and not self._over.is_set():
            code = os.waitstatus_to_exitcode(wait_status)
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
            logger.error("fatal: lost process %s (pid %d): %s", role, pid, how)
            self.stop(1)

    def _peer_gone(self, channel: Channel, reason: str) -> None:
        if reason:
            logger.error("fatal: channel to %s: %s", channel.peer, reason)
            self.stop(1)


def serve(start: Start, births: Mapping[str, Birth] = BIRTHS) -> int:
    """Fork every role and be the parent until the end. Returns the exit status; in a child it does not return.

    Raises DescriptorsError, and FilterError when a filter's program cannot be started.
    """
    if start.drop is not None:
        load_late_things()
    ends = _pairs()
    start = replace(start, filters=start_programs(start.config, start.drop))
    # What lives now lives in all of them: out of the collector's sight, its pages stay shared (gc.freeze's purpose).
    gc.collect()
    gc.freeze()
    children = {program.pid: f"filter {name}" for name, program in start.filters.items()}
    for role in ROLES:
        pid = os.fork()
        if pid == 0:
            _be(role, start, ends, births[role])
        children[pid] = role
    for role in ROLES:
        for sock in ends[role].values():
            sock.close()
    start.close_sockets()
    setproctitle.setproctitle("smtpd: parent")
    # The keys are with those who speak TLS now.
    return Parent(replace(start, secrets=Secrets()), ends["parent"], children).run()


def _pairs() -> dict[str, dict[str, socket.socket]]:
    """The ends of all channels: no process ever has more descriptors open while nothing happens."""
    ends: dict[str, dict[str, socket.socket]] = {role: {} for role in ("parent", *ROLES)}
    for one, other in PAIRS:
        try:
            ends[one][other], ends[other][one] = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            raise DescriptorsError from error
    return ends


def _be(role: str, start: Start, ends: Mapping[str, Sockets], birth: Birth) -> NoReturn:
    """In the child: keep what is the role's, close the rest, serve, exit."""
    status = 1
    try:
        for name, others in ends.items():
            if name != role:
                for sock in others.values():
                    sock.close()
        if start.lock is not None:
            os.close(start.lock)
        if role != "control":
            start.control.close()
        if role != "lookup":
            for program in start.filters.values():
                program.close()
        if role != "smtp":
            for _, sock in start.smtp:
                sock.close()
        process = birth(start if role in ("smtp", "transfer") else replace(start, secrets=Secrets()), ends[role])
        if start.drop is not None:
            process.spool_root = enter(start.drop, role, start.spool)
        # Who bears a role's name has given up what the role may not do.
        setproctitle.setproctitle(f"smtpd: {role}")
        status = process.run()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except Exception:
        logger.exception("%s failed", role)
    finally:
        logging.shutdown()
        sys.stderr.flush()
        os._exit(status)
