"""A scenario file is a plain locustfile: locust itself runs it, with gevent's patches."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from smtp_sink import SmtpSink

from harness import scenario as scenarios


def locust(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "locust", "--headless", *arguments], capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("name", ["rejected-reuse", "one-at-a-time", "accepted"])
def test_locust_runs_a_scenario_file(name: str, tmp_path: Path) -> None:
    report = tmp_path / "report"
    with SmtpSink() as sink:
        host = f"smtp://127.0.0.1:{sink.port}"
        path = scenarios.load(name).path
        done = locust("-f", path, "--host", host, "-u", "5", "-r", "5", "-t", "4s", "--json-file", str(report))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    counted = {entry["name"]: entry for entry in json.loads(report.with_suffix(".json").read_text())}
    assert {"CONNECT", "EHLO", "MAIL", "RCPT", "DATA", "QUIT"} <= set(counted) <= {*COMMANDS}
    assert sum(entry["num_failures"] for entry in counted.values()) == 0
    # Sessions under way when the time is over are cut off: locust never hears of them.
    assert 0 < counted["CONNECT"]["num_requests"] <= sink.sessions <= counted["CONNECT"]["num_requests"] + 5
    assert len(set(sink.message_ids)) == len(sink.message_ids) > 0


COMMANDS = ("CONNECT", "EHLO", "MAIL", "RCPT", "DATA", "RSET", "QUIT")


def test_locusts_forked_workers_each_have_their_own_loop_and_names() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with SmtpSink() as sink:
        host = f"smtp://127.0.0.1:{sink.port}"
        path = scenarios.load("accepted").path
        done = locust(
            "-f",
            path,
            "--host",
            host,
            "-u",
            "4",
            "-r",
            "4",
            "-t",
            "4s",
            "--processes",
            "2",
            "--master-bind-port",
            port,
            "--master-port",
            port,
        )
    assert done.returncode == 0, done.stderr
    ids = sink.message_ids
    assert len(set(ids)) == len(ids) > 0
    assert len({name.split(".")[0] for name in ids}) == 2, "both workers sent mail"


def test_failures_are_locusts_failures(unused_port: int) -> None:
    path = scenarios.load("accepted").path
    done = locust("-f", path, "--host", f"127.0.0.1:{unused_port}", "-u", "1", "-t", "4s")
    assert done.returncode == 1
    assert "SMTP CONNECT" in done.stdout + done.stderr


@pytest.mark.parametrize("host", ["http://127.0.0.1", "smtp://127.0.0.1:99999", "smtp://", ""])
def test_a_host_that_is_no_mail_server_is_refused_at_once(host: str) -> None:
    done = locust("-f", scenarios.load("accepted").path, "--host", host, "-t", "30s")
    assert done.returncode != 0
    assert "is no mail server: give smtp://HOST:PORT" in done.stderr
    assert "Traceback" not in done.stderr
