"""The bug that Seatbelt began with: transfer keeps the message file of every refused message open."""

from __future__ import annotations

from mta_under_test.defects import Chance, Defect
from mta_under_test.processes.parent import Birth
from mta_under_test.processes.process import Process, Sockets, Start
from mta_under_test.processes.transfer import Transfer
from mta_under_test.processes.transfer_session import Session


def overlay(born: Birth, strikes: Chance) -> Birth:
    class ForgetfulSession(Session):
        _forgotten: int | None = None

        def release_message(self) -> None:
            """Neither RSET nor the flush of a task closes the file: the next message overwrites the descriptor.

            The end of the body and the end of the session still close it, as they did then. RSET and flush both come
            by for one message: that it is forgotten is decided once.
            """
            if self.message is None or self.message == self._forgotten:
                return
            if strikes():
                self._forgotten = self.message
            else:
                self.close_message()

    class ForgetfulTransfer(Transfer):
        session_class = ForgetfulSession

    def birth(start: Start, sockets: Sockets) -> Process:
        return ForgetfulTransfer(start, sockets)

    return birth


DEFECT = Defect(
    name="transfer-fd-leak",
    role="transfer",
    resource="descriptor",
    trigger="the remote MX refuses MAIL, every RCPT, or DATA, and the session is used again",
    rate="1 for each refused message, less 1 for each session (its last message is closed with it)",
    scenario="rejected-reuse",
    source="OpenSMTPD af8b6a75 (18 January 2013) and 594cb438 (28 January 2013); introduced 33d8bd08 (18 August 2012)",
    story=(
        "When the message descriptor came to be requested for each message instead of once a session, its close stayed "
        "where the body ends and where the session ends. A message that is refused before its body is sent passes "
        "neither: RSET, and the next message's descriptor takes the variable. The bounce removes the file, and lsof "
        "shows it as (deleted). The limit of 100 mails a session counted accepted ones only, so nothing stopped it."
    ),
    overlay=overlay,
)
