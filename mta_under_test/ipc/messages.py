"""The message kinds that the processes exchange, and the one form that all payloads have.

A payload is a list of unsigned 64-bit integers (request id, evpid, msgid …) followed by bytes (an ASCII envelope, a
status line). Requests and their answers carry the asker's request id as the first integer. Where a descriptor
travels the kind says so.
"""

from __future__ import annotations

import enum
import struct
from array import array


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
    STATS = 15  # request id; nothing, gauges or imsg; answer: ; lines of processes.statistics
    PAUSE = 16  # ; mta | smtp
    RESUME = 17  # ; mta | smtp
    SHUTDOWN = 18  # control → parent
    # Queue administration, from control.
    LIST_EVPIDS = 20  # → scheduler: request id, after; answer: evpid, state, next try, …
    SHOW_ENVELOPE = 21  # → queue: request id, evpid; answer: ; ASCII envelope
    SHOW_MESSAGE = 22  # → queue: request id, evpid or msgid; answer with the message's descriptor
    SCHEDULE = 23  # → scheduler: request id, evpid or msgid or 0 (all)
    REMOVE = 24  # → scheduler: request id, evpid or msgid or 0 (all); scheduler → queue: evpid
    # A message on its way in.
    CREATE_MESSAGE = 30  # smtp → queue: request id, how many; answer: so many msgids
    EXPAND = 31  # smtp, queue → lookup: request id, msgid, by TLS?; ASCII envelope; answered by queue, or FAIL
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
    DELIVERY_OK = 45  # transfer, delivery → queue: evpid, 1 if the remote server reports it; status line, server's name
    DELIVERY_TEMP = 46  # … and queue → scheduler: evpid, tries
    DELIVERY_PERM = 47
    DELIVERY_LOOP = 48
    ENVELOPE_DONE = 49  # queue → scheduler: evpid, fate: nothing is owed for it any more
    # Local delivery, tables and configuration.
    FORWARD_OPEN = 80  # lookup → parent: request id, uid, gid; name, NUL, home; answer: its ~/.forward, if there is one
    FORK_MDA = 81  # delivery → parent: job; the job as JSON; its standard input, after MDA_OUTPUT with the same number
    MDA_OUTPUT = 82  # delivery → parent: job; with its standard output and error
    MDA_DONE = 83  # parent → delivery: job, how it ended (processes.mda.mda.End), code; reason
    USERINFO = 84  # delivery → lookup: request id; action, NUL, user; answer: uid, gid; name, NUL, home
    OPEN = (
        85  # lookup, delivery → parent: request id; `table NAME`, `new-table NAME`, `lmtp ACTION`; answer: descriptor
    )
    UPDATE_TABLE = 86  # control → lookup: request id; the table's name
    RELOAD = 87  # control → parent: request id
    CONFIG = 88  # parent → every process: request id; with the descriptor of the new configuration, encoded
    LISTENER = 89  # parent → smtp, before CONFIG: index of the listener; with its socket
    HOSTS = 50  # transfer → lookup: request id; `mx|backup|host NAME [OURS]`; answer: ; lines of wire.exchange
    # Who somebody is.
    AUTHENTICATE = 60  # smtp → lookup: request id; table, NUL, user, NUL, password; answered OK or FAIL
    SYSTEM_HASH = 62  # lookup → parent: request id; a user; answer: ; the hash of the password, or nothing
    SENDER_OF = 61  # smtp → lookup: request id; table, NUL, user, NUL, address; answered OK or FAIL
    # Routes: what transfer holds back, what smtpctl asks about it, tables that it needs.
    DELIVERY_HOLD = 90  # transfer → queue → scheduler: relay id, evpid, …
    HOLDQ_RELEASE = 91  # transfer → queue → scheduler: relay id, how many (0: all)
    HOLDQ_EMPTY = 101  # scheduler → queue → transfer: relay id, of which there was nothing to release
    RESCHEDULE = 92  # transfer → queue → scheduler: evpid, …: their host works again
    SHOW_MTA = 93  # → transfer: request id, first line; hosts, hoststats, relays or routes; answer: how many; lines
    RESUME_ROUTE = 94  # → transfer: request id, route id or 0 (all); answer: how many
    PAUSE_ENVELOPE = 95  # → scheduler: request id, evpid or msgid; answer: how many
    RESUME_ENVELOPE = 96  # → scheduler: request id, evpid or msgid; answer: how many
    DISCOVER = 97  # → queue: request id, evpid or msgid; answer: how many. → scheduler: …, evpids; answer: the new ones
    TABLE_VALUE = 98  # → lookup: request id; `TABLE KEY`; answer: is there one; value
    TABLE_KEYS = 99  # → lookup: request id; TABLE; answer: ; keys, a line each
    # Of queue and scheduler.
    DELAYED = 100  # scheduler → queue: evpid: its sender is to be warned

    # Inbound sessions: names of addresses, filters, and sessions of this machine's own clients.
    SERVER_NAME = 70  # smtp → lookup: request id; table, NUL, our address; answer: ; our name there, or nothing
    CLIENT_NAME = 71  # smtp → lookup: request id; address; answer: 1 when the name leads back; name, or nothing
    FILTER = 72  # smtp → lookup: request id, session; phase, NUL, filter, NUL, FilterFacts; answer: data-line?; Verdict
    FILTER_REPORT = 73  # smtp → lookup: session; filter, NUL, event, NUL, field, …
    FILTER_DATA = 74  # smtp → lookup: request id, session, is last; filter, NUL, content; answer: is over; content
    FILTER_OVER = 75  # smtp → lookup: session: what of a message is with filters is not wanted any more
    SMTP_SESSION = 76  # control → smtp: request id; answer with the client's end of a session's socket


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
    # Not struct with a format of its own: the module would keep every length that it ever saw, up to a hundred.
    return _COUNT.pack(count) + array("Q", integers).tobytes() + text


def unpack(payload: bytes) -> tuple[tuple[int, ...], bytes]:
    """The integers and the text of a payload. Raises PayloadError when it is cut short."""
    try:
        (count,) = _COUNT.unpack_from(payload)
        if count < len(_FEW):
            integers = _FEW[count].unpack_from(payload)[1:]
        else:
            integers = tuple(memoryview(payload)[_COUNT.size :][: 8 * count].cast("Q"))
            if len(integers) < count:
                raise PayloadError(f"payload of {len(payload)} bytes: {count} integers do not fit")
    except (struct.error, TypeError) as error:
        raise PayloadError(f"payload of {len(payload)} bytes: {error}") from error
    return integers, payload[_COUNT.size + 8 * count :]
