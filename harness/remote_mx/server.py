"""The remote MX itself: listeners, each with a policy and a gate, and the sessions that answer as the policy says.

Owns: every connection that it accepted, until it is closed: by QUIT, by the policy, by the peer, by `close`.
Never: delivers anything, starts a task or a thread. A session is callbacks of the event loop around a server machine;
what waits (a shut gate, a stall) is a session that does not go on, so that nothing can be left behind.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Mapping
from typing import cast

from harness.remote_mx.dialogue import Watcher, spoken
from harness.remote_mx.ledger import Account, Ledger, Transaction
from harness.remote_mx.policy import ACCEPT, Action, Decisions, Phase, Policy
from mta_under_test.wire import server
from mta_under_test.wire.address import Mailbox
from mta_under_test.wire.reply import Reply
from mta_under_test.wire.server import Limits, ServerMachine

LIMITS = Limits(recipients=100_000, messages=1_000_000_000)  # it is the policy that refuses, not the machine
BACKLOG = 4096  # connections that wait to be accepted

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER with no time: close(2) sends RST (socket(7))
_REFUSALS: dict[Phase, tuple[str, str]] = {  # enhanced status code without its class, and text
    "connect": ("3.2", "No service for you now"),
    "ehlo": ("5.1", "EHLO is not spoken here"),
    "mail": ("1.8", "Sender refused"),
    "rcpt": ("1.1", "No such user here"),
    "data": ("3.2", "No message wanted"),
    "end": ("7.1", "Message refused"),
}


class RemoteMXServer:
    """All listeners, with one ledger."""

    def __init__(self, hostname: str = "remote-mx.test", watcher: Watcher | None = None) -> None:
        self.hostname = hostname
        self.watcher = watcher
        self.ledger = Ledger()
        self.listeners: dict[str, Listener] = {}
        self.session_number = 0

    async def listen(self, name: str, policy: Policy, host: str = "127.0.0.1", port: int = 0) -> int:
        """Open a listener; port 0 takes any free one. Gives the port. Raises OSError."""
        assert name not in self.listeners
        listener = Listener(self, name, policy)
        loop = asyncio.get_running_loop()
        listener.server = await loop.create_server(lambda: Session(listener), host, port, backlog=BACKLOG)
        self.listeners[name] = listener
        self.ledger.listener(name)
        return cast(int, listener.server.sockets[0].getsockname()[1])

    @property
    def open_sessions(self) -> int:
        return sum(len(listener.sessions) for listener in self.listeners.values())

    async def close(self) -> None:
        """Stop listening and cut every session off."""
        for listener in self.listeners.values():
            if listener.server is not None:
                listener.server.close()
            for session in list(listener.sessions):
                session.abort()
        for listener in self.listeners.values():
            if listener.server is not None:
                await listener.server.wait_closed()


class Listener:
    """A port, its policy and its gate."""

    def __init__(self, mx: RemoteMXServer, name: str, policy: Policy) -> None:
        self.mx = mx
        self.name = name
        self.decisions = Decisions(policy)
        self.server: asyncio.Server | None = None
        self.sessions: dict[Session, None] = {}  # in the order of their connections
        self.gate_is_open = True

    def set_policy(self, policy: Policy) -> None:
        """From the next decision on, counting anew."""
        self.decisions = Decisions(policy)

    def shut_gate(self) -> None:
        """Connections are accepted, and their greeting is withheld. Sessions that were greeted go on."""
        self.gate_is_open = False

    def open_gate(self) -> None:
        """Greet everybody who waits, first come, first served."""
        self.gate_is_open = True
        for session in list(self.sessions):
            session.gate_opened()


class Session(asyncio.Protocol):
    """One connection. `_held`: it does not go on, because of the gate, a stall, or since it is closing."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._mx = listener.mx
        self._watcher = listener.mx.watcher
        self._machine = ServerMachine(LIMITS)
        self._held = False
        self._at_gate = False
        self._dropped = False
        self._spared = False  # the transaction in hand
        self._stall: asyncio.TimerHandle | None = None
        self._mx.session_number += 1
        self._number = self._mx.session_number

    # ---- called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._account: Account = self._mx.ledger.account(self._listener.name)
        self._listener.sessions[self] = None
        self._at_gate = self._held = not self._listener.gate_is_open
        self._go_on()

    def data_received(self, data: bytes) -> None:
        self._machine.receive(data)
        self._go_on()
        if self._machine.state is server.State.DATA:
            # A client that writes the body, and then the dot, waits for our acknowledgement between the two (Nagle),
            # and the kernel would take its time over it: 40 ms a message (tcp(7), TCP_QUICKACK).
            connection = cast(socket.socket, self._transport.get_extra_info("socket"))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def eof_received(self) -> bool:
        self._machine.receive(b"")
        self._go_on()
        if self._held:
            self._close()  # nobody is left to hold out against
        return True  # it is we who close, after what is written was sent

    def connection_lost(self, error: Exception | None) -> None:
        self._stop()
        self._end_transaction()
        self._account.close(dropped=self._dropped)
        del self._listener.sessions[self]

    def pause_writing(self) -> None:
        if not self._transport.is_closing():
            self._transport.pause_reading()  # who does not read our replies is not listened to

    def resume_writing(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    # ---- called by the listener

    def gate_opened(self) -> None:
        if self._at_gate:
            self._at_gate = self._held = False
            self._go_on()

    def abort(self) -> None:
        self._stop()
        self._transport.abort()

    # ---- the dialogue

    def _go_on(self) -> None:
        while not self._held and (event := self._machine.next_event()) is not None:
            match event:
                case server.Body(chunk):
                    self._transaction.body(chunk)
                case server.Closed():
                    self._close()
                case _:
                    self._heard(event)
                    self._asked(event)

    def _asked(self, event: server.Asked) -> None:
        """Do as the policy says: answer now, later, never, or be gone."""
        action = self._decide(event)
        match action.kind:
            case "accept" | "refuse":
                self._answer(event, action)
            case "stall":
                self._held = True
                if action.seconds is not None:
                    self._stall = asyncio.get_running_loop().call_later(action.seconds, self._stalled, event)
            case "drop" | "fin":
                self._dropped = True
                self._say_aside(f"({action})")
                if action.kind == "fin":
                    self._close()
                else:
                    connection = cast(socket.socket, self._transport.get_extra_info("socket"))
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    self.abort()

    def _stalled(self, event: server.Asked) -> None:
        self._stall = None
        self._held = False
        self._answer(event, ACCEPT)
        self._go_on()

    def _decide(self, event: server.Asked) -> Action:
        decisions = self._listener.decisions
        match event:
            case server.Connected():
                return decisions.decide("connect")
            case server.Hello(extended=True):
                return decisions.decide("ehlo")
            case server.Mail():
                limits = (decisions.policy.quit_after, decisions.policy.messages)
                if any(limit is not None and self._account.transactions >= limit for limit in limits):
                    return Action("refuse", 421)
                self._account.begin("" if event.sender is None else str(event.sender))
                self._spared = decisions.spares()
                return ACCEPT if self._spared else decisions.decide("mail", _domains(event.sender))
            case server.Recipient() | server.Data() | server.EndOfData() if self._spared:
                return ACCEPT
            case server.Recipient():
                return decisions.decide("rcpt", _domains(event.mailbox))
            case server.Data():
                return decisions.decide("data", self._recipient_domains())
            case server.EndOfData():
                return decisions.decide("end", self._recipient_domains())
        return ACCEPT

    def _answer(self, event: server.Asked, action: Action) -> None:
        reply = self._refusal(event, action.code) if action.kind == "refuse" else self._yes(event)
        is_over = self._enter(event, reply)
        self._say(reply)
        if is_over:
            self._end_transaction()
            limit = self._listener.decisions.policy.messages
            if limit is not None and self._account.transactions >= limit:
                self._close()
        if self._machine.state is server.State.CLOSED:
            self._close()

    def _enter(self, event: server.Asked, reply: Reply) -> bool:
        """Keep the books; tells whether a transaction is over."""
        account = self._account
        if account.transaction is None:
            return False
        match event:
            case server.Recipient(mailbox) if reply.positive:
                account.accept_recipient(str(mailbox))
            case server.Recipient(mailbox):
                account.refuse_recipient(str(mailbox), str(reply))
            case server.Mail() | server.Data() | server.Refused(ends_data=True) if not reply.positive:
                account.refuse_whole(str(reply))
                return not isinstance(event, server.Data)
            case server.EndOfData():
                if reply.positive:
                    account.deliver()
                else:
                    account.refuse_whole(str(reply), returned=reply.permanent)
                return True
            case server.Reset() | server.Hello() if reply.positive:
                return True
        return False

    def _refusal(self, event: server.Asked, code: int) -> Reply:
        phase = _PHASES[type(event)]
        subject, text = _REFUSALS[phase]
        if code == 421:
            return Reply(421, f"{self._mx.hostname} closing the connection", "" if phase == "connect" else "4.3.2")
        without_enhanced = phase in ("connect", "ehlo")  # RFC 2034 §4
        return Reply(code, f"{text}, as told", "" if without_enhanced else f"{code // 100}.{subject}")

    def _yes(self, event: server.Asked) -> Reply:
        match event:
            case server.Connected():
                return Reply(220, f"{self._mx.hostname} ESMTP Seatbelt remote MX")
            case server.Hello(name, extended):
                return self._machine.ehlo_reply(self._mx.hostname, name) if extended else Reply(250, self._mx.hostname)
            case server.Mail():
                return Reply(250, "Sender ok", "2.1.0")
            case server.Recipient():
                return Reply(250, "Recipient ok", "2.1.5")
            case server.Data():
                return Reply(354, "End with a dot on a line by itself")
            case server.EndOfData():
                return Reply(250, "Message accepted", "2.0.0")
            case server.Verify():
                return Reply(252, "Send RCPT to find out", "2.5.2")
            case server.Help():
                return Reply(214, "EHLO HELO MAIL RCPT DATA RSET NOOP VRFY HELP QUIT", "2.0.0")
            case server.Quit():
                return Reply(221, "Bye", "2.0.0")
            case server.Refused(reply):
                return reply
        return Reply(250, "Ok", "2.0.0")

    # ---- odds and ends

    @property
    def _transaction(self) -> Transaction:
        assert self._account.transaction is not None
        return self._account.transaction

    def _recipient_domains(self) -> set[str]:
        return {address.rpartition("@")[2].lower() for address in self._transaction.accepted}

    def _end_transaction(self) -> None:
        over = self._account.end()
        if over is not None and self._watcher is not None:
            self._watcher.over(over)

    def _close(self) -> None:
        self._stop()
        self._transport.close()

    def _stop(self) -> None:
        self._held = True
        self._at_gate = False
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _say(self, reply: Reply) -> None:
        self._transport.write(self._machine.reply(reply))
        self._say_aside(str(reply))

    def _say_aside(self, text: str) -> None:
        if self._watcher is not None:
            self._watcher.said(self._number, f"S: {text}")

    def _heard(self, event: server.Asked) -> None:
        if self._watcher is not None and not isinstance(event, server.Connected):
            self._watcher.said(self._number, f"C: {spoken(event)}")


_PHASES: Mapping[type[server.Asked], Phase] = {
    server.Connected: "connect",
    server.Hello: "ehlo",
    server.Mail: "mail",
    server.Recipient: "rcpt",
    server.Data: "data",
    server.EndOfData: "end",
}


def _domains(mailbox: Mailbox | None) -> tuple[str, ...]:
    return () if mailbox is None else (mailbox.domain.lower(),)


def reason(error: OSError) -> str:
    """Why `listen` failed, in few words: the event loop wraps the system's text in its own."""
    return os.strerror(error.errno) if error.errno is not None and error.errno > 0 else error.strerror or str(error)
