"""How long a person waits: `seatbelt --help`, and the embedded MTA from its start to its first greeting.

    python benchmarks/startup.py

Prints median (min-max) of several runs, in milliseconds of wall time.
"""

from __future__ import annotations

import re
import smtplib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

RUNS = 9
CONFIGURATION = """\
listen on 127.0.0.1 port 0
action "out" relay host smtp://127.0.0.1:2525
match from any for any action "out"
"""


def help_s() -> float:
    began = time.perf_counter()
    subprocess.run([Path(sys.executable).with_name("seatbelt"), "--help"], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def greeting_s() -> float:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "smtpd.conf").write_text(CONFIGURATION)
        arguments = ["-d", "-f", directory / "smtpd.conf", "--spool", directory / "spool", "--socket", directory / "s"]
        began = time.perf_counter()
        smtpd = subprocess.Popen(
            [sys.executable, "-m", "mta_under_test.smtpd", *arguments], stderr=subprocess.PIPE, text=True
        )
        assert smtpd.stderr is not None
        listening = re.search(r"port (\d+)", smtpd.stderr.readline())
        assert listening is not None
        with smtplib.SMTP("127.0.0.1", int(listening[1]), local_hostname="bench.test", timeout=10):
            took = time.perf_counter() - began
        smtpd.terminate()
        smtpd.communicate(timeout=10)
        return took


def report(what: str, measure: Callable[[], float]) -> None:
    times = [measure() * 1e3 for _ in range(RUNS)]
    print(f"{what:42} {statistics.median(times):6.0f} ms   ({min(times):.0f}-{max(times):.0f})")


if __name__ == "__main__":
    report("seatbelt --help", help_s)
    report("embedded MTA, start to its first 220", greeting_s)
