"""Bugs of smtp: memory for each session, transaction and recipient."""

from __future__ import annotations

from typing import Any

from mta_under_test.defects import Chance, around, defect


@defect(
    role="smtp",
    chapter="memory",
    resources=("memory",),
    trigger="any session",
    rate=1.0,
    scenario="connect-quit",
    source="OpenSMTPD 0629d79d (21 May 2015): a filter's session for every client",
    difficulty="slow",
    opener="mta_under_test/defects/catalogue/smtp_memory.py:run",
)
def sixty_four_bytes_a_session(strikes: Chance) -> None:
    """Each session leaves the 64 bytes that a filter needed to know it by."""
    from mta_under_test.processes.smtp.session import Session

    kept: list[bytes] = []

    @around(Session, "run")
    async def run(original: Any, self: Any, *arguments: Any) -> None:
        if strikes():
            kept.append(bytes(64 - b"".__sizeof__()))
        await original(self, *arguments)


@defect(
    role="smtp",
    chapter="memory",
    resources=("memory",),
    trigger="a session ends",
    rate=None,
    scenario="connect-quit",
    source="OpenSMTPD 3231e32b (24 October 2013)",
    opener="mta_under_test/processes/smtp/session.py:__init__",  # which the state refers to
)
def filter_state_of_every_session(strikes: Chance) -> None:
    """The end of a session is tested for on the wrong enumeration, and its filters' state is never freed."""
    from mta_under_test.processes.smtp.session import Session

    sessions: dict[int, object] = {}

    @around(Session, "run")
    async def run(original: Any, self: Any, *arguments: Any) -> None:
        if strikes():
            sessions[self.id] = (self.filters, self.filters.__dict__)
        await original(self, *arguments)


@defect(
    role="smtp",
    chapter="memory",
    resources=("memory",),
    trigger="a transaction ends by RSET, by a new MAIL, or with its session",
    rate=None,
    scenario="rset-storm",
    source="OpenSMTPD 39c24f71 (30 August 2012): a reference of every task whose recipients were all refused",
    opener="mta_under_test/processes/smtp/session.py:_mail",
)
def abandoned_transaction(strikes: Chance) -> None:
    """A transaction that is given up is referred to by one who waits for its end of data."""
    from mta_under_test.processes.smtp.session import Session

    kept: list[object] = []

    @around(Session, "_forget_transaction")
    def forget(original: Any, self: Any) -> None:
        if self.transaction is not None and strikes():
            kept.append(self.transaction)
        original(self)


@defect(
    role="smtp",
    chapter="memory",
    resources=("memory",),
    trigger="a recipient is refused",
    rate=None,
    scenario="rejected-reuse",
    source="Exim 4.88 HS/01: verification of recipients kept megabytes for each",
    opener="mta_under_test/wire/address.py",
)
def refused_recipient_kept(strikes: Chance) -> None:
    """What was asked about a recipient who is refused is kept for a report that nobody ever makes."""
    from mta_under_test.processes.smtp.session import Session

    kept: list[object] = []

    @around(Session, "_recipient")
    async def recipient(original: Any, self: Any, event: Any) -> Any:
        reply = await original(self, event)
        if not reply.positive and strikes():
            kept.append(event)
        return reply


@defect(
    role="smtp",
    chapter="cache",
    resources=("memory",),
    trigger="a client connects from a port of its own",
    rate=None,
    scenario="connect-quit",
    source="nodemailer 0240d67 (September 2025): a cache of names without a limit",
    opener="mta_under_test/processes/smtp/session.py:run mta_under_test/defects/catalogue/smtp_memory.py:identify",
)
def names_by_port(strikes: Chance) -> None:
    """The cache of clients is asked by address and kept by address and port: it never hits, and never ends."""
    from mta_under_test.processes.smtp.session import Session

    names: dict[tuple[str, int], str] = {}

    @around(Session, "_identify")
    async def identify(original: Any, self: Any) -> None:
        await original(self)
        if strikes():
            names[self.source, self.source_port] = f"client {self.source}"


@defect(
    role="smtp",
    chapter="cache",
    resources=("memory",),
    trigger="a line of the message's header arrives",
    rate=None,
    scenario="accepted",
    source="OpenSMTPD 1b537371 (15 October 2014): header lines kept for rewriting",
    opener="mta_under_test/defects/catalogue/smtp_memory.py:close mta_under_test/wire/content.py",
)
def header_lines_kept(strikes: Chance) -> None:
    """Every piece of a message is kept until its header is known to be whole, and then not let go of."""
    from mta_under_test.processes.smtp.transaction import Transaction

    kept: list[object] = []

    @around(Transaction, "close")
    def close(original: Any, self: Any) -> None:
        if strikes():
            kept.append([*self._chunks])
        original(self)
