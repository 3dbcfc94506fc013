"""parent's local deliveries: a process for each, which becomes the user and then is the delivery agent, or a program.

Owns: the processes, their pidfds and timers, and the descriptors of a job until its process has them.
Never: runs a shell; runs anything as root; believes what delivery says should be run (the action's command is taken
from the configuration).

A process that takes too long is killed with its process group. Its end is told to delivery by MDA_DONE: job, `End`,
code.
"""

from __future__ import annotations

import asyncio
import enum
import gc
import logging
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable
from typing import NamedTuple, NoReturn

import msgspec
import setproctitle

from mta_under_test.config import Config, LocalAction, MaildirAction, MboxAction, MdaAction
from mta_under_test.processes.forward import groups_of
from mta_under_test.processes.mda import agents
from mta_under_test.processes.mda.format import FormatError, Job, arguments, fill
from mta_under_test.processes.privileges import NOBODY, die_with_parent
from mta_under_test.wire.address import split_address

MAIL_DIRECTORY = "/var/mail"
PATH = "/usr/bin:/bin:/usr/sbin:/sbin:/usr/local/bin"
KILL_WAIT_S = 2.0  # from SIGTERM to SIGKILL

logger = logging.getLogger("smtpd")


class End(enum.IntEnum):
    """How a job ended; what the code beside it is."""

    EXITED = 0  # the status
    SIGNALLED = 1  # the signal
    TIMED_OUT = 2
    REFUSED_NOW = 3  # not started; it may work later
    REFUSED = 4  # not started, and never will be


class Refused(Exception):
    def __init__(self, end: End, text: str) -> None:
        super().__init__(text)
        self.end = end


class Plan(NamedTuple):
    """What the child does: a function of ours, or a program."""

    agent: Callable[[], None] | None
    arguments: list[str]
    mailbox_group: int | None = None  # instead of the user's: to make lock files beside a mailbox


class Running(NamedTuple):
    job: int
    pid: int
    pidfd: int
    timer: asyncio.TimerHandle


def takes_program(action: LocalAction, exec_: str) -> bool:
    """Whether the job is a program, which reads a message with the headers in it; agents add these themselves."""
    return exec_.startswith("|") or (not exec_ and isinstance(action, MdaAction))


class Deliveries:
    """`done(job, end, code, text)` is called once for each job."""

    def __init__(self, done: Callable[[int, End, int, str], None]) -> None:
        self._done = done
        self._outputs: dict[int, int] = {}
        self._running: dict[int, Running] = {}  # by pid
        self._late: set[int] = set()  # pids that were told to end

    def __len__(self) -> int:
        return len(self._running)

    def output(self, job: int, descriptor: int) -> None:
        """Keep the job's output until the job itself comes, with the next message."""
        if job in self._outputs:
            os.close(self._outputs.pop(job))
        self._outputs[job] = descriptor

    def start(self, number: int, text: bytes, stdin: int | None, config: Config) -> None:
        output = self._outputs.pop(number, None)
        try:
            job = msgspec.json.decode(text, type=Job)
            if stdin is None or output is None:
                raise Refused(End.REFUSED_NOW, "no descriptor left")
            user = _user_of(job)
            pid = self._fork(user, plan_of(user, config), config, stdin, output)
            self._watch(number, pid, job.timeout_s)
        except Refused as error:
            self._done(number, error.end, 0, str(error))
        except FormatError as error:
            self._done(number, End.REFUSED, 0, str(error))
        except (OSError, msgspec.MsgspecError) as error:
            self._done(number, End.REFUSED_NOW, 0, f"cannot start a delivery: {error}")
        finally:
            for descriptor in (stdin, output):
                if descriptor is not None:
                    os.close(descriptor)

    def _watch(self, number: int, pid: int, timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        pidfd = os.pidfd_open(pid)
        timer = loop.call_later(timeout_s, self._too_late, pid)
        self._running[pid] = Running(number, pid, pidfd, timer)
        loop.add_reader(pidfd, self._ended, pid)

    def _too_late(self, pid: int) -> None:
        running = self._running[pid]
        kill_group(pid, signal.SIGKILL if pid in self._late else signal.SIGTERM)
        if pid not in self._late:
            self._late.add(pid)
            timer = asyncio.get_running_loop().call_later(KILL_WAIT_S, self._too_late, pid)
            self._running[pid] = running._replace(timer=timer)

    def _ended(self, pid: int) -> None:
        running = self._running.pop(pid)
        asyncio.get_running_loop().remove_reader(running.pidfd)
        running.timer.cancel()
        _, status = os.waitpid(pid, 0)
        os.close(running.pidfd)
        code = os.waitstatus_to_exitcode(status)
        if pid in self._late:
            self._late.discard(pid)
            kill_group(pid, signal.SIGKILL)  # what it has started
            self._done(running.job, End.TIMED_OUT, 0, "")
        elif code < 0:
            self._done(running.job, End.SIGNALLED, -code, "")
        else:
            self._done(running.job, End.EXITED, code, "")

    async def close(self, timeout_s: float) -> None:
        """End them all: agents are given time to finish, then nothing is left."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while self._running and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.005)
        for pid in list(self._running):
            kill_group(pid, signal.SIGKILL)
        while self._running:
            await asyncio.sleep(0.005)
        while self._outputs:
            os.close(self._outputs.popitem()[1])

    def _fork(self, job: Job, plan: Plan, config: Config, stdin: int, output: int) -> int:
        # A signal for parent that arrives in the child, before it is somebody else, would be told to parent's loop.
        blocked = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
        signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        try:
            pid = os.fork()
            if pid == 0:
                _be(job, plan, config.subaddress_delimiter, stdin, output)
            return pid
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)


def kill_group(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return  # everybody in it has ended


def _user_of(job: Job) -> Job:
    """The job with who runs it: a file or a program that an alias names has no user, and gets the one with no rights.

    Raises Refused.
    """
    mine = os.geteuid()
    if not job.user:
        uid, gid = (NOBODY.uid, NOBODY.gid) if mine == 0 else (mine, os.getegid())
        job = msgspec.structs.replace(job, user=NOBODY.name, uid=uid, gid=gid, directory="/")
    if mine != 0 and job.uid != mine:
        raise Refused(End.REFUSED_NOW, f"smtpd does not run as root: it cannot deliver as user {job.uid}")
    if mine == 0 and job.uid == 0:
        raise Refused(End.REFUSED, "not allowed to deliver to: root")
    return job


def plan_of(job: Job, config: Config) -> Plan:
    """What is to be run. Raises Refused, FormatError."""
    action = config.actions.get(job.action)
    if not isinstance(action, LocalAction):
        raise Refused(End.REFUSED_NOW, f"no local action named {job.action!r} any more")
    delimiter = config.subaddress_delimiter
    if job.exec.startswith("|"):
        words = arguments(job.exec[1:], job, delimiter)
        agent = None
    elif not job.exec and isinstance(action, MdaAction):
        words = arguments(action.command, job, delimiter)
        agent = None
    else:
        return _agent_plan(job, action, config)
    if action.wrapper:
        words = arguments(config.wrappers[action.wrapper], job, delimiter, words)
    return Plan(agent, words)


def _agent_plan(job: Job, action: LocalAction, config: Config) -> Plan:
    delimiter = config.subaddress_delimiter
    group = None
    if job.exec or isinstance(action, MboxAction):
        path = job.exec or fill(f"{MAIL_DIRECTORY}/%{{user.username}}", job, delimiter)
        words = ["mbox", job.sender, job.dest, path]
        if not job.exec:
            group = _group_of(MAIL_DIRECTORY)
    elif isinstance(action, MaildirAction):
        words = ["maildir", job.sender, job.dest, fill(action.path, job, delimiter), job.subaddress]
        words += ["junk"] if action.junk else []
    else:
        raise Refused(End.REFUSED, f"action {action.name!r} delivers nothing here")
    command = [sys.executable, "-I", agents.__file__, *words]
    if action.wrapper:
        return Plan(None, arguments(config.wrappers[action.wrapper], job, delimiter, command), group)
    return Plan(lambda: _agent(words), command, group)


def _agent(words: list[str]) -> None:
    os._exit(agents.main(words))


def _group_of(directory: str) -> int | None:
    """The group that may make lock files there (mail, on Debian); None when nobody needs it."""
    found = os.stat(directory)
    return found.st_gid if found.st_mode & 0o020 and not found.st_mode & 0o002 else None


def environment(job: Job) -> dict[str, str]:
    """What a program finds, as mda_unpriv.c of OpenSMTPD has it. Nothing of our own environment."""
    local, domain = split_address(job.dest)
    given = {
        "PATH": PATH,
        "DOMAIN": domain,
        "HOME": job.directory,
        "RECIPIENT": job.dest,
        "SHELL": "/bin/sh",
        "LOCAL": local,
        "LOGNAME": job.user,
        "USER": job.user,
        "SENDER": job.sender,
        "EXTENSION": job.subaddress,
    }
    return {name: value for name, value in given.items() if value}


def _be(job: Job, plan: Plan, delimiter: str, stdin: int, output: int) -> NoReturn:
    """In the child: nothing of parent's is left but the program, or the code of the agent."""
    status = agents.EX_TEMPFAIL
    try:
        gc.disable()
        setproctitle.setproctitle(f"smtpd: delivery for {job.user}")
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        # First out of the way of 0, 1 and 2, which dup2 is about to fill.
        stdin, output = _above(stdin), _above(output)
        os.dup2(stdin, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        os.umask(0o077)
        _become(job, plan.mailbox_group)
        die_with_parent(signal.SIGKILL)
        try:
            os.chdir(job.directory)
        except OSError:
            os.chdir("/")
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if plan.agent is not None:
            plan.agent()
        else:
            given = environment(job)
            try:
                os.execvpe(plan.arguments[0], plan.arguments, given)
            except OSError as error:
                os.write(2, f"cannot run {shlex.quote(plan.arguments[0])}: {error.strerror}\n".encode())
    except OSError as error:
        os.write(2, f"{error}\n".encode(errors="replace"))
    except Exception:  # noqa: BLE001 - whatever it is, it must not run on as a second parent
        os.write(2, traceback.format_exc().encode(errors="replace"))
    finally:
        os._exit(status)


def _above(descriptor: int) -> int:
    return os.dup(descriptor) if descriptor < 3 else descriptor


def _become(job: Job, group: int | None) -> None:
    if os.geteuid() == 0:
        os.setgroups(groups_of(job.user, job.uid, job.gid))
        gid = job.gid if group is None else group
        os.setresgid(gid, gid, gid)
        os.setresuid(job.uid, job.uid, job.uid)
    assert os.geteuid() == job.uid
