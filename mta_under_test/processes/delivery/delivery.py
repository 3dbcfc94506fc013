"""delivery: local deliveries.

Owns: the envelopes that wait for one, and for each that runs the message's descriptor, the pipe to a program and the
pipe with its output. All of them are closed on every way out.
Never: runs anything itself (parent does, as the user), touches a mailbox, knows a user before it has asked lookup.
Takes: DELIVER, DELIVER_END from queue; MDA_DONE and CONFIG from parent.
Sends: MESSAGE_FD, DELIVERY_OK, _TEMP, _PERM, _LOOP to queue; USERINFO, HOSTS to lookup; MDA_OUTPUT, FORK_MDA, OPEN to
parent.

The result is told after the agent or program has ended well, which is after the message is safe in its mailbox: a
crash in between means that it is delivered again.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections import Counter, deque
from typing import ClassVar, NamedTuple

import msgspec

from mta_under_test.config import Config, LmtpAction, LocalAction
from mta_under_test.ipc.channel import Message
from mta_under_test.ipc.messages import Kind
from mta_under_test.processes.delivery import lmtp
from mta_under_test.processes.delivery.pipes import Input, Output
from mta_under_test.processes.mda.format import Job
from mta_under_test.processes.mda.mda import End, takes_program
from mta_under_test.processes.mda.results import Result, result_of
from mta_under_test.processes.process import Process, Refusal, takes
from mta_under_test.wire.envelope import Envelope, decode

MDA_TIMEOUT_S = 600.0  # that a program or an agent may take
HEADER_BYTES = 1 << 16  # in which a loop is looked for

logger = logging.getLogger("smtpd")

STATS = {
    Kind.DELIVERY_OK: "mda.delivery.ok",
    Kind.DELIVERY_TEMP: "mda.delivery.tempfail",
    Kind.DELIVERY_PERM: "mda.delivery.permfail",
    Kind.DELIVERY_LOOP: "mda.delivery.loop",
}


class User(NamedTuple):
    """Whose mailbox it is; limits count by it."""

    action: str
    name: str


class Task(NamedTuple):
    """Envelopes that are delivered together: one, but for LMTP, where a message's recipients share a session."""

    user: User
    action: LocalAction
    envelopes: dict[int, Envelope]  # by evpid


class Delivery(Process):
    role: ClassVar[str] = "delivery"

    async def start(self) -> None:
        self._waiting: dict[User, deque[Task]] = {}  # in the order in which their turn comes
        self._running: Counter[User] = Counter()
        self._batch: dict[tuple[str, int], Task] = {}  # LMTP tasks of the batch that arrives, by action and msgid
        self._jobs: dict[int, asyncio.Future[tuple[End, int, str]]] = {}
        self._numbers = itertools.count(1)

    async def configure(self, config: Config) -> None:
        await super().configure(config)
        self._drain()  # the limits may be wider now

    def gauges(self) -> dict[str, int]:
        pending = sum(len(task.envelopes) for tasks in self._waiting.values() for task in tasks)
        return {
            "mda.pending": pending,
            "mda.running": self._running.total(),
            "mda.envelope": pending + self._running.total(),
            "mda.user": len(self._waiting.keys() | self._running.keys()),
            "mda.job": len(self._jobs),
        }

    # ---- from queue

    @takes(Kind.DELIVER)
    def deliver(self, peer: str, message: Message) -> None:
        (evpid,) = message.integers
        envelope = decode(message.text)
        action = self.config.actions.get(envelope.dispatcher)
        if not isinstance(action, LocalAction):
            status_line = f"451 4.3.5 No local action named {envelope.dispatcher!r} any more"
            self._result(evpid, Result(Kind.DELIVERY_TEMP, status_line))
            return
        if isinstance(action, LmtpAction) and not envelope.mda_exec:
            task = self._batch.get((action.name, evpid >> 32))
            if task is None:
                self._batch[action.name, evpid >> 32] = Task(User(action.name, ""), action, {evpid: envelope})
            else:
                task.envelopes[evpid] = envelope
            return
        self._wait(Task(User(action.name, action.user or envelope.mda_user), action, {evpid: envelope}))

    @takes(Kind.DELIVER_END)
    def batch_complete(self, peer: str, message: Message) -> None:
        for task in self._batch.values():
            self._wait(task)
        self._batch.clear()
        self._drain()

    def _wait(self, task: Task) -> None:
        self._waiting.setdefault(task.user, deque()).append(task)

    def _drain(self) -> None:
        """Start what the limits allow: users in turn, so that nobody's flood holds up the others."""
        limits = self.config.mda_limits
        for user in list(self._waiting):
            if self._running.total() >= limits.max_session:
                return
            tasks = self._waiting.pop(user)
            while tasks and self._running[user] < limits.max_session_per_user:
                if self._running.total() >= limits.max_session:
                    break
                self._running[user] += 1
                self.spawn(self._run(tasks.popleft()), f"delivery for {user.name}")
            if tasks:
                self._waiting[user] = tasks  # at the end: the others first
            if not self._running[user]:
                del self._running[user]

    async def _run(self, task: Task) -> None:
        self.stats["mda.session.total"] += 1
        try:
            for evpid, result in (await self._deliver(task)).items():
                self._result(evpid, result)
        finally:
            self._running[task.user] -= 1
            if not self._running[task.user]:
                del self._running[task.user]
        self._drain()

    def _result(self, evpid: int, result: Result) -> None:
        self.stats[STATS[result.kind]] += 1
        logger.debug("%016x: %s", evpid, result.status_line)
        self.tell("queue", result.kind, evpid, text=result.status_line.encode(errors="replace")[:2048])

    # ---- one delivery

    async def _deliver(self, task: Task) -> dict[int, Result]:
        """The result for each envelope."""
        try:
            answer = await self.ask("queue", Kind.MESSAGE_FD, next(iter(task.envelopes)) >> 32)
        except Refusal as refusal:
            return _all(task, Kind.DELIVERY_TEMP, f"451 4.3.0 {refusal}")
        message = answer.take_descriptor()
        if message is None:
            return _all(task, Kind.DELIVERY_TEMP, "451 4.3.0 Temporary failure: out of descriptors")
        try:
            if isinstance(task.action, LmtpAction) and not next(iter(task.envelopes.values())).mda_exec:
                return await self._by_lmtp(task, task.action, message)
            ((evpid, envelope),) = task.envelopes.items()
            return {evpid: await self._by_process(evpid, envelope, task.action, message)}
        except Refusal as refusal:
            kind = Kind.DELIVERY_PERM if str(refusal).startswith("5") else Kind.DELIVERY_TEMP
            return _all(task, kind, str(refusal))
        except OSError as error:
            return _all(task, Kind.DELIVERY_TEMP, f"451 4.3.0 Temporary failure: {error.strerror or error}")
        finally:
            os.close(message)

    async def _by_process(self, evpid: int, envelope: Envelope, action: LocalAction, message: int) -> Result:
        if loops(message, envelope.dest):
            return Result(Kind.DELIVERY_LOOP, "554 5.4.6 Mail loop: it was delivered to this mailbox before")
        job = Job(
            action=action.name,
            sender=envelope.sender,
            rcpt=envelope.rcpt,
            dest=envelope.dest,
            user="",
            uid=0,
            gid=0,
            directory="/",
            exec=envelope.mda_exec,
            subaddress=envelope.mda_subaddress,
            timeout_s=MDA_TIMEOUT_S,
        )
        if envelope.mda_user or action.user:
            question = f"{action.name}\0{envelope.mda_user}"
            found = await self.ask("lookup", Kind.USERINFO, text=question.encode())
            name, _, home = found.text.decode().partition("\0")
            _, uid, gid = found.integers
            job = msgspec.structs.replace(job, user=name, uid=uid, gid=gid, directory=home)
        if takes_program(action, envelope.mda_exec):
            return await self._by_program(job, message)
        # The agent reads the message itself, so it cannot take the end of half a message for the end.
        return await self._fork(job, os.dup(message))

    async def _by_program(self, job: Job, message: int) -> Result:
        """A program reads the message from a pipe: with the headers that an agent would add, and lines that end LF."""
        program = Input()
        feeding = asyncio.create_task(program.feed(message, job.sender, job.dest))
        try:
            return await self._fork(job, program.take_read_end())
        finally:
            feeding.cancel()
            await asyncio.wait((feeding,))
            program.close()
            if not feeding.cancelled() and (error := feeding.exception()) is not None:
                logger.debug("a delivery program did not read its message: %s", error)

    async def _fork(self, job: Job, stdin: int) -> Result:
        """Have parent run the job. `stdin` is parent's from here on."""
        number = next(self._numbers)
        scope = self.scope("delivery %d for %s", number, job.user)
        try:
            output = Output(scope)
        except OSError:
            os.close(stdin)
            raise
        done = self._jobs[number] = asyncio.get_running_loop().create_future()
        try:
            self.tell("parent", Kind.MDA_OUTPUT, number, descriptor=output.take_write_end())
            self.tell("parent", Kind.FORK_MDA, number, text=msgspec.json.encode(job), descriptor=stdin)
            end, code, text = await done
            output.read_rest()
            return result_of(end, code, text, output.last_line())
        finally:
            del self._jobs[number]
            output.close()
            scope.end()

    @takes(Kind.MDA_DONE)
    def mda_done(self, peer: str, message: Message) -> None:
        number, end, code = message.integers
        done = self._jobs.get(number)
        if done is not None and not done.done():
            done.set_result((End(end), code, message.text.decode(errors="replace")))

    async def _by_lmtp(self, task: Task, action: LmtpAction, message: int) -> dict[int, Result]:
        results: dict[int, Result] = {}
        recipients: dict[int, str] = {}
        for evpid, envelope in task.envelopes.items():
            if loops(message, envelope.dest):
                results[evpid] = Result(Kind.DELIVERY_LOOP, "554 5.4.6 Mail loop")
            else:
                recipients[evpid] = envelope.dest if action.rcpt_to else action.user or envelope.mda_user
        if not recipients:
            return results
        only = next(iter(recipients))
        dest = task.envelopes[only].dest if len(recipients) == 1 else ""
        sender = task.envelopes[only].sender
        try:
            replies = await lmtp.deliver(self, action, sender, recipients, dest, message)
        except lmtp.LmtpError as error:
            return results | {evpid: Result(Kind.DELIVERY_TEMP, str(error)) for evpid in recipients}
        for evpid, reply in replies.items():
            kind = Kind.DELIVERY_OK if reply.positive else Kind.DELIVERY_TEMP
            results[evpid] = Result(Kind.DELIVERY_PERM if reply.permanent else kind, str(reply))
        return results


def _all(task: Task, kind: Kind, status_line: str) -> dict[int, Result]:
    return dict.fromkeys(task.envelopes, Result(kind, status_line))


def loops(message: int, dest: str) -> bool:
    """Whether the message was delivered to `dest` before: it carries the header that we add then."""
    header = os.pread(message, HEADER_BYTES, 0).partition(b"\r\n\r\n")[0]
    wanted = f"delivered-to: {dest}".lower().encode()
    return any(line.strip().lower() == wanted for line in header.split(b"\r\n"))
