"""Watching a daemon that runs: every subsystem is traced, watchers do not disturb each other or the daemon."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.remote_mx.process import RemoteMX
from mta_under_test import smtpctl
from mta_under_test.ipc.messages import Kind
from mta_under_test.processes.control import WATCHED
from tests.processes.daemon import CONFIGURATION, Smtpd, until


@contextmanager
def watcher(smtpd: Smtpd, output: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """`smtpctl WORDS`, with its output in a file."""
    before = smtpd.stats()["control.watching"]
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "mta_under_test.smtpctl", "--socket", str(smtpd.socket), *words], stdout=file
        )
    try:
        until(lambda: smtpd.stats()["control.watching"] == before + 1, "the daemon knows of the watcher")
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Smtpd]:
    """A daemon whose mail passes through everything that there is to trace, and is refused at the end."""
    with RemoteMX({"refusing": "rcpt=550", "home": ""}) as mx:
        configuration = CONFIGURATION.format(**mx.ports).replace(
            'action "outbound" relay',
            'table names { 127.0.0.1 = "named.test" }\naction "outbound" relay helo-src <names>',
        )
        filtered = 'filter f phase mail-from match mail-from "nobody@x.test" reject "550 no"\n'
        daemon = Smtpd(tmp_path_factory.mktemp("busy"), filtered + configuration.replace("port 0", "port 0 filter f"))
        yield daemon
        daemon.stop()


# Something that only this subsystem says when a message is refused by the remote MX and comes back as a bounce.
SAID = {
    "imsg": "smtp -> queue: COMMIT_MESSAGE",
    "imsg-size": "queue -> scheduler: SUBMIT ",
    "io": " in ",
    "smtp": "Mail -> 250",
    "filter": "f, mail-from: proceed",
    "transfer": "RCPT TO:<x@refused.test>",
    "bounce": "failed 1 reported in",
    "scheduler": "mta batch of 1",
    "expand": "<x@refused.test> is <x@refused.test>",
    "lookup": "host 127.0.0.1: 127.0.0.1",
    "rules": "<a@sender.test> to <x@refused.test>: action outbound",
    "tables": "<names> 127.0.0.1: named.test",
    "queue": " committed",
    "stat": "mta.delivery.permfail ",
}


@pytest.mark.parametrize("subsystem", WATCHED[Kind.TRACE])
def test_every_subsystem_is_traced(busy: Smtpd, tmp_path: Path, subsystem: str) -> None:
    output = tmp_path / "trace"
    with watcher(busy, output, "trace", subsystem):
        busy.send("x@refused.test")
        until(lambda: SAID[subsystem] in output.read_text(), f"{subsystem} in the trace")
        until(busy.at_rest, "rest")
    assert {line.split(":")[0] for line in output.read_text().splitlines()} == {subsystem}
    until(lambda: busy.stats()["control.watching"] == 0, "nothing is left of the watcher")


def test_all_is_everything_and_other_years_names_are_understood(busy: Smtpd, tmp_path: Path) -> None:
    everything, transfer = tmp_path / "all", tmp_path / "mta"
    with watcher(busy, everything, "trace", "all"), watcher(busy, transfer, "trace", "mta"):
        busy.send("x@refused.test")
        until(lambda: SAID["transfer"] in transfer.read_text(), "transfer's trace under its other name")
        until(lambda: all(text in everything.read_text() for text in SAID.values()), "all traces in one")
        assert busy.smtpctl("untrace", "filters").returncode == 0
    until(lambda: busy.stats()["control.watching"] == 0, "no watcher")


def test_watchers_see_what_each_asked_for(lasting_smtpd: Smtpd, tmp_path: Path) -> None:
    outputs = {name: tmp_path / name for name in ("smtp", "scheduler", "queue")}
    with (
        watcher(lasting_smtpd, outputs["smtp"], "trace", "smtp"),
        watcher(lasting_smtpd, outputs["scheduler"], "trace", "scheduler"),
        watcher(lasting_smtpd, outputs["queue"], "trace", "queue"),
        watcher(lasting_smtpd, tmp_path / "profile", "profile", "imsg"),
    ):
        lasting_smtpd.send("x@accepted.test")
        for name, output in outputs.items():
            until(lambda output=output: output.read_text(), f"{name}'s trace")
        until(lambda: "ENVELOPE_DONE" in (tmp_path / "profile").read_text(), "the profile")
    for name, output in outputs.items():
        assert {line.split(":")[0] for line in output.read_text().splitlines()} == {name}


def test_a_watcher_that_sleeps_slows_nobody_and_is_told_what_it_missed(
    smtpd: Smtpd, mx: RemoteMX, tmp_path: Path
) -> None:
    output, awake = tmp_path / "asleep", tmp_path / "awake"
    with watcher(smtpd, output, "trace", "all") as sleeper, watcher(smtpd, awake, "trace", "smtp"):
        os.kill(sleeper.pid, signal.SIGSTOP)
        sent, slowest = 0, 0.0
        while smtpd.stats().get("control.dropped-lines", 0) < 10:
            began = time.monotonic()
            with smtpd.smtp() as client:
                for _ in range(10):
                    client.sendmail("a@sender.test", ["x@accepted.test"], "Subject: hi\r\n\r\nhello\r\n")
                    sent += 1
            slowest = max(slowest, time.monotonic() - began)
            assert sent < 5000
        assert slowest < 5
        waited = {name: value for name, value in smtpd.stats().items() if name.startswith("buffer.")}
        assert max(waited.values()) < 1 << 20, "what it does not take piles up between no processes"
        until(lambda: mx.ledger().listeners["refusing"].accepted == sent, "delivery of everything")
        until(lambda: awake.read_text().count("EndOfData") == sent, "every line for the watcher that is awake")
        os.kill(sleeper.pid, signal.SIGCONT)
        smtpd.send("x@accepted.test")
        until(lambda: "lines dropped: this terminal is too slow" in output.read_text(), "the note")
    until(lambda: smtpd.stats()["control.watching"] == 0, "no watcher")


def test_watchers_that_vanish_leave_nothing_behind(smtpd: Smtpd, tmp_path: Path) -> None:
    smtpd.send("x@accepted.test")
    until(smtpd.at_rest, "rest")
    before = set(smtpd.descriptors("control"))
    for number in range(3):
        with watcher(smtpd, tmp_path / f"{number}", "trace", "all") as process:
            process.kill()
            process.wait(10)
            until(lambda: smtpd.stats()["control.watching"] == 0, "it is forgotten")
    until(lambda: set(smtpd.descriptors("control")) <= before, "no descriptor that was not there before")
    until(lambda: smtpd.stats()["control.session"] == 1, "no connection but the one that asks")


def test_monitor_has_13_columns_a_second(smtpd: Smtpd, mx: RemoteMX, tmp_path: Path) -> None:
    output = tmp_path / "monitor"
    mx.set_policy("refusing", "rcpt@refused.test=550")
    command = [sys.executable, "-m", "mta_under_test.smtpctl", "--socket", str(smtpd.socket), "monitor"]
    with output.open("wb") as file:
        process = subprocess.Popen(command, stdout=file)
    try:
        until(lambda: len(output.read_text().splitlines()) == 3, "the first line")
        with smtpd.smtp() as client:
            for domain in ("accepted", "accepted", "refused"):
                client.sendmail("a@sender.test", [f"x@{domain}.test"], "Subject: hi\r\n\r\nhello\r\n")
            seen = len(output.read_text().splitlines())
            until(lambda: len(output.read_text().splitlines()) > seen, "a line while the client is there")
        until(smtpd.at_rest, "rest")
        seen = len(output.read_text().splitlines())
        until(lambda: len(output.read_text().splitlines()) > seen, "a line after it")
    finally:
        process.terminate()
        process.wait(10)
    header, names, *rows = output.read_text().splitlines()
    assert header == "--- client ---  -- envelope --   ---- relay/delivery --- ------- misc -------"
    assert names.split() == [
        "curr", "conn", "disc", "curr", "enq", "deq", "ok", "tmpfail", "prmfail", "loop", "expire", "remove", "bounce",
    ]  # fmt: skip
    numbers = [[int(word) for word in row.split()] for row in rows]
    assert all(len(row) == 13 for row in numbers)
    totals = [sum(column) for column in zip(*numbers, strict=True)]
    assert max(row[0] for row in numbers) == 1
    assert (totals[1], totals[2]) == (1, 1)
    assert (totals[4], totals[5]) == (4, 4), "three messages and a bounce"
    assert (totals[6], totals[8], totals[12]) == (3, 1, 1)
    assert numbers[-1][3] == 0


def test_monitor_counts_from_one_second_to_the_next() -> None:
    stats = {"smtp.session": 2, "smtp.session.total": 9, "scheduler.envelope": 5, "scheduler.envelope.incoming": 20}
    now, columns = smtpctl.monitor_columns(stats | {"scheduler.delivery.ok": 7}, [0] * 13)
    assert columns == [2, 9, 7, 5, 20, 15, 7, 0, 0, 0, 0, 0, 0]
    _, columns = smtpctl.monitor_columns(
        stats | {"smtp.session": 1, "scheduler.envelope.incoming": 21, "scheduler.envelope.expired": 3}, now
    )
    assert columns == [1, 0, 1, 5, 1, 1, -7, 0, 0, 0, 3, 0, 0]


def test_stats_have_the_keys_of_opensmtpd(lasting_smtpd: Smtpd) -> None:
    stats = lasting_smtpd.stats()
    for key in (
        "smtp.session", "mta.session", "mta.task", "mta.task.running", "mta.envelope", "mta.relay", "mta.domain",
        "mta.host", "mta.route", "mta.source", "mta.connector", "scheduler.envelope", "scheduler.envelope.inflight",
        "queue.bounce", "control.session", "buffer.queue.scheduler", "uptime",
    ):  # fmt: skip
        assert key in stats
