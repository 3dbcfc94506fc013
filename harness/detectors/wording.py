"""wording: what a finding says, in one sentence, and what to look at next.

Owns: the sentences. Never: decides anything.
"""

from __future__ import annotations

from reports.record import Resource

WHOLE_RATE = 0.95  # from here on a rate is told as so many for each unit
MANY = 0.2  # from here on as so many in a hundred, below as one in so many
KEEPS = {
    "descriptor": "open",
    "socket": "open",
    "thread": "running",
    "process": "behind",
    "file": "behind",
    "task": "waiting",
}


def message(role: str, resource: Resource, label: str, rate: float, count: int, units: int, unit: str) -> str:
    """``transfer keeps 1 message file (deleted) open for each refused message: 285 of 300``."""
    who = role or "the spool"
    verb = "leaves" if KEEPS[resource] == "behind" and role else "keeps"
    how = f" {KEEPS[resource]}" if role else ""
    if rate >= WHOLE_RATE:
        many = round(rate) if abs(rate - round(rate)) < 1 - WHOLE_RATE else round(rate, 1)
        what = f"{many} {label}" if many == 1 else f"{many} x {label}"
        often = f"for each {unit}"
    else:
        what = f"1 {label}"
        often = f"for {_one_in(rate)} {plural(unit)}"
    return f"{who} {verb} {what}{how} {often}: {count} of {units}"


def _one_in(rate: float) -> str:
    """A rate below one in words: 0.02 is ``1 in 50``, 0.6 is ``60 in 100``."""
    return f"1 in {1 / rate:.0f}" if rate < MANY else f"{100 * rate:.0f} in 100"


def plural(unit: str) -> str:
    return f"{unit}s"


def quantity(count: int, unit: str) -> str:
    """``1 session``, ``2 sessions``."""
    return f"{count} {unit if count == 1 else plural(unit)}"


def advice(role: str, resource: Resource, kind: str, label: str) -> str:
    """What to look at next."""
    look = f"`seatbelt fds PID` lists them while {role} runs"
    if resource == "descriptor" and label.startswith("message file"):
        return (
            f"{look}. Opened in or passed to {role}: look at where a transaction ends without reading the file: "
            "refusal, RSET, flush."
        )
    if resource == "descriptor" and kind == "pipe":
        return f"{look}. Look for the end that is not closed after a fork, or when a child could not be started."
    if kind == "epoll watch":
        return (
            f"`seatbelt fds PID` tells how many. {role} closes a descriptor that is still open elsewhere, as after a "
            "fork or once it was passed on: EPOLL_CTL_DEL before the close."
        )
    if kind == "inotify watch":
        return f"`seatbelt fds PID` tells how many. Look for an inotify_add_watch in {role} without inotify_rm_watch."
    if resource == "descriptor":
        return f"{look}. Look for a return between the open and the close of {label}."
    if resource == "socket" and label == "tcp/CLOSE_WAIT":
        return (
            f"{look}. The peer has closed and {role} has not: look at where end of file or a time-out ends a session."
        )
    if resource == "socket" and kind == "tcp":
        return f"{look}. Look at where a session ends without a close: QUIT, error, time-out, a failed TLS handshake."
    if resource == "socket":
        return f"{look}. Look for the end of a socket pair or a lookup that is abandoned without a close."
    if kind == "zombie":
        return f"{role} does not wait(2) for its children: look at its SIGCHLD handling and at early returns before it."
    if resource == "process":
        return f"`ps -o pid,ppid,etime,args` shows them. Look at who starts {role} and at when it is told to end."
    if resource == "thread":
        return f"`ps -L -p PID` shows them. Look for threads of {role} that wait for work that never comes."
    if resource == "task":
        return f"Look in {role} for a {kind} that is made for each piece of work and that nothing ends."
    return (
        "No envelope explains these files: look at the order in which envelope and message are removed, "
        "and at what an abandoned transaction cleans up."
    )
