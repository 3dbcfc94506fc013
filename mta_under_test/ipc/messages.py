"""The message kinds that the processes exchange, and the one form that all payloads have.

A payload is a list of unsigned 64-bit integers (request id, evpid, msgid …) followed by bytes (an ASCII envelope, a
status line). Requests and their answers carry the asker's request id as the first integer. Where a descriptor
travels the kind says so.
"""

from __future__ import annotations

import enum
import struct


class Kind(enum.IntEnum):
    """`sender → receiver: integers; bytes`. Where no receiver is named, every process takes it."""

    # Answers, to whoever asked.
    OK = 1  # request id, …; …            may carry a descriptor
    FAIL = 2  # request id; reason
    # Switches, from control (which had them from smtpctl).
    VERBOSE = 10  # level
    TRACE = 11  # ; names of the traced subsystems, by space
    PROFILE = 12  # ; names of the profiled subsystems, by space
    TRACE_LINE = 13  # → control: ; subsystem, tab, line
    PROFILE_LINE = 14  # → control: ; subsystem, tab, line
    STATS = 15  # request id; answer: ; `name value` lines
    PAUSE = 16  # ; mta | smtp
    RESUME = 17  # ; mta | smtp
    SHUTDOWN = 18  # control → parent
    # Queue administration, from control.
    LIST_EVPIDS = 20  # → scheduler: request id, after; answer: last, evpid, state, next try, …
    SHOW_ENVELOPE = 21  # → queue: request id, evpid; answer: ; ASCII envelope
    SHOW_MESSAGE = 22  # → queue: request id, evpid or msgid; answer with the message's descriptor
    SCHEDULE = 23  # → scheduler: request id, evpid or msgid or 0 (all)
    REMOVE = 24  # → scheduler: request id, evpid or msgid or 0 (all); scheduler → queue: evpid
    # A message on its way in.
    CREATE_MESSAGE = 30  # smtp → queue: request id, how many; answer: so many msgids
    EXPAND = 31  # smtp, queue → lookup: request id, msgid; ASCII envelope; answered by queue, or FAIL by lookup
    SUBMIT_ENVELOPE = 32  # lookup → queue: request id, msgid; ASCII envelope
    COMMIT_ENVELOPES = 33  # lookup → queue: request id, msgid; name of the process that asked
    OPEN_MESSAGE = 34  # smtp → queue: request id, msgid; answer with a writable descriptor
    COMMIT_MESSAGE = 35  # smtp → queue: request id, msgid; the message, unless a file has it; answered when it
    # survives power loss, with a new msgid
    REMOVE_MESSAGE = 36  # smtp → queue: request id or 0, msgid; answer: a new msgid
    SUBMIT = 37  # queue → scheduler: (evpid, type, created, expires, tries, last bounce) for each envelope
    # A message on its way out.
    BATCH = 40  # scheduler → queue: type, evpid, …
    EXPIRE = 41  # scheduler → queue: evpid
    DELIVER = 42  # queue → transfer, delivery: evpid; ASCII envelope
    DELIVER_END = 43  # queue → transfer, delivery: the batch is complete
    MESSAGE_FD = 44  # transfer, delivery → queue: request id, msgid; answer with a readable descriptor
    DELIVERY_OK = 45  # transfer, delivery → queue: evpid; status line, and on a second one the remote server, if any
    DELIVERY_TEMP = 46  # … and queue → scheduler: evpid, tries
    DELIVERY_PERM = 47
    DELIVERY_LOOP = 48
    ENVELOPE_DONE = 49  # queue → scheduler: evpid, fate: nothing is owed for it any more
    HOSTS = 50  # transfer → lookup: request id, port; `mx NAME` or `host NAME`; answer: ; `preference address` lines
    # Of queue and scheduler.
    DELAYED = 100  # scheduler → queue: evpid: its sender is to be warned
    HOLD = 101  # control → scheduler: request id, evpid or msgid or 0 (all): not tried until released
    RELEASE = 102  # control → scheduler: the same: tried again


KINDS = {int(kind): kind for kind in Kind}  # quicker than the call that an enum offers


class Delivery(enum.IntEnum):
    """Who delivers an envelope."""

    MTA = 1
    MDA = 2


class Fate(enum.IntEnum):
    """Why an envelope is done with; the scheduler counts them."""

    DELIVERED = 1
    FAILED = 2
    LOOPED = 3
    EXPIRED = 4
    REMOVED = 5


class PayloadError(Exception):
    """A payload is not of the one form."""


_COUNT = struct.Struct("=H")
_FEW = [struct.Struct(f"=H{count}Q") for count in range(8)]  # nearly all payloads


def pack(integers: tuple[int, ...], text: bytes = b"") -> bytes:
    """`integers` (each below 2**64, at most 2,000) and `text` as one payload."""
    count = len(integers)
    if count < len(_FEW):
        return _FEW[count].pack(count, *integers) + text
    return struct.pack(f"=H{count}Q", count, *integers) + text


def unpack(payload: bytes) -> tuple[tuple[int, ...], bytes]:
    """The integers and the text of a payload. Raises PayloadError when it is cut short."""
    try:
        (count,) = _COUNT.unpack_from(payload)
        if count < len(_FEW):
            integers = _FEW[count].unpack_from(payload)[1:]
        else:
            integers = struct.unpack_from(f"={count}Q", payload, _COUNT.size)
    except struct.error as error:
        raise PayloadError(f"payload of {len(payload)} bytes: {error}") from error
    return integers, payload[_COUNT.size + 8 * count :]
