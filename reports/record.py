"""The run record: what probes fill, detectors read and reports draw.

Plain typed structs, JSON in and out (`load`, `save`). Nothing here observes, judges or formats.
Times are seconds since the run began unless a name says otherwise; sizes are bytes; counts are counts.
Schema 1: fields may be added, none changes its meaning without a new schema number.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from reports import output

SCHEMA = 1
DOSES_PER_ROUND = 16  # equal ones make a round of the memory phase; the next round's are twice as large

Resource = Literal["descriptor", "socket", "memory", "process", "thread", "file", "counter", "mail", "task"]
Verdict = Literal["clean", "leak", "inconclusive"]
Phase = Literal["warm-up", "count", "memory"]
MailFate = Literal["delivered", "bounced", "queued", "lost"]


class RecordError(Exception):
    """A record could not be read or written; the text names the file and what is wrong with it."""


class Descriptor(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One entry of ``/proc/PID/fd``, as proc_pid_fd(5) and proc_pid_fdinfo(5) tell it."""

    fd: int
    # file directory device pipe unix tcp udp eventpoll eventfd timerfd signalfd inotify pidfd io_uring memfd other
    kind: str
    target: str  # the link's text, without " (deleted)"
    device: int = 0  # st_dev of what is open
    inode: int = 0
    flags: int = 0  # open flags, as in fdinfo; like the position read only where a person looks, not in a run
    offset: int = 0  # file position
    deleted: bool = False
    state: str = ""  # TCP state (ESTABLISHED, CLOSE_WAIT, LISTEN …) or unix socket state
    local: str = ""  # address:port, or a unix socket's path
    peer: str = ""
    watches: int = 0  # what an epoll or an inotify watches
    # Of an epoll's, those that its process has closed. They stay while the same open file is open elsewhere, as after
    # fork(2) or SCM_RIGHTS: epoll(7), "Questions and answers", 6.
    stale_watches: int = 0


class Memory(msgspec.Struct, frozen=True, omit_defaults=True):
    """Bytes, from ``/proc/PID/smaps_rollup`` (proc_pid_smaps(5)) unless said; 0 where it cannot be read."""

    rss: int = 0
    pss: int = 0
    private_dirty: int = 0
    anonymous: int = 0
    heap: int | None = None  # that malloc(3) has given out, by the meter; None where none was loaded


class AgentReading(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the agent inside a Python target counted, after two full collections."""

    blocks: int  # sys.getallocatedblocks(): Python objects in use
    objects: int = 0  # containers that the collector tracks
    tasks: int = 0  # of asyncio
    timers: int = 0  # of asyncio's or uvloop's loop, that will still fire
    heap: int = 0  # bytes that malloc(3) has given out, Python's small objects apart; 0 where it cannot be told


class Process(msgspec.Struct, omit_defaults=True):
    pid: int
    started: int  # start time in clock ticks after boot (proc_pid_stat(5), field 22); with pid, the identity
    role: str
    ppid: int = 0
    title: str = ""
    state: str = ""  # R S D Z T … (proc_pid_stat(5)); Z is a zombie
    threads: int = 0
    descriptors: list[Descriptor] = msgspec.field(default_factory=list)
    memory: Memory = msgspec.field(default_factory=Memory)
    agent: AgentReading | None = None


class Traffic(msgspec.Struct, frozen=True, array_like=True):
    """What one process of the target has sent another since it started, of one kind."""

    sender: str  # roles
    receiver: str
    kind: str  # the name that the target's own protocol gives it
    messages: int
    bytes: int


class KernelMemory(msgspec.Struct, frozen=True, omit_defaults=True):
    """Bytes that the kernel holds for the target's processes, as their memory cgroup is charged (cgroups(7))."""

    total: int
    sockets: int = 0  # buffers of TCP and UDP
    unreclaimable: int = 0  # slabs that no shrinker can empty; 0 where it is not told (cgroup v1)


class Snapshot(msgspec.Struct, omit_defaults=True):
    """A full count at rest."""

    taken: float = 0.0
    processes: list[Process] = msgspec.field(default_factory=list)
    files: list[str] = msgspec.field(default_factory=list)  # spool and temporary files, relative to the spool
    counters: dict[str, int] = msgspec.field(default_factory=dict)  # what the daemon says of itself
    gauges: dict[str, str] = msgspec.field(default_factory=dict)  # counters of what there is now -> role that counts
    stuck: list[str] = msgspec.field(default_factory=list)  # gauges of what moves, above 0 though nothing moves
    traffic: list[Traffic] = msgspec.field(default_factory=list)  # by pair of processes and kind
    backlog: int = 0  # envelopes that the daemon says it still owes and holds on disk
    envelopes: int | None = None  # that are on disk; None where the spool cannot be looked into
    kernel: KernelMemory | None = None  # None where the target has no cgroup of its own
    unreadable: list[str] = msgspec.field(default_factory=list)  # what the probe was not permitted to see


class Work(msgspec.Struct):
    """What was done. In a dose: in that dose. In the record: in the whole run, warm-up included."""

    sessions: int = 0  # inbound sessions, opened by the load
    messages: int = 0  # transactions that the load tried
    accepted: int = 0  # … of them answered 250 at end of data
    refused_recipients: int = 0  # RCPT that the target itself refused
    refused_messages: int = 0  # messages that the remote MX refused entirely (MAIL, every RCPT, DATA or end of data)
    delivered: int = 0  # accepted messages that reached a remote MX
    bounced: int = 0  # accepted messages whose sender got a bounce
    queued: int = 0  # accepted messages still in the spool at the end
    lost: int = 0  # accepted, and none of the three
    duplicated: int = 0  # messages that reached one recipient more than once
    sessions_out: int = 0  # sessions that the target opened to the refusing remote MX
    messages_out: int = 0  # transactions in them
    messages_per_session_in: float = 0.0
    messages_per_session_out: float = 0.0


class Dose(msgspec.Struct):
    work: Work = msgspec.field(default_factory=Work)
    units: int = 0  # the exact dose, in the scenario's unit
    phase: Phase = "count"
    round: int = 0  # escalating round of the memory phase; 0 elsewhere
    began: float = 0.0
    ended: float = 0.0  # end of load; the drain follows
    drained_s: float = 0.0
    response_ms: dict[str, float] = msgspec.field(default_factory=dict)  # of the load's commands: p50, p99
    rested: bool = True  # False: the target had not come to rest by the deadline
    snapshot: Snapshot = msgspec.field(default_factory=Snapshot)


class Finding(msgspec.Struct, omit_defaults=True):
    """One thing not let go of (or lost, or dead), with the evidence."""

    resource: Resource
    kind: str
    label: str
    role: str = ""
    pids: list[int] = msgspec.field(default_factory=list)
    count: int = 0  # began after the warm-up, and still held at the last rest
    unit: str = ""
    rate: float = 0.0  # per unit of work, with a 95 % interval from low to high
    low: float = 0.0
    high: float = 0.0
    confidence: float = 0.0  # 1 - the largest false-alarm rate at which it would be reported
    first_dose: int = 0  # index into doses
    examples: list[str] = msgspec.field(default_factory=list)
    opened_at: list[str] = msgspec.field(default_factory=list)  # file:line, outermost last
    traced_by: str = ""  # what told `opened_at`
    dose_units: list[int] = msgspec.field(default_factory=list)  # the proof: so much work …
    survivors: list[int] = msgspec.field(default_factory=list)  # … left so many behind, dose by dose
    message: str = ""  # one sentence
    advice: str = ""  # what to do next


class Tested(msgspec.Struct, omit_defaults=True):
    """One series that was judged, found wanting or not: what the run could have seen."""

    resource: Resource
    label: str
    role: str
    metric: str
    verdict: Verdict
    unit: str = ""
    rate: float = 0.0
    low: float = 0.0
    high: float = 0.0
    smallest_visible: float = 0.0  # the smallest rate that this run would have reported, 90 times in 100
    reason: str = ""


class QueuedFootprint(msgspec.Struct):
    """What one queued envelope costs a role, with a 95 % interval from low to high."""

    role: str
    metric: str  # "python objects"; or, in bytes, "heap", "private dirty" or "anonymous"
    each: float
    low: float = 0.0
    high: float = 0.0


class TrafficFootprint(msgspec.Struct):
    """What the messages of one kind, from one role to another, cost in the judged doses."""

    sender: str
    receiver: str
    kind: str
    messages_per_unit: float
    bytes_per_unit: float
    bytes_each: float  # for each message, or for each envelope where one message tells of several


class Footprint(msgspec.Struct, omit_defaults=True):
    """What a unit of work or of backlog costs while all is well. Empty where it was not measured."""

    queued: list[QueuedFootprint] = msgspec.field(default_factory=list)
    traffic: list[TrafficFootprint] = msgspec.field(default_factory=list)


class Promise(msgspec.Struct):
    """Work that the scenario says must have been done for a verdict to mean anything."""

    what: str  # a field of Work
    at_least: float
    measured: float = 0.0
    advice: str = ""


class Incident(msgspec.Struct, omit_defaults=True):
    """Something that happened to the run: a process died, an interrupt, no rest by the deadline."""

    kind: Literal["died", "restless", "broken-off", "interrupted", "target", "load", "remote-mx"]
    text: str
    at: float = 0.0
    role: str = ""
    pid: int = 0
    dose: int = -1
    count: int = 1  # sessions, where it happened to sessions


class TargetInfo(msgspec.Struct):
    name: str
    version: str = ""
    defects: list[str] = msgspec.field(default_factory=list)
    loaded: list[str] = msgspec.field(default_factory=list)  # of ours, into its processes: what it was measured with


class Host(msgspec.Struct):
    kernel: str = ""
    cpus: int = 0
    python: str = ""
    nofile: int = 0
    isolated: bool = False  # the run had a network namespace of its own


class Samples(msgspec.Struct):
    """The cheap channel, under load: one row a process a reading."""

    columns: list[str] = msgspec.field(default_factory=lambda: ["t", "pid", "fds", "rss"])
    rows: list[tuple[float, int, int, int]] = msgspec.field(default_factory=list)


class Load(msgspec.Struct):
    requests_per_s: float = 0.0
    failures: int = 0
    response_ms: dict[str, float] = msgspec.field(default_factory=dict)  # p50, p99
    errors: list[str] = msgspec.field(default_factory=list)  # the first few, as text


class HarnessCost(msgspec.Struct):
    cpu_s: float = 0.0
    probe_cpu_s: float = 0.0


class Judgement(msgspec.Struct):
    """How the verdict is made: fixed before the first dose."""

    alpha: float = 0.01  # false-alarm rate of the whole run
    unit: str = "message"
    profile: str = "quick"
    memory: bool = True  # whether memory is judged at all


class PlannedStep(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that a raw client did: what it sent, and which answer it awaited."""

    send: str = ""  # bytes, each as the character of the same number (Latin-1)
    expect: str = "2"  # first digits that the answer may begin with; "" awaits none
    pause_s: float = 0.0
    piece_bytes: int = 0
    accepts: bool = False
    tls: bool = False


class PlannedMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    """One transaction."""

    sender: str
    recipients: list[str]  # the target accepts these
    refused: list[str] = []  # the target itself refuses these
    size_bytes: int = 2048


class PlannedSession(msgspec.Struct, frozen=True, omit_defaults=True):
    """One inbound session: messages, or the steps of a raw client."""

    units: int
    messages: list[PlannedMessage] = []
    steps: list[PlannedStep] = []
    end: Literal["quit", "fin", "rst", "silence"] = "quit"


class Conditions(msgspec.Struct, frozen=True, omit_defaults=True):
    """What stood around the dialogue while it was held."""

    refuses: str = ""  # policy of the remote MX
    hold_backlog: bool = False  # the remote MX greeted nobody during a dose
    hurry: bool = False
    portion: int | None = None  # units after which the target was drained
    needs: list[str] = []  # what the target was set up with
    operations: list[str] = []  # what an operator did meanwhile
    nofile: int | None = None


class RunRecord(msgspec.Struct):
    scenario: str
    target: TargetInfo
    schema: int = SCHEMA
    seatbelt: str = ""
    verdict: Verdict = "inconclusive"
    reasons: list[str] = msgspec.field(default_factory=list)  # why inconclusive, one sentence each
    command: str = ""  # repeats the run
    began: str = ""  # ISO 8601, UTC
    seed: int = 0
    host: Host = msgspec.field(default_factory=Host)
    judgement: Judgement = msgspec.field(default_factory=Judgement)
    work: Work = msgspec.field(default_factory=Work)
    promises: list[Promise] = msgspec.field(default_factory=list)
    dialogue: list[PlannedSession] = msgspec.field(default_factory=list)  # the first sessions of the first dose
    conditions: Conditions = msgspec.field(default_factory=Conditions)
    doses: list[Dose] = msgspec.field(default_factory=list)
    findings: list[Finding] = msgspec.field(default_factory=list)
    attribution: str = ""  # how `opened_at` of the findings was found, or why it was not
    tested: list[Tested] = msgspec.field(default_factory=list)
    footprint: Footprint = msgspec.field(default_factory=Footprint)
    incidents: list[Incident] = msgspec.field(default_factory=list)
    mail: dict[str, MailFate] = msgspec.field(default_factory=dict)  # accepted Message-ID -> what became of it
    samples: Samples = msgspec.field(default_factory=Samples)
    load: Load = msgspec.field(default_factory=Load)
    harness: HarnessCost = msgspec.field(default_factory=HarnessCost)

    @property
    def was_interrupted(self) -> bool:
        """Somebody, or a time limit, ended it before its time."""
        return any(incident.kind == "interrupted" for incident in self.incidents)


def save(record: RunRecord, path: Path) -> None:
    """Write `record` as JSON, whole or not at all (`output`). Raises RecordError."""
    try:
        output.write(path, msgspec.json.encode(record) + b"\n")
    except OSError as error:
        raise RecordError(f"{path}: cannot write the record: {error.strerror}") from error


def schema() -> bytes:
    """JSON Schema (2020-12) of a run record; docs/record.schema.json is this."""
    return msgspec.json.format(msgspec.json.encode(msgspec.json.schema(RunRecord)), indent=2)


def load(path: Path) -> RunRecord:
    """Read a record written by `save`. Raises RecordError for a missing, foreign or newer file."""
    try:
        record = msgspec.json.decode(path.read_bytes(), type=RunRecord)
    except OSError as error:
        raise RecordError(f"{path}: cannot read the record: {error.strerror}") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise RecordError(f"{path}: not a run record: {error}") from error
    if record.schema != SCHEMA:
        raise RecordError(f"{path}: schema {record.schema}; this Seatbelt reads schema {SCHEMA}")
    return record
