"""What became of a local delivery, from how its process ended: pure.

Exit statuses are sysexits(3)'s, sorted into temporary and permanent as sys_exits of Postfix's pipe(8) does it: only
what says of itself that it may pass is tried again.
"""

from __future__ import annotations

import re
import signal
from typing import NamedTuple

from mta_under_test.ipc.messages import Kind
from mta_under_test.processes.mda.mda import End

_NAMES = {
    64: ("5.3.0", "command line usage error"),
    65: ("5.6.0", "data format error"),
    66: ("5.3.0", "cannot open input"),
    67: ("5.1.1", "user unknown"),
    68: ("5.1.2", "host name unknown"),
    69: ("5.3.0", "service unavailable"),
    70: ("5.3.0", "internal software error"),
    71: ("4.3.0", "system error"),
    72: ("5.3.0", "critical system file missing"),
    73: ("5.2.0", "cannot create output file"),
    74: ("5.3.0", "input/output error"),
    75: ("4.3.0", "temporary failure"),
    76: ("5.5.0", "remote error in protocol"),
    77: ("5.7.0", "permission denied"),
    78: ("5.3.5", "local configuration error"),
    126: ("4.3.5", "a command cannot be run"),  # 126 and 127: what a shell makes of a program that is not there
    127: ("4.3.5", "a command was not found"),
}
_NOT_TEXT = re.compile(r"[\x00-\x1f\x7f]")


class Result(NamedTuple):
    kind: Kind
    status_line: str


def result_of(end: End, code: int, text: str, output: str) -> Result:
    """`text` is parent's reason, `output` the last line that the program wrote."""
    if end is End.EXITED:
        if code == 0:
            return Result(Kind.DELIVERY_OK, "250 2.0.0 Delivered")
        enhanced, name = _NAMES.get(code, ("5.3.0", f"exit status {code}"))
        return _failed(enhanced, output or name)
    if end is End.SIGNALLED:
        try:
            name = signal.Signals(code).name
        except ValueError:
            name = f"signal {code}"
        return _failed("4.3.0", f"killed by {name}{f': {output}' if output else ''}")
    if end is End.TIMED_OUT:
        return _failed("4.4.7", "the delivery program took too long and was killed")
    return _failed("5.3.5" if end is End.REFUSED else "4.3.5", text)


def _failed(enhanced: str, reason: str) -> Result:
    reason = _NOT_TEXT.sub(" ", reason).strip()[:500]
    if enhanced.startswith("4"):
        return Result(Kind.DELIVERY_TEMP, f"451 {enhanced} {reason}")
    return Result(Kind.DELIVERY_PERM, f"550 {enhanced} {reason}")
