"""The daemon as its users meet it: mail goes in, comes out, bounces, stays; it starts, is steered, and ends."""

from __future__ import annotations

import os
import resource
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest

from harness.remote_mx.process import RemoteMX
from mta_under_test.ipc.messages import Kind
from mta_under_test.processes.parent.parent import ROLES
from mta_under_test.processes.scheduler import STALE_PAIRS
from tests.processes.daemon import CONFIGURATION, Smtpd, until

StartSmtpd = Callable[..., Smtpd]


def message(number: int) -> str:
    return f"Message-ID: <{number}@sender.test>\r\nSubject: {number}\r\n\r\nhello\r\n.dot\r\n"


def warm_up(smtpd: Smtpd) -> None:
    """libuv opens a reserve descriptor at the first connection; what is counted comes after it."""
    smtpd.send("x@accepted.test")
    until(smtpd.at_rest, "rest")


def test_every_role_is_a_process_that_ps_can_name(smtpd: Smtpd) -> None:
    titles = {f"smtpd: {role}" for role in ("parent", *ROLES)}
    until(lambda: {process.cmdline()[0] for process in smtpd.family} == titles, "every process has its title")


def test_accepted_mail_arrives_unchanged_and_nothing_stays(smtpd: Smtpd, mx: RemoteMX) -> None:
    smtpd.send("x@accepted.test", "y@accepted.test", text=message(1))
    until(lambda: mx.ledger().delivered, "delivery")
    assert sorted(mx.ledger().delivered["1@sender.test"]) == ["x@accepted.test", "y@accepted.test"]
    assert mx.ledger().listeners["refusing"].transactions == 1
    until(smtpd.at_rest, "rest")
    until(smtpd.spool_is_empty, "an empty spool")


def test_refused_mail_comes_back_as_one_bounce(smtpd: Smtpd, mx: RemoteMX) -> None:
    mx.set_policy("refusing", "rcpt=550")
    smtpd.send("x@refused.test", "y@refused.test", text=message(2))
    until(lambda: "2@sender.test" in mx.ledger().bounced, "a bounce")
    until(smtpd.at_rest, "rest")
    assert smtpd.stats()["queue.bounce.total"] == 1
    assert smtpd.stats()["scheduler.envelope"] == 0


def test_a_bounce_that_is_refused_is_not_bounced_again(smtpd: Smtpd, mx: RemoteMX) -> None:
    mx.set_policy("refusing", "rcpt=550")
    mx.set_policy("home", "rcpt=550")
    smtpd.send("x@refused.test", text=message(3))
    until(lambda: "bounce to <a@sender.test> failed" in smtpd.log(), "the bounce's failure")
    until(smtpd.at_rest, "rest")
    assert smtpd.stats()["queue.bounce.total"] == 1


def test_deferred_mail_stays_with_its_reason_until_it_is_scheduled(smtpd: Smtpd, mx: RemoteMX) -> None:
    mx.set_policy("refusing", "rcpt=450")
    smtpd.send("x@refused.test", text=message(4))
    until(lambda: smtpd.stats().get("scheduler.delivery.tempfail"), "a temporary failure")
    until(smtpd.at_rest, "rest")
    (line,) = smtpd.smtpctl("show", "queue").stdout.splitlines()
    fields = line.split("|")
    assert len(fields) == 14
    evpid, family, kind, _, sender, rcpt, dest = fields[:7]
    assert (family, kind, sender, rcpt, dest) == ("inet4", "mta", "a@sender.test", "x@refused.test", "x@refused.test")
    assert fields[10:12] == ["1", "pending"]
    assert 300 < int(fields[12]) <= 400
    assert fields[13].startswith("450 ")
    assert "rcpt: x@refused.test" in smtpd.smtpctl("show", "envelope", evpid).stdout
    assert "Subject: 4" in smtpd.smtpctl("show", "message", evpid[:8]).stdout
    mx.set_policy("refusing", "")
    assert smtpd.smtpctl("schedule", evpid).stdout == "1 envelope scheduled\n"
    until(lambda: "4@sender.test" in mx.ledger().delivered, "delivery")


def test_mail_can_be_removed(smtpd: Smtpd, mx: RemoteMX) -> None:
    mx.set_policy("refusing", "mail=451")
    smtpd.send("x@refused.test", "y@refused.test")
    until(lambda: smtpd.stats().get("scheduler.delivery.tempfail") == 2, "two temporary failures")
    assert smtpd.smtpctl("remove", "all").stdout == "2 envelopes removed\n"
    until(lambda: not list(smtpd.spool.glob("queue/*/*/*")), "an empty queue")
    assert smtpd.smtpctl("remove", "0123456789abcdef").returncode == 1


def test_one_session_carries_message_after_message(smtpd: Smtpd, mx: RemoteMX) -> None:
    mx.set_policy("refusing", "rcpt=550")
    mx.shut_gate("refusing")
    with smtpd.smtp() as client:
        for number in range(30):
            client.sendmail("a@sender.test", ["x@refused.test"], message(number))
    mx.open_gate("refusing")
    until(lambda: mx.ledger().listeners["refusing"].refused_messages == 30, "30 refusals")
    assert mx.ledger().listeners["refusing"].sessions == 1
    until(lambda: len(mx.ledger().bounced) == 30, "30 bounces")


def test_a_session_carries_a_hundred_accepted_messages_and_no_more(smtpd: Smtpd, mx: RemoteMX) -> None:
    mx.shut_gate("refusing")
    for _ in range(2):
        with smtpd.smtp() as client:
            for _ in range(60):
                client.sendmail("a@sender.test", ["x@accepted.test"], "Subject: many\r\n\r\nhello\r\n")
    mx.open_gate("refusing")
    until(lambda: mx.ledger().listeners["refusing"].accepted == 120, "120 messages")
    until(smtpd.at_rest, "rest")
    assert 2 <= mx.ledger().listeners["refusing"].sessions <= 4


@pytest.mark.parametrize(
    ("policy", "bounced"),
    [("mail=550", True), ("data=550", True), ("end=550", True), ("mail=450", False), ("data=drop", False)],
)
def test_no_way_of_refusing_loses_mail_or_keeps_a_descriptor(
    smtpd: Smtpd, mx: RemoteMX, policy: str, bounced: bool
) -> None:
    warm_up(smtpd)
    before = sorted(smtpd.descriptors("transfer"))
    mx.set_policy("refusing", policy)
    for number in range(3):
        smtpd.send("x@refused.test", text=message(number))
    if bounced:
        until(lambda: len(mx.ledger().bounced) == 3, "three bounces")
    else:
        until(lambda: smtpd.stats().get("scheduler.delivery.tempfail", 0) >= 3, "three put off")
        until(lambda: len(list(smtpd.spool.glob("queue/*/*/message"))) == 3, "three messages in the queue")
    until(smtpd.at_rest, "rest")
    until(lambda: sorted(smtpd.descriptors("transfer")) == before, "transfer's descriptors as before")


def test_a_remote_mx_that_is_not_there_defers(start_smtpd: StartSmtpd) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        smtpd = start_smtpd(CONFIGURATION.format(refusing=port, home=port))
        smtpd.send("x@refused.test")
        until(lambda: smtpd.stats().get("scheduler.delivery.tempfail"), "a temporary failure")
        assert "Cannot connect: Connection refused" in smtpd.smtpctl("show", "queue").stdout


def test_recipients_without_a_rule_and_users_without_an_account_are_refused(start_smtpd: StartSmtpd) -> None:
    smtpd = start_smtpd(
        'listen on 127.0.0.1 port 0\naction "local" maildir\nmatch from any for domain "here.test" action "local"\n'
    )
    with smtpd.smtp() as client:
        client.ehlo()
        client.mail("a@sender.test")
        assert client.rcpt("nobody@nowhere.invalid") == (550, b"5.1.1 Invalid recipient: <nobody@nowhere.invalid>")
        assert client.rcpt("no-such-user@here.test") == (550, b"5.1.1 Invalid recipient: <no-such-user@here.test>")


def test_pipelined_commands_are_answered_in_order_even_before_a_half_close(smtpd: Smtpd, mx: RemoteMX) -> None:
    with socket.create_connection(("127.0.0.1", smtpd.ports[0]), timeout=10) as client:
        client.sendall(
            b"EHLO c\r\nMAIL FROM:<a@sender.test>\r\nRCPT TO:<x@nowhere.invalid>\r\nRCPT TO:<x@accepted.test>\r\n"
            b"DATA\r\nMessage-ID: <p@sender.test>\r\n\r\nhi\r\n.\r\nNOOP\r\nVRFY x\r\nHELP\r\nRSET\r\nQUIT\r\n"
        )
        client.shutdown(socket.SHUT_WR)
        answers = b""
        while chunk := client.recv(65536):
            answers += chunk
    codes = [line[:3] for line in answers.split(b"\r\n") if line[3:4] == b" "]
    assert codes == [b"220", b"250", b"250", b"550", b"250", b"354", b"250", b"250", b"252", b"214", b"250", b"221"]
    until(lambda: "p@sender.test" in mx.ledger().delivered, "delivery")


def test_a_client_that_vanishes_in_mid_message_leaves_nothing(smtpd: Smtpd) -> None:
    warm_up(smtpd)
    before = {role: sorted(smtpd.descriptors(role)) for role in ("smtp", "queue")}
    for rest in (b"", b"RCPT TO:<x@accepted.test>\r\n", b"RCPT TO:<x@accepted.test>\r\nDATA\r\nSubject: cut off\r\n"):
        with socket.create_connection(("127.0.0.1", smtpd.ports[0]), timeout=10) as client:
            client.sendall(b"EHLO c\r\nMAIL FROM:<a@sender.test>\r\n" + rest)
            client.recv(1)
    until(smtpd.at_rest, "rest")
    until(lambda: not list(smtpd.spool.glob("incoming/*")), "an empty incoming/")
    for role, links in before.items():
        until(lambda role=role, links=links: sorted(smtpd.descriptors(role)) == links, f"{role}'s descriptors")


@pytest.mark.parametrize("said", [b"", b"EHLO x\r\nMAIL FROM:<a@sender.test>\r\nRCPT TO:<x@accepted.test>\r\n"])
def test_clients_that_reset_at_once_are_only_gone(smtpd: Smtpd, said: bytes) -> None:
    for _ in range(50):
        with socket.create_connection(("127.0.0.1", smtpd.ports[0])) as client:
            client.sendall(said)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    until(smtpd.at_rest, "rest")
    assert smtpd.process.poll() is None, smtpd.log()
    smtpd.send("x@accepted.test")


def test_a_remote_mx_that_resets_at_once_defers(smtpd: Smtpd, mx: RemoteMX) -> None:
    mx.set_policy("refusing", "connect=drop")
    smtpd.send("x@accepted.test", text=message(8))
    until(lambda: "|451 4.4." in smtpd.smtpctl("show", "queue").stdout, "the deferral")
    assert mx.ledger().listeners["refusing"].dropped_sessions > 0
    mx.set_policy("refusing", "")
    with smtpd.control() as control:
        control.ask(Kind.RESUME_ROUTE, 0)
        control.ask(Kind.SCHEDULE, 0)
    until(lambda: mx.ledger().delivered, "delivery")
    until(smtpd.at_rest, "rest")


def test_what_is_put_forward_does_not_wait_for_its_old_time(smtpd: Smtpd, mx: RemoteMX) -> None:
    mx.set_policy("refusing", "rcpt=451")
    smtpd.send("x@accepted.test", text=message(9))
    with smtpd.control() as control:
        for _ in range(20):
            until(lambda: smtpd.stats()["scheduler.envelope.inflight"] == 0, "the try's end")
            control.ask(Kind.SCHEDULE, 0)
        until(lambda: smtpd.stats()["scheduler.envelope.inflight"] == 0, "the try's end")
        assert smtpd.stats()["scheduler.ramqueue.pairs"] <= 2 + STALE_PAIRS
        mx.set_policy("refusing", "")
        control.ask(Kind.SCHEDULE, 0)
    until(smtpd.at_rest, "rest")
    assert smtpd.stats()["scheduler.ramqueue.pairs"] == 0


def test_pause_mta_holds_mail_and_resume_lets_it_go(smtpd: Smtpd, mx: RemoteMX) -> None:
    assert smtpd.smtpctl("pause", "mta").returncode == 0
    assert smtpd.smtpctl("show", "status").stdout.splitlines() == ["MDA running", "MTA paused", "SMTP running"]
    smtpd.send("x@accepted.test", text=message(5))
    assert smtpd.stats()["scheduler.envelope.due"] == 1
    assert smtpd.smtpctl("resume", "mta").returncode == 0
    until(lambda: "5@sender.test" in mx.ledger().delivered, "delivery")


def test_pause_smtp_leaves_clients_waiting(smtpd: Smtpd) -> None:
    assert smtpd.smtpctl("pause", "smtp").returncode == 0
    with socket.create_connection(("127.0.0.1", smtpd.ports[0]), timeout=10) as client:
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.recv(100)
        assert smtpd.smtpctl("resume", "smtp").returncode == 0
        client.settimeout(10)
        assert client.recv(100).startswith(b"220 ")


def test_the_queue_survives_a_restart(smtpd: Smtpd, mx: RemoteMX) -> None:
    smtpd.smtpctl("pause", "mta")
    smtpd.send("x@accepted.test", text=message(6))
    assert smtpd.stop() == 0
    smtpd.start()
    until(lambda: "6@sender.test" in mx.ledger().delivered, "delivery")


@pytest.mark.parametrize("role", ROLES)
def test_any_process_that_dies_ends_the_daemon_by_name(smtpd: Smtpd, role: str) -> None:
    pid = smtpd.pid_of(role)
    os.kill(pid, signal.SIGKILL)
    assert smtpd.process.wait(20) == 1
    assert f"fatal: lost process {role} (pid {pid}): killed by SIGKILL" in smtpd.log()
    _, alive = psutil.wait_procs(smtpd.family, timeout=10)
    assert not alive


def test_a_killed_parent_takes_its_children_with_it(smtpd: Smtpd) -> None:
    smtpd.process.kill()
    _, alive = psutil.wait_procs(smtpd.family, timeout=10)
    assert not alive
    smtpd.start()  # over the stale control socket
    assert smtpd.stop() == 0


def test_sigterm_and_smtpctl_stop_end_it_with_status_0(smtpd: Smtpd) -> None:
    assert smtpd.smtpctl("stop").returncode == 0
    assert smtpd.process.wait(20) == 0
    assert not smtpd.socket.exists()
    smtpd.start()
    smtpd.process.terminate()
    assert smtpd.process.wait(20) == 0


def run_smtpd(tmp_path: Path, configuration: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "smtpd.conf").write_text(configuration)
    command = [sys.executable, "-m", "mta_under_test.smtpd", "-d", "-f", str(tmp_path / "smtpd.conf")]
    command += ["--spool", str(tmp_path / "spool"), "--socket", str(tmp_path / "s"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


def test_a_mistake_in_the_configuration_is_one_line_and_status_2(tmp_path: Path) -> None:
    finished = run_smtpd(tmp_path, "listen onn 127.0.0.1\n")
    assert finished.returncode == 2
    assert f"{tmp_path}/smtpd.conf:1:8: " in finished.stderr
    assert len(finished.stderr.splitlines()) == 1


def test_a_taken_port_is_one_line_and_status_2(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        configuration = CONFIGURATION.format(refusing=2525, home=2525).replace("port 0", f"port {port}")
        finished = run_smtpd(tmp_path, configuration)
    assert finished.returncode == 2
    assert finished.stderr == f"smtpd: cannot listen on 127.0.0.1 port {port}: Address already in use\n"


def test_minus_n_checks_the_configuration(tmp_path: Path) -> None:
    finished = run_smtpd(tmp_path, CONFIGURATION.format(refusing=2525, home=2525), "-n")
    assert (finished.returncode, finished.stderr) == (0, "configuration OK\n")


def test_a_second_daemon_on_the_same_control_socket_is_refused(smtpd: Smtpd, tmp_path: Path) -> None:
    finished = run_smtpd(tmp_path, CONFIGURATION.format(refusing=2525, home=2525), "--socket", str(smtpd.socket))
    assert finished.returncode == 2
    assert "another smtpd answers" in finished.stderr
    assert smtpd.stats()


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_a_control_socket_that_is_no_socket_is_left_alone(tmp_path: Path, kind: str) -> None:
    path, target = tmp_path / "precious", tmp_path / "target"
    if kind == "directory":
        path.mkdir()
    elif kind == "file":
        path.write_text("kept")
    else:
        target.write_text("kept")
        path.symlink_to(target)
    finished = run_smtpd(tmp_path, CONFIGURATION.format(refusing=2525, home=2525), "--socket", str(path))
    assert (finished.returncode, finished.stderr) == (2, f"smtpd: {path}: is there, and no socket\n")
    assert path.is_dir() if kind == "directory" else path.read_text() == "kept"
    assert path.is_symlink() == (kind == "link")


def test_a_second_daemon_on_the_same_spool_is_refused(smtpd: Smtpd, tmp_path: Path) -> None:
    finished = run_smtpd(tmp_path, CONFIGURATION.format(refusing=2525, home=2525), "--spool", str(smtpd.spool))
    assert finished.returncode == 2
    assert finished.stderr == f"smtpd: {smtpd.spool}: another smtpd has this spool; stop it or choose another --spool\n"
    assert smtpd.stats()
    assert smtpd.descriptors("parent").count(str(smtpd.spool)) == 1
    assert not any(str(smtpd.spool) in smtpd.descriptors(role) for role in ROLES)


@pytest.mark.parametrize("limit", [7, 40])
def test_too_few_descriptors_are_one_line_and_status_2(tmp_path: Path, limit: int) -> None:
    """Python itself needs a few: with 7 it is the sockets to bind that fail, with 40 the channels."""
    (tmp_path / "smtpd.conf").write_text(CONFIGURATION.format(refusing=2525, home=2525))
    finished = subprocess.run(
        [sys.executable, "-m", "mta_under_test.smtpd", "-d", "-f", str(tmp_path / "smtpd.conf")]
        + ["--spool", str(tmp_path / "spool"), "--socket", str(tmp_path / "s")],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        preexec_fn=partial(resource.setrlimit, resource.RLIMIT_NOFILE, (limit, limit)),
    )
    assert finished.returncode == 2
    assert finished.stderr.endswith(f"smtpd: too few descriptors ({limit}): raise the limit (ulimit -n)\n")
    assert "Traceback" not in finished.stderr
    assert not (tmp_path / "s").exists()


def test_tracing_from_the_start_goes_to_the_log(start_smtpd: StartSmtpd, mx: RemoteMX) -> None:
    smtpd = start_smtpd(CONFIGURATION.format(**mx.ports), "-T", "smtp")
    with smtpd.smtp() as client:
        client.noop()
    until(lambda: "smtp: smtp: " in smtpd.log(), "a trace line in the log")


def test_smtplib_sees_the_extensions(smtpd: Smtpd) -> None:
    with smtpd.smtp() as client:
        client.ehlo()
        assert client.has_extn("8bitmime")
        assert client.has_extn("enhancedstatuscodes")
        assert client.has_extn("pipelining")
        assert int(client.esmtp_features["size"]) == 35 << 20
        assert client.docmd("MAIL", f"FROM:<a@sender.test> SIZE={36 << 20}")[0] == 552
