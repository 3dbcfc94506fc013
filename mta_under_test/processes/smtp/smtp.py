"""smtp: inbound SMTP sessions.

Owns: the listening sockets, the sessions, and while a message arrives its writable descriptor.
Never: opens a spool file itself, decides who may send to whom (lookup does), keeps a message (queue does).
Takes: PAUSE, RESUME; SMTP_SESSION from control; LISTENER, CONFIG from parent.
Sends: CREATE_MESSAGE, OPEN_MESSAGE, COMMIT_MESSAGE, REMOVE_MESSAGE to queue; EXPAND, SERVER_NAME, CLIENT_NAME and what
is for filters to lookup.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import ssl
from typing import ClassVar

from mta_under_test.config import Config, Listener
from mta_under_test.ipc.channel import Message
from mta_under_test.ipc.messages import Kind
from mta_under_test.processes.listening import keep
from mta_under_test.processes.process import Process, Sockets, Start, takes
from mta_under_test.processes.smtp.admission import OUT_OF_DESCRIPTORS, Admission, most_sessions, turn_away
from mta_under_test.processes.smtp.session import Session
from mta_under_test.processes.smtp.transaction import MessageIds
from mta_under_test.processes.tls_settings import listener_context
from mta_under_test.wire.reply import Reply
from mta_under_test.wire.server import Limits

MAX_FAILED_RECIPIENTS = 50  # of a session (SMTP_KICK_RCPTFAIL, February 2013)
MAX_USELESS_COMMANDS = 100  # between accepted messages; February 2013 had 5, and 2015 took the limit away as too low
ACCEPT_AT_ONCE = 32
ACCEPT_RETRY_S = 1.0  # when descriptors ran out: accept again after this, or as soon as a session ends

logger = logging.getLogger("smtpd")


class Smtp(Process):
    role: ClassVar[str] = "smtp"

    def __init__(self, start: Start, sockets: Sockets) -> None:
        super().__init__(start, sockets)
        self.sessions: set[Session] = set()
        self.message_ids = MessageIds(self)
        self.limits = limits_of(start.config)
        self._tls = {
            _tls_key(one): listener_context(start.config, start.secrets, one)
            for one in start.config.listeners
            if one.tls != "no"
        }
        self.rules_ask_for_names = rules_ask_for_names(start.config)
        self._arrived: dict[int, socket.socket] = {}  # new listeners' sockets, by index, until CONFIG comes
        self.admission = Admission(most_sessions())
        self._listening = list(start.smtp)
        self._accepting = False
        self._paused = False
        self._retry: asyncio.TimerHandle | None = None
        # Session ids show in traces, logs and Received headers; random high bits keep restarts apart.
        self._session_ids = itertools.count(int.from_bytes(os.urandom(4), "big") << 32 | 1)

    async def start(self) -> None:
        self._accept_on()

    async def finish(self) -> None:
        self._accept_off()
        self.admission.close()
        for sock in (*(sock for _, sock in self._listening), *self._arrived.values()):
            sock.close()

    def gauges(self) -> dict[str, int]:
        return {
            "smtp.session": len(self.sessions),
            "smtp.admitted": self.admission.sessions,
            "smtp.paused": int(self._paused),
        }

    @takes(Kind.LISTENER)
    def listener(self, peer: str, message: Message) -> None:
        descriptor = message.take_descriptor()
        if descriptor is None:
            self.fatal("a listener without its socket")
        self._arrived[message.integers[0]] = socket.socket(fileno=descriptor)

    async def configure(self, config: Config) -> None:
        """Listeners that stay keep their sockets, and who waits in them; sessions go on as they began."""
        await super().configure(config)
        self.limits = limits_of(config)
        self.rules_ask_for_names = rules_ask_for_names(config)
        self._accept_off()
        old, self._listening = self._listening, []
        kept = keep([listener for listener, _ in old], config.listeners)
        for index, (listener, before) in enumerate(zip(config.listeners, kept, strict=True)):
            sock = self._arrived.pop(index) if before is None else old[before][1]
            self._listening.append((listener, sock))
        for index, (_, sock) in enumerate(old):
            if index not in kept:
                sock.close()
        self._accept_on()

    @takes(Kind.PAUSE)
    def pause(self, peer: str, message: Message) -> None:
        self._paused = True
        self._accept_off()

    @takes(Kind.RESUME)
    def resume(self, peer: str, message: Message) -> None:
        self._paused = False
        self._accept_on()

    @takes(Kind.SMTP_SESSION)
    def smtp_session(self, peer: str, message: Message) -> None:
        """A session over a socketpair: whoever may use the control socket hands mail in this way."""
        (request,) = message.integers
        if self.admission.is_full:
            self.refuse(peer, request, "421 4.7.0 Too many sessions")
            return
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            self.refuse(peer, request, f"421 4.3.2 {error.strerror}")
            return
        self.answer(peer, request, descriptor=theirs.detach())
        self._begin(self.config.socket, ours, ("", 0))

    def tls_context(self, listener: Listener) -> ssl.SSLContext:
        return self._tls[_tls_key(listener)]

    def session_over(self, session: Session) -> None:
        self.sessions.discard(session)
        self.admission.leave()
        if self._retry is not None:
            self._accept_again()

    def _accept_on(self) -> None:
        if not self._accepting and not self._paused:
            self._accepting = True
            loop = asyncio.get_running_loop()
            for listener, sock in self._listening:
                loop.add_reader(sock.fileno(), self._accept, listener, sock)

    def _accept_off(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._accepting:
            self._accepting = False
            loop = asyncio.get_running_loop()
            for _, sock in self._listening:
                loop.remove_reader(sock.fileno())

    def _accept_again(self) -> None:
        if self._retry is not None:
            self._retry.cancel()  # a session ended before the pause was over
            self._retry = None
        self._accept_on()

    def _accept(self, listener: Listener, sock: socket.socket) -> None:
        """Several at once: a crowd must not overflow the backlog, where clients wait a second and more."""
        for _ in range(ACCEPT_AT_ONCE):
            if not self._accepting or not self._accept_one(listener, sock):
                return

    def _accept_one(self, listener: Listener, sock: socket.socket) -> bool:
        """False when nobody waits any more, or nobody can be let in for now."""
        try:
            connection, source = sock.accept()
        except OSError as error:
            if error.errno in OUT_OF_DESCRIPTORS:
                self.stats["smtp.accept-failed"] += 1
                refused = self.admission.accept_without_descriptors(sock)
                if refused is not None:
                    self.stats["smtp.turned-away"] += 1
                    self.admission.part_from(refused, self._farewell(listener, "Out of descriptors"))
                    return True
                # A listening socket stays readable: without a pause this would spin (Stalwart aad2cbcd).
                logger.warning("cannot accept: %s; waiting for a session to end", error.strerror)
                self._accept_off()
                self._retry = asyncio.get_running_loop().call_later(ACCEPT_RETRY_S, self._accept_again)
            return False
        if self.admission.is_full:
            self.stats["smtp.turned-away"] += 1
            turn_away(connection, self._farewell(listener, "Too many connections"))
            return True
        self._begin(listener, connection, source[:2])
        return True

    def _farewell(self, listener: Listener, why: str) -> bytes:
        """Nothing where TLS should come first: there is no way to say it."""
        if listener.tls == "implicit":
            return b""
        hostname = listener.hostname or self.config.hostname
        return Reply(421, f"{hostname} {why}, try again later", "4.7.0").encode()

    def _begin(self, listener: Listener, connection: socket.socket, source: tuple[str, int]) -> None:
        connection.setblocking(False)
        session = Session(self, self, listener, next(self._session_ids))
        self.sessions.add(session)
        self.admission.enter()
        self.stats["smtp.session.total"] += 1
        self.spawn(session.run(connection, source), f"smtp session {session.id:016x}")


def _tls_key(listener: Listener) -> tuple[object, ...]:
    """What makes two listeners have the same context."""
    return (listener.pki, listener.ca, listener.verify, listener.hostname)


def rules_ask_for_names(config: Config) -> bool:
    """Whether the names of clients' addresses matter to the rules."""
    return any(criterion.fact == "rdns" for rule in config.matches for criterion in rule.criteria)


def limits_of(config: Config) -> Limits:
    return Limits(
        message_bytes=config.max_message_bytes,
        recipients=config.max_rcpt,
        messages=config.max_mails,
        failed_recipients=MAX_FAILED_RECIPIENTS,
        useless_commands=MAX_USELESS_COMMANDS,
    )
