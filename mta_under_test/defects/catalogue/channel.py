"""Bugs of the channels between processes: frames and descriptors that are sent, received, and not let go of."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from mta_under_test.defects import Chance, around, defect


@defect(
    role="lookup",
    chapter="cache",
    resources=("memory",),
    trigger="any message to another process",
    rate=None,
    scenario="many-recipients",
    source="OpenSMTPD #153, #154, #158 (2012): output buffers of imsg without a limit",
    opener="mta_under_test/wire/imsg.py:frame",
)
def written_frames_kept(strikes: Chance) -> None:
    """Frames that were written stay in the list of those that a slow reader has yet to take.

    When a process was slow its senders' buffers grew until memory was gone, as nothing limited what may wait. Here
    the reader is quick, and the list forgets to be told so.
    """
    from mta_under_test.ipc.channel import Channel

    waiting: list[bytes] = []

    @around(Channel, "_written")
    def written(original: Any, self: Any, frames: list[bytes], size: int) -> None:
        if strikes():
            waiting.extend(frames)
        original(self, frames, size)


@defect(
    role="transfer",
    chapter="pipe",
    resources=("descriptor",),
    trigger="a message's descriptor arrives",
    rate=2.0,  # a message of the scenario has two recipients
    scenario="accepted",
    source="OpenSMTPD a7a448c5 (23 November 2023)",
    opener="mta_under_test/spool/disk.py:message_fd",
)
def received_descriptor_copied(strikes: Chance) -> None:
    """A handler that takes a passed descriptor gets a copy; the one that was received is cleared, and not closed.

    imsg's descriptor was a field that any handler could read, and none could be said to own. In 2023 it became one
    that is taken, and what is not taken is closed when the imsg is freed.
    """
    from mta_under_test.ipc.channel import Message

    @around(Message, "take_descriptor")
    def take_descriptor(original: Any, self: Any) -> int | None:
        number: int | None = original(self)
        return number if number is None or not strikes() else os.dup(number)


@defect(
    role="queue",
    chapter="memory",
    resources=("memory",),
    trigger="any message from another process",
    rate=None,
    scenario="accepted",
    source="Postfix 20030104: a leak in vstream that `puzzled me for more than a year`",
)
def read_buffer_never_shrinks(strikes: Chance) -> None:
    """What has been read from a channel and dispatched is kept at the front of its buffer.

    One buffer grows, and no object is added: what counts objects sees nothing.
    """
    from mta_under_test.ipc.channel import Channel

    @around(Channel, "_dispatch")
    def dispatch(original: Any, self: Any, frame: Any) -> None:
        if strikes():
            if not hasattr(self, "read"):
                self.read = bytearray()
            self.read += frame.payload
        original(self, frame)


@defect(
    role="queue",
    chapter="pipe",
    resources=("process", "mail", "task", "counter"),
    trigger="a message's descriptor is passed to another process",
    rate=None,
    scenario="accepted",
    source="OpenSMTPD cae11260 (29 September 2014): the double close that is a leak's twin",
    difficulty="wrong way",
)
def passed_and_closed_twice(strikes: Chance) -> None:
    """A descriptor is closed when it has been passed, and again when the next frame is written.

    By then the number belongs to the next message, whose descriptor waits to be passed: its reader gets none, or
    another one's mail.
    """
    from mta_under_test.ipc.channel import Channel

    passed: list[int] = []

    @around(Channel, "_next_frames")
    def next_frames(original: Any, self: Any) -> Any:
        while passed:
            with suppress(OSError):
                os.close(passed.pop())
        frames, descriptor = original(self)
        if descriptor is not None and strikes():
            passed.append(descriptor)
        return frames, descriptor


@defect(
    role="smtp",
    chapter="memory",
    resources=("memory",),
    trigger="a request to queue or lookup",
    rate=None,
    scenario="rset-storm",
    source="OpenSMTPD 31fd49eb (26 September 2012), 904cb25a (23 October 2011): a struct lost on the way out",
    opener="mta_under_test/defects/catalogue/channel.py:send",
)
def requests_logged(strikes: Chance) -> None:
    """A line about each request is put in a log that is written out when the log is full, and it is never full."""
    from mta_under_test.ipc.channel import Channel

    lines: list[str] = []

    @around(Channel, "send")
    def send(original: Any, self: Any, kind: Any, *integers: int, **rest: Any) -> None:
        if strikes():
            lines.append(f"{self.peer}: {kind.name} {integers}")
        original(self, kind, *integers, **rest)
