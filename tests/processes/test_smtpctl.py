"""smtpctl: words, prefixes, refusals; and watching a daemon that runs, without stopping it."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mta_under_test import smtpctl
from mta_under_test.ipc.client import ControlError
from mta_under_test.ipc.messages import Kind, pack
from mta_under_test.wire import imsg
from tests.processes.daemon import Smtpd, until


@pytest.mark.parametrize(
    ("words", "verb", "argument"),
    [
        ("show queue", "show queue", ""),
        ("sh q", "show queue", ""),
        ("show stat", None, ""),
        ("sh sta", None, ""),
        ("sh stats", "show stats", ""),
        ("tr transfer", "trace", "transfer"),
        ("pa mt", "pause mta", ""),
        ("resume r 7", "resume route", "7"),
        ("d 0123abcd", "discover", "0123abcd"),
        ("sch all", "schedule", "all"),
    ],
)
def test_words_may_be_shortened_while_they_are_unambiguous(words: str, verb: str | None, argument: str) -> None:
    if verb is None:
        with pytest.raises(smtpctl.UsageError, match="ambiguous: stats, status"):
            smtpctl.find(words.split())
    else:
        found, given = smtpctl.find(words.split())
        assert (found.words, given) == (verb, argument)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("dance", "could be"),
        ("show", "wants one of: envelope, hosts, hoststats, message, queue, relays, routes, stats, status"),
        ("show flowers", "could be envelope"),
        ("remove", "wants EVPID"),
        ("stop now", "takes no argument"),
        ("trace smtp mta", "takes SUBSYSTEM"),
    ],
)
def test_words_that_make_no_command_say_what_would(words: str, complaint: str) -> None:
    with pytest.raises(smtpctl.UsageError, match=complaint):
        smtpctl.find(words.split())


def test_an_id_is_8_or_16_hex_digits() -> None:
    assert smtpctl.identifier("0123abcd") == 0x0123ABCD
    assert smtpctl.identifier("all", everything=True) == 0
    for wrong in ("all", "123", "zzzzzzzz", ""):
        with pytest.raises(smtpctl.UsageError, match="neither an envelope id"):
            smtpctl.identifier(wrong)


def test_without_a_daemon_it_says_so(tmp_path: object) -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "mta_under_test.smtpctl", "--socket", f"{tmp_path}/none", "show", "stats"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert finished.returncode == 1
    assert "is smtpd running?" in finished.stderr


@pytest.mark.parametrize(
    "said",
    [
        b"220 here.test ESMTP\r\n250 not imsg at all\r\n",
        imsg.encode(imsg.Imsg(9999, pack(()))),
        imsg.encode(imsg.Imsg(Kind.OK, pack((1, 2))[:-1])),
    ],
    ids=["a frame's length", "a kind", "a payload"],
)
def test_somebody_else_on_the_socket_is_one_line(tmp_path: Path, said: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        command = [sys.executable, "-m", "mta_under_test.smtpctl", "--socket", f"{tmp_path}/s", "show", "stats"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        client, _ = listener.accept()
        with client:
            client.sendall(said)
            out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (1, "")
    assert err.startswith(f"smtpctl: {tmp_path}/s: whoever answers is no smtpd: ")
    assert len(err.splitlines()) == 1


def test_a_full_disk_is_one_line_and_a_failure(lasting_smtpd: Smtpd) -> None:
    command = [sys.executable, "-m", "mta_under_test.smtpctl", "--socket", str(lasting_smtpd.socket), "show", "stats"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=20, check=False)
    assert (done.returncode, done.stderr) == (1, "smtpctl: standard output: No space left on device\n")


@contextmanager
def watching(smtpd: Smtpd, *words: str) -> Iterator[list[str]]:
    """The lines that `smtpctl WORDS` prints while it runs."""
    command = [sys.executable, "-m", "mta_under_test.smtpctl", "--socket", str(smtpd.socket), *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    lines: list[str] = []
    assert process.stdout is not None
    reader = threading.Thread(target=lambda: lines.extend(process.stdout or ()))
    reader.start()
    until(lambda: smtpd.stats()["control.watching"], "the daemon knows of the watcher")
    try:
        yield lines
    finally:
        process.terminate()
        process.wait(10)
        reader.join(10)
        process.stdout.close()


def test_a_trace_starts_and_ends_without_a_restart(lasting_smtpd: Smtpd) -> None:
    with watching(lasting_smtpd, "trace", "transfer") as lines:
        lasting_smtpd.send("x@accepted.test")
        until(lambda: any("RCPT TO:<x@accepted.test>" in line for line in lines), "the dialogue in the trace")
        assert all(line.startswith("transfer: ") for line in lines)
    until(lambda: lasting_smtpd.stats()["control.watching"] == 0, "the watcher is forgotten")


def test_untrace_ends_the_stream_of_every_watcher(lasting_smtpd: Smtpd) -> None:
    with watching(lasting_smtpd, "trace", "smtp"), watching(lasting_smtpd, "trace", "smtp"):
        until(lambda: lasting_smtpd.stats()["control.watching"] == 2, "two watchers")
        assert lasting_smtpd.smtpctl("untrace", "smtp").returncode == 0
        until(lambda: lasting_smtpd.stats()["control.watching"] == 0, "no watcher")


def test_profile_imsg_names_both_processes_the_kind_the_bytes_and_the_time(lasting_smtpd: Smtpd) -> None:
    with watching(lasting_smtpd, "profile", "imsg") as lines:
        lasting_smtpd.send("x@accepted.test")
        until(lambda: any("smtp -> queue COMMIT_MESSAGE" in line for line in lines), "a commit in the profile")
        line = next(line for line in lines if "COMMIT_MESSAGE" in line)
        assert line.split()[:5] == ["imsg:", "smtp", "->", "queue", "COMMIT_MESSAGE"]
        assert line.split()[6] == "bytes"
        assert float(line.split()[7]) > 0


def test_profile_queue_times_the_disk(lasting_smtpd: Smtpd) -> None:
    with watching(lasting_smtpd, "profile", "queue") as lines:
        lasting_smtpd.send("x@accepted.test")
        until(lambda: any("envelope_delete" in line for line in lines), "the envelope's end in the profile")
    operations = [line.split()[1] for line in lines]
    assert {"message_create", "envelope_create", "message_fd_rw", "message_commit", "message_fd_r"} <= set(operations)
    assert all((words[0], words[3]) == ("queue:", "ms") and float(words[2]) >= 0 for words in map(str.split, lines))


def test_show_stats_and_log_levels(lasting_smtpd: Smtpd) -> None:
    stats = dict(line.split("=") for line in lasting_smtpd.smtpctl("show", "stats").stdout.splitlines())
    assert stats["smtp.session"] == "0"
    assert "uptime" in stats
    assert "imsg.queue.scheduler.bytes" in stats
    assert lasting_smtpd.smtpctl("log", "verbose").stdout == "command succeeded\n"


def test_the_daemon_refuses_what_it_does_not_know_and_stays_up(lasting_smtpd: Smtpd) -> None:
    assert "there is imsg, imsg-size, io, smtp, filter" in lasting_smtpd.smtpctl("trace", "nonsense").stderr
    with lasting_smtpd.control() as client:
        for kind in (Kind.BATCH, Kind.OK, Kind.SUBMIT):
            with pytest.raises(ControlError, match="not a request"):
                client.ask(kind)
        with pytest.raises(ControlError):
            client.ask(Kind.SHOW_ENVELOPE, 1 << 40)
        client.tell(Kind.STATS)  # without a request id
        with pytest.raises(ControlError):
            client.stats()
    assert lasting_smtpd.stats()


def test_stats_tell_gauges_from_totals_and_traffic_by_kind(smtpd: Smtpd) -> None:
    smtpd.send("x@accepted.test")
    with smtpd.control() as client:
        gauges, traffic = client.gauges(), client.traffic()
        stats = client.stats()
    assert gauges["smtp.session"] == "smtp"
    assert gauges["mta.session"] == "transfer"
    assert gauges["scheduler.envelope"] == "scheduler"
    assert gauges.keys() <= stats.keys()
    assert not [name for name in gauges if name.endswith(".total") or name.startswith("imsg") or name == "uptime"]
    (commit,) = (each for each in traffic if each[:3] == ("smtp", "queue", "COMMIT_MESSAGE"))
    assert commit[3] == 1
    assert commit[4] > len("Subject: hi")
