"""What a session says, for people: events as the command lines that they were, and who is told of them."""

from __future__ import annotations

from typing import Protocol

from harness.remote_mx.ledger import Transaction
from mta_under_test.wire import server


class Watcher(Protocol):
    """Somebody who is told what goes on while it goes on."""

    def said(self, session: int, line: str) -> None:
        """One line of a session's dialogue, `C: …` or `S: …`."""

    def over(self, transaction: Transaction) -> None:
        """A transaction has ended."""


def spoken(event: server.Asked) -> str:
    """The client's line; its content is not repeated."""
    match event:
        case server.Hello(name, extended):
            return f"{'EHLO' if extended else 'HELO'} {name}"
        case server.Mail(sender, parameters):
            return f"MAIL FROM:<{'' if sender is None else sender}>{_parameters(parameters)}"
        case server.Recipient(mailbox, parameters):
            return f"RCPT TO:<{mailbox}>{_parameters(parameters)}"
        case server.Data():
            return "DATA"
        case server.EndOfChunk(size):
            return f"BDAT {size}"
        case server.EndOfData() | server.Refused(ends_data=True):
            return "(message) ."
        case server.Reset():
            return "RSET"
        case server.Noop():
            return "NOOP"
        case server.Verify(argument):
            return f"VRFY {argument}"
        case server.Expand(argument):
            return f"EXPN {argument}"
        case server.Help(argument):
            return f"HELP {argument}".rstrip()
        case server.Quit():
            return "QUIT"
        case server.Refused(line=line):
            return line.decode("ascii", errors="backslashreplace")
        case server.StartTls():
            return "STARTTLS"
        case server.Auth(mechanism=mechanism):
            return f"AUTH {mechanism}"
        case server.AuthResponse():
            return "(authentication)"
        case server.Connected():
            return "(connected)"


def summary(transaction: Transaction) -> str:
    """One line for a message: its fate, whence, whither."""
    recipients = ", ".join(f"<{address}>" for address in transaction.accepted)
    line = f"{transaction.fate} from <{transaction.sender}>"
    if transaction.fate == "accepted":
        return f"{line} to {recipients}: {transaction.size_bytes} bytes, Message-ID {transaction.message_id or 'none'}"
    if transaction.refused:
        line += " to " + ", ".join(f"<{address}>" for address in transaction.refused)
    return f"{line}: {transaction.refusal}" if transaction.refusal else line


def _parameters(parameters: dict[str, str]) -> str:
    return "".join(f" {name}={value}" if value else f" {name}" for name, value in parameters.items())
