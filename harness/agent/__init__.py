"""The agent: counts objects from inside a Python target, which need not be changed for it.

`environment` gives the environment to start the target with. It puts `inject/` first on PYTHONPATH, where every Python
of the process tree finds a `sitecustomize` that waits for a signal. A process that is run with -E, -I or -S, or is no
CPython, does not load it, never announces itself and is never signalled.

The conversation goes through files in one directory (the asking side is `harness.probes.agent`):

    PID.ready    written by the agent at its start and after every fork: the start time of the process, in clock ticks
                 after boot (proc_pid_stat(5), field 22)
    request      written before the signal: the number of the request; of a traced target also "only", and the pids of
                 the processes that shall tell what they allocated
    PID.json     the answer: {"request": …, "blocks": …, "objects": …, "tasks": …, "timers": …,
                 "heap": …}
    PID.trace    written before the answer when the target is traced: what `inject/tracer.py` tells, as JSON
    PID.silent   PID.ready, renamed because no answer came: this process is not asked again
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path

SIGNAL = signal.SIGRTMIN + 7  # glibc keeps the first two real-time signals; nobody in the mail trade uses this one
DIRECTORY_VARIABLE = "SEATBELT_AGENT_DIR"
SIGNAL_VARIABLE = "SEATBELT_AGENT_SIGNAL"
TRACE_VARIABLE = "SEATBELT_AGENT_TRACE"
TUNABLES_VARIABLE = "GLIBC_TUNABLES"
# mallinfo(3) takes for used what glibc keeps of freed blocks for each thread, up to seven of each size. While that
# fills up, a process that keeps nothing grows by some 64 bytes each time it is asked, and by more for what it does.
TCACHE = "glibc.malloc.tcache_count"

_INJECT = Path(__file__).resolve().parent / "inject"


def environment(directory: Path, base: Mapping[str, str] = os.environ, *, traced: bool = False) -> dict[str, str]:
    """A whole environment: `base`, and what loads the agent into every Python started with it.

    `directory` is where agent and harness meet; it must exist, and the target's processes must be allowed to write it.
    `traced`: where things are made is remembered too (`inject/tracer.py`), which makes the target several times slower.
    """
    rest = base.get("PYTHONPATH", "")
    tunables = base.get(TUNABLES_VARIABLE, "")
    if TCACHE not in tunables:
        tunables = ":".join(filter(None, (tunables, f"{TCACHE}=0")))
    return {
        **base,
        "PYTHONPATH": f"{_INJECT}{os.pathsep}{rest}" if rest else str(_INJECT),
        TUNABLES_VARIABLE: tunables,
        DIRECTORY_VARIABLE: str(directory.resolve()),
        SIGNAL_VARIABLE: str(int(SIGNAL)),
        **({TRACE_VARIABLE: "1"} if traced else {}),
    }
