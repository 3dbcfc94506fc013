"""The controller: a child that starts, answers, dies with its controller, and says why when it dies alone."""

from __future__ import annotations

import os
import re
import signal
import smtplib
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.remote_mx.process import RemoteMX, RemoteMXError

TIMEOUT_S = 10.0


def is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not is_gone(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.01)


def test_every_listener_has_its_port_and_its_policy() -> None:
    with RemoteMX({"refusing": "rcpt=550", "home": ""}) as mx:
        assert mx.ports.keys() == {"refusing", "home"}
        for name, code in (("refusing", 550), ("home", 250)):
            with smtplib.SMTP("127.0.0.1", mx.ports[name], local_hostname="x.test", timeout=TIMEOUT_S) as client:
                client.ehlo()
                client.mail("")
                assert client.rcpt("c@d.test")[0] == code
        report = mx.ledger()
        assert report.listeners["refusing"].refused_messages == 1
        assert (report.listeners["home"].sessions, report.listeners["home"].refused_messages) == (1, 0)


def test_stop_ends_the_child_and_the_sessions_and_may_be_called_again() -> None:
    mx = RemoteMX({"mx": "connect=stall"})
    mx.start()
    pid = mx.pid
    with socket.create_connection(("127.0.0.1", mx.ports["mx"]), TIMEOUT_S) as client:
        mx.stop()
        assert is_gone(pid)
        assert client.recv(10) == b""
    mx.stop()
    with pytest.raises(RemoteMXError, match="not running"):
        mx.ledger()


def test_it_can_be_started_again_with_new_books() -> None:
    mx = RemoteMX({"mx": ""})
    for _ in range(2):
        with mx:
            smtplib.SMTP("127.0.0.1", mx.ports["mx"], timeout=TIMEOUT_S).close()
            assert mx.ledger().listeners["mx"].sessions == 1


def test_the_child_of_a_killed_controller_ends() -> None:
    controller = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import time\n"
            "from harness.remote_mx.process import RemoteMX\n"
            "with RemoteMX({'mx': ''}) as mx:\n"
            "    print(mx.pid, flush=True)\n"
            "    time.sleep(60)\n",
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert controller.stdout is not None
        pid = int(controller.stdout.readline())
        assert not is_gone(pid)
    finally:
        controller.kill()
        controller.communicate()
    wait_until_gone(pid)


def test_ctrl_c_is_not_for_the_child() -> None:
    with RemoteMX({"mx": ""}) as mx:
        os.kill(mx.pid, signal.SIGINT)
        assert mx.open_sessions() == 0


def test_a_killed_child_is_told_from_a_silent_one() -> None:
    with RemoteMX({"mx": ""}) as mx:
        os.kill(mx.pid, signal.SIGKILL)
        with pytest.raises(RemoteMXError, match="ended with signal 9"):
            mx.open_sessions()
        with pytest.raises(RemoteMXError, match="ended with signal 9"):
            mx.ledger()
    with RemoteMX({"mx": ""}, timeout_s=2.0) as mx:
        os.kill(mx.pid, signal.SIGSTOP)
        with pytest.raises(RemoteMXError, match="did not answer within 2 s"):
            mx.open_sessions()
        os.kill(mx.pid, signal.SIGCONT)
        assert mx.ledger().listeners["mx"].sessions == 0  # and not the answer that came too late


def test_a_dead_child_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "uvloop.py").write_text("raise ImportError('this uvloop is broken')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RemoteMXError, match=r"ended with status 1; .*this uvloop is broken"):
        RemoteMX({"mx": ""}).start()


def test_a_bad_policy_is_refused_before_anything_runs() -> None:
    with pytest.raises(RemoteMXError, match=re.escape("policy of the listener 'mx': rcpt=55: '55' is no action")):
        RemoteMX({"mx": "rcpt=55"}).start()
    with RemoteMX({"mx": ""}) as mx:
        with pytest.raises(RemoteMXError, match="no phase 'rctp'"):
            mx.set_policy("mx", "rctp=550")
        with pytest.raises(RemoteMXError, match="no listener 'home'; it has mx"):
            mx.shut_gate("home")
        assert mx.open_sessions() == 0


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        mx = RemoteMX({"mx": ""}, ports={"mx": port})
        with pytest.raises(RemoteMXError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            mx.start()
        with pytest.raises(RemoteMXError, match="not running"):
            mx.open_sessions()
