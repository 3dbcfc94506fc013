"""Synthetic run records: worlds whose truth is known, for measuring the detectors. Everything comes from one seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from reports.record import (
    AgentReading,
    Descriptor,
    Dose,
    Judgement,
    Memory,
    Phase,
    Process,
    RunRecord,
    Snapshot,
    TargetInfo,
    Work,
)

ROLES = ("parent", "control", "lookup", "queue", "scheduler", "smtp", "transfer", "delivery")
COUNT_DOSES = (20, 40, 80, 160)
STANDARD_DOSES = (20, 40) + (80,) * 7
UNIT = "refused message"
Random = np.random.Generator


def message_file(fd: int, number: int, *, deleted: bool = True) -> Descriptor:
    """A message file as the kernel shows it, one of its own for every number."""
    path = f"/var/spool/smtpd/queue/{number % 256:02x}/{number:08x}/message"
    return Descriptor(fd, "file", path, device=8, inode=10_000 + number, flags=0o100002, deleted=deleted)


def connection(fd: int, number: int, state: str = "ESTABLISHED") -> Descriptor:
    return Descriptor(
        fd,
        "tcp",
        f"socket:[{number}]",
        inode=number,
        flags=0o2004002,
        state=state,
        local=f"127.0.0.1:{40_000 + number % 20_000}",
        peer="127.0.0.1:43211",
    )


def idle_process(role: str, pid: int, started: int = 100) -> Process:
    """A process at rest: standard streams, its event loop, its sockets to the others."""
    open_ = [
        Descriptor(0, "device", "/dev/null", device=5, inode=4),
        Descriptor(1, "pipe", "pipe:[77]", device=13, inode=77, flags=1),
        Descriptor(3, "eventpoll", "anon_inode:[eventpoll]", device=14, inode=11, flags=2),
        Descriptor(4, "unix", f"socket:[{pid}4]", device=8, inode=pid * 10 + 4, flags=0o2004002, state="ESTABLISHED"),
    ]
    if role == "smtp":
        open_.append(Descriptor(5, "tcp", "socket:[55]", inode=55, state="LISTEN", local="127.0.0.1:2525"))
    return Process(pid, started, role, ppid=100, state="S", threads=1, descriptors=open_)


@dataclass
class World:
    """What a target holds, and how each dose changes it. `leak` is the probability that a unit leaves one behind."""

    random: Random
    leak: float = 0.0
    lazy: bool = False  # three one-off opens that stay, mostly early
    pool: bool = False  # up to four keep-alive connections at every rest, new ones each time
    logs: bool = False  # three log files, each opened anew (and the old one closed) at some of the rests
    cache: float = 0.0  # files that a cache opens and keeps each time that the work has doubled: ever more slowly
    make: Callable[[int, int], Descriptor] = message_file
    role: str = "transfer"
    _kept: list[Descriptor] = field(default_factory=list)
    _lazy_doses: list[int] = field(default_factory=list)
    _log_generation: list[int] = field(default_factory=lambda: [0, 0, 0])
    _number: int = 0
    _work: int = 0

    def __post_init__(self) -> None:
        if self.lazy:
            self._lazy_doses = [int(self.random.exponential(1.0)) for _ in range(3)]

    def fresh(self) -> int:
        self._number += 1
        return self._number

    def after(self, dose: int, units: int) -> Snapshot:
        """Dose number `dose` from 0 (judged or not), and the rest after it."""
        kept = int(self.random.binomial(units, self.leak)) if self.leak < 1 else int(self.leak * units)
        self._kept += [self.make(100 + self._number, self.fresh()) for _ in range(kept)]
        self._work += units
        doublings = np.log2(self._work / (self._work - units)) if self._work > units else 0.0  # the first is warm-up
        for _ in range(self._lazy_doses.count(dose) + int(self.random.poisson(self.cache * doublings))):
            number = self.fresh()
            self._kept.append(Descriptor(100 + number, "file", f"/etc/lazy{number}", device=8, inode=900_000 + number))
        lingering = int(self.random.binomial(4, 0.3)) if self.pool else 0
        idle = [connection(20 + slot, 500_000 + self.fresh()) for slot in range(lingering)]
        logs = self._rotated() if self.logs else []
        processes = [idle_process(role, 101 + index) for index, role in enumerate(ROLES)]
        for process in processes:
            if process.role == self.role:
                process.descriptors = process.descriptors + self._kept + idle + logs
        return Snapshot(processes=processes)

    def _rotated(self) -> list[Descriptor]:
        """The same three names, and files behind them that are younger from time to time."""
        found = []
        for log in range(len(self._log_generation)):
            self._log_generation[log] += self.random.random() < 0.7
            inode = 700_000 + 100 * log + self._log_generation[log]
            found.append(Descriptor(10 + log, "file", f"/var/log/mail.{log}", device=8, inode=inode, flags=0o2001))
        return found


def record_of(
    world: World, counts: Sequence[int] = COUNT_DOSES, rounds: Sequence[int] = (), *, memory: bool = False
) -> RunRecord:
    """A run: one warm-up dose, `counts`, then memory rounds of 16 doses of each size in `rounds`."""
    steps: list[tuple[Phase, int, int]] = [("warm-up", counts[0], 0)]
    steps += [("count", units, 0) for units in counts]
    steps += [("memory", units, number) for number, units in enumerate(rounds) for _ in range(16)]
    record = blank(memory=memory)
    for index, (phase, units, number) in enumerate(steps):
        # Lazy opens fall into judged doses: the warm-up is dose -1.
        record.doses.append(Dose(units=units, phase=phase, round=number, snapshot=world.after(index - 1, units)))
    record.work = Work(accepted=sum(units for _, units, _ in steps))
    return record


def blank(*, memory: bool = False) -> RunRecord:
    return RunRecord("rejected-reuse", TargetInfo("embedded"), judgement=Judgement(unit=UNIT, memory=memory))


# ---- memory: the level of one process over cumulative units of work. Sizes in bytes, as measured on a real daemon.

NOISE = 8192.0
Level = Callable[[Random, np.ndarray], np.ndarray]


def noise(random: Random, points: int, phi: float = 0.0, scale: float = NOISE) -> np.ndarray:
    errors = random.normal(0, scale, points)
    for index in range(1, points if phi else 1):
        errors[index] = phi * errors[index - 1] + np.sqrt(1 - phi**2) * errors[index]
    return errors


def flat(random: Random, work: np.ndarray) -> np.ndarray:
    return noise(random, len(work))


def autoregressive(random: Random, work: np.ndarray) -> np.ndarray:
    return noise(random, len(work), 0.7)


def steps(random: Random, work: np.ndarray) -> np.ndarray:
    """A warm-up that saturates and one to three late steps: an arena, a lazy import, a table that is resized."""
    level = noise(random, len(work)) + 1e6 * (1 - np.exp(-work / random.uniform(200, 800)))
    for _ in range(random.integers(1, 4)):
        level += random.uniform(3e4, 3e5) * (work > random.uniform(0, 2500))
    return level


def sawtooth(random: Random, work: np.ndarray) -> np.ndarray:
    period = random.uniform(300, 1100)
    return noise(random, len(work)) + 1.5e5 * (((work + random.uniform(0, period)) % period) / period)


def log_fill(random: Random, work: np.ndarray) -> np.ndarray:
    """A cache that fills ever more slowly."""
    size = random.uniform(3e4, 1.2e5)
    return noise(random, len(work)) + size * np.log(work / 100 + random.uniform(0, 3) + 0.2)


def high_water(random: Random, work: np.ndarray) -> np.ndarray:
    """The largest of random peaks: what resident memory mostly shows."""
    units = np.diff(np.concatenate([[0], work]))
    peaks = -np.log1p(-(random.random(len(work)) ** (1 / units))) * 3e4
    return noise(random, len(work), scale=NOISE / 2) + np.maximum.accumulate(peaks)


MEMORY_WORLDS: dict[str, Level] = {
    "flat": flat,
    "ar1": autoregressive,
    "steps": steps,
    "sawtooth": sawtooth,
    "log-fill": log_fill,
    "high-water": high_water,
}


def memory_record(
    levels: dict[str, np.ndarray],
    units: Sequence[int],
    *,
    objects: bool = False,
    heaps: dict[str, np.ndarray] | None = None,
    role_pid: int = 200,
) -> RunRecord:
    """A record of the memory phase alone: for each role its level at each of 16 rests a round of `units` a dose.

    `heaps`: bytes that malloc has given out beside the objects, where there is an agent.
    """
    record = blank(memory=True)
    for index in range(16 * len(units)):
        processes = []
        for number, (role, level) in enumerate(levels.items()):
            process = idle_process(role, role_pid + number)
            value = float(level[index])
            if objects:
                heap = 8_000_000 + round(float(heaps[role][index])) if heaps else 0
                process.agent = AgentReading(blocks=100_000 + round(value), heap=heap)
            process.memory = Memory(private_dirty=25_000_000 + round(value / 4096) * 4096)
            processes.append(process)
        record.doses.append(
            Dose(units=units[index // 16], phase="memory", round=index // 16, snapshot=Snapshot(processes=processes))
        )
    return record


def cumulative(units: Sequence[int]) -> np.ndarray:
    return np.cumsum(np.repeat(np.array(units, dtype=float), 16))
