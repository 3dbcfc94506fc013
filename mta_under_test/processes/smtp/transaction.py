"""smtp's transactions: MAIL … end of data, and the message ids that they take.

A message that fits into one imsg travels in it, with the request to commit it. A larger one is written through a
descriptor that queue opens for it. Either way `Transaction.close` lets go of everything on every way out.
"""

from __future__ import annotations

import os
from array import array

from mta_under_test.ipc.messages import Kind
from mta_under_test.processes.process import Process, Refusal
from mta_under_test.wire import imsg
from mta_under_test.wire.masquerade import Masquerade

WRITE_BYTES = 1 << 16
INLINE_BYTES = imsg.MAX_FRAME_BYTES - imsg.HEADER.size - 2 - 3 * 8  # beside COMMIT_MESSAGE's integers
RESERVE = 64  # ids


class MessageIds:
    """Ids that queue has set aside for us, so that MAIL need not wait for one.

    The reserve is full whenever nothing is under way: what a commit or a removal used up comes back with its answer.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self._reserve = array("I")  # not a list: its numbers would be objects, and their count go up and down

    async def take(self) -> int:
        """Raises Refusal."""
        if not self._reserve:
            answer = await self._process.ask("queue", Kind.CREATE_MESSAGE, RESERVE)
            self._give(*answer.integers[1:])
        return self._reserve.pop()

    async def commit(self, msgid: int, content: bytes) -> None:
        """Returns when the message survives power loss. `content` is empty when a file has it. Raises Refusal."""
        answer = await self._process.ask("queue", Kind.COMMIT_MESSAGE, msgid, text=content)
        self._give(*answer.integers[1:])

    def remove(self, msgid: int) -> None:
        self._process.spawn(self._remove(msgid), f"removal of {msgid:08x}")

    async def _remove(self, msgid: int) -> None:
        try:
            answer = await self._process.ask("queue", Kind.REMOVE_MESSAGE, msgid)
        except Refusal:
            return  # it is removed; there is no new id for it just now
        self._give(*answer.integers[1:])

    def _give(self, *msgids: int) -> None:
        self._reserve.extend(msgids)
        while len(self._reserve) > RESERVE:
            # Many transactions at once took more: an id too many is given back, and not replaced.
            self._process.tell("queue", Kind.REMOVE_MESSAGE, 0, self._reserve.pop())


class Transaction:
    """The message id, what has come of the message, and the writable descriptor of a large one."""

    def __init__(self, process: Process, ids: MessageIds, sender: str, msgid: int) -> None:
        self.sender = sender
        self.msgid = msgid
        self.parameters: dict[str, str] = {}  # MAIL's
        self.masquerade: Masquerade | None = None
        self.first_recipient = ""
        self.failed = ""  # why the message cannot be kept, once something went wrong while it was written
        self.held = process.scope("transaction %08x", msgid)
        self.held.took("message id", msgid)
        self._process = process
        self._ids = ids
        self._descriptor: int | None = None
        self._chunks: list[bytes] = []
        self._chunk_bytes = 0

    async def write(self, data: bytes) -> None:
        self._chunks.append(data)
        self._chunk_bytes += len(data)
        if self._chunk_bytes > INLINE_BYTES and self._descriptor is None and not self.failed:
            await self._open()
        if self._chunk_bytes >= WRITE_BYTES or self.failed:
            self._flush()

    async def _open(self) -> None:
        """The message is too large for an imsg: from here on it goes into its file."""
        try:
            answer = await self._process.ask("queue", Kind.OPEN_MESSAGE, self.msgid)
        except Refusal as refusal:
            self.failed = str(refusal)
            return
        self._descriptor = answer.take_descriptor()
        if self._descriptor is None:
            self.failed = "out of descriptors"
            return
        self.held.took("message", self._descriptor)

    def _flush(self) -> None:
        """Write out what was collected. A full disk fails the message, not the session."""
        data = memoryview(b"".join(self._chunks))
        self._chunks.clear()
        self._chunk_bytes = 0
        if self.failed:
            return
        assert self._descriptor is not None
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError as error:
            self.failed = error.strerror or str(error)

    def end(self) -> None:
        """The message is whole. A failure to write it shows in `failed`."""
        if self._descriptor is not None:
            self._flush()
            self._close_descriptor()

    async def commit(self) -> None:
        """Returns when it survives power loss; it is queue's from then on. Raises Refusal."""
        assert not self.failed
        await self._ids.commit(self.msgid, b"".join(self._chunks))
        self.held.gave("message id", self.msgid)
        self.msgid = 0

    def close(self) -> None:
        self._chunks.clear()
        self._close_descriptor()
        if self.msgid:
            self._ids.remove(self.msgid)
            self.held.gave("message id", self.msgid)
            self.msgid = 0

    def _close_descriptor(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self.held.gave("message", self._descriptor)
            self._descriptor = None
