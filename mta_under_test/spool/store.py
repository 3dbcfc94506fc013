"""What the queue process asks of a place where messages are kept, whichever it is: disk, memory, nowhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from mta_under_test.wire.envelope import Envelope


class SpoolError(Exception):
    """The queue cannot do what was asked; one line says which file, and why."""


class CorruptEnvelope(SpoolError):
    """An envelope could not be understood and was moved to corrupt/, with its message."""


class Batch:
    """Messages that are committed together."""

    def __init__(self, msgids: Sequence[int]) -> None:
        self.msgids = msgids


class Store(Protocol):
    """Every method may raise SpoolError. Descriptors that are handed out are the caller's."""

    # ---- a message on its way in

    def create(self) -> int:
        """Begin a message: a random id that no other message has, never 0."""

    def open_message(self, msgid: int) -> int:
        """A descriptor to write the message with."""

    def put_message(self, msgid: int, content: bytes) -> None:
        """The whole message at once, in the place of `open_message`."""

    def add_text(self, msgid: int, text: bytes) -> int:
        """Add a recipient, an envelope's text, to an uncommitted message. Returns the envelope's id."""

    def commit(self, msgids: Sequence[int]) -> None:
        """Make messages real, all of them or none. When it returns they survive power loss."""

    # The same in three steps, so that the disk can be waited for elsewhere. One batch at a time.

    def prepare(self, msgids: Sequence[int]) -> Batch:
        """Everything but the waiting. When it fails nothing was done."""

    def sync(self, batch: Batch) -> None:
        """Wait for the disk. May be called from another thread, beside all other methods."""

    def finish(self, batch: Batch) -> None:
        """`sync` has returned: the messages are real."""

    def abandon(self, batch: Batch) -> None:
        """`sync` has failed: they are uncommitted as before, unless it was the disk that failed."""

    def discard(self, msgid: int) -> None:
        """Give up an uncommitted message. One that is gone already is no error."""

    # ---- what is in the queue

    def message_fd(self, msgid: int) -> int:
        """A descriptor to read a committed message with."""

    def envelopes(self, msgid: int) -> list[int]:
        """Ids of a committed message's envelopes, in order."""

    def envelope(self, evpid: int) -> Envelope:
        """Read one. Raises CorruptEnvelope for one that nobody can read."""

    def envelope_text(self, evpid: int) -> bytes:
        """The same as text."""

    def update(self, evpid: int, envelope: Envelope) -> None:
        """Replace a committed envelope: after a crash there is the old one or the new one."""

    def delete(self, evpid: int) -> bool:
        """Remove an envelope, and the message with the last one; true if the message is gone too."""

    # ---- its life

    def recover(self) -> None:
        """Set right what a crash left. Before anything else."""

    def walk(self) -> Iterator[tuple[int, Envelope]]:
        """Every committed envelope."""

    @property
    def unsettled_bytes(self) -> int:
        """What is safe but not in its final place yet."""

    @property
    def pressed(self) -> bool:
        """Whether that is so much that `settle` should not wait for a quiet moment."""

    def forget(self) -> bool:
        """Nothing is owed of what `unsettled_bytes` counts, and it is dropped; false when something is."""

    def settle(self, budget_s: float) -> bool:
        """Work on that for about so long. True when it has to wait for `sync_settled` now."""

    def sync_settled(self) -> None:
        """Wait for the disk. The one method that may be called from another thread, beside all others."""

    def settled(self) -> None:
        """`sync_settled` has returned."""

    def give_up_settling(self) -> None:
        """`sync_settled` has failed."""

    def close(self) -> None:
        """Settle everything and let go of every descriptor."""
