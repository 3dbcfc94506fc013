"""The client's side of LMTP (RFC 2033), without I/O: SMTP's, but for LHLO and a reply for each recipient at the end.

out = machine.lhlo("mail.example.org")
…                                            # as with ClientMachine, until end_of_data
answered = machine.next_reply()              # ("end", reply), as often as recipients were accepted, in their order
"""

from __future__ import annotations

from mta_under_test.wire.client import ClientMachine
from mta_under_test.wire.reply import Reply


class LmtpMachine(ClientMachine):
    def __init__(self) -> None:
        super().__init__()
        self._accepted = 0  # recipients of the transaction

    def lhlo(self, name: str) -> bytes:
        """Answered as EHLO is, and named so by `next_reply`."""
        return self._command("EHLO", f"LHLO {name}")

    def mail(self, sender: str, size: int | None = None, eight_bit: bool = False) -> bytes:
        self._accepted = 0
        return super().mail(sender, size, eight_bit)

    def end_of_data(self) -> bytes:
        out = super().end_of_data()
        self._pending += ["end"] * (self._accepted - 1)
        return out

    def _answered(self, verb: str, reply: Reply) -> None:
        super()._answered(verb, reply)
        if verb == "RCPT" and reply.positive:
            self._accepted += 1
