"""What local deliveries leave behind: no descriptor, process or object; and after a crash, a second copy at most."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from harness import agent
from harness.probes import agent as agent_probe
from tests.processes.daemon import Smtpd, until
from tests.processes.delivery.test_local_delivery import at_rest, config
from tests.processes.local import Place, script

StartSmtpd = Callable[..., Smtpd]


@pytest.mark.parametrize(
    "action", ["maildir", 'mda "/bin/cat"', 'mda "/bin/true"', "mda \"/bin/sh -c 'exit 75'\"", 'mda "/no/program"']
)
def test_deliveries_leave_no_descriptor_and_no_process(start_smtpd: StartSmtpd, place: Place, action: str) -> None:
    smtpd = start_smtpd(config(place, action))

    def deliver(count: int) -> list[int]:
        smtpd.smtpctl("remove", "all")
        before = smtpd.stats().get("mda.session.total", 0)
        for _ in range(count):
            smtpd.send("bob@here.test", "eve@here.test")
        until(lambda: smtpd.stats().get("mda.session.total", 0) == before + 2 * count, "deliveries")
        until(lambda: at_rest(smtpd), "rest")
        return [len(smtpd.descriptors(role)) for role in ("parent", "delivery", "lookup", "queue")]

    first = deliver(3)
    assert deliver(12) == first
    children = psutil.Process(smtpd.process.pid).children(recursive=True)
    assert len(children) == len(smtpd.family) - 1
    assert smtpd.stats()["parent.mda"] == 0


@pytest.mark.parametrize("action", ["maildir", 'mda "/bin/true"'])
def test_deliveries_leave_no_object(
    start_smtpd: StartSmtpd, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    directory = tmp_path / "agent"
    directory.mkdir()
    directory.chmod(0o1777)
    for name, value in agent.environment(directory).items():
        monkeypatch.setenv(name, value)
    place.forward("bob", "\\bob, eve\n")
    smtpd = start_smtpd(config(place, action))
    roles = {process.pid: process.cmdline()[0] for process in smtpd.family}

    def deliver(count: int) -> dict[str, int]:
        before = smtpd.stats().get("mda.delivery.ok", 0)
        with smtpd.smtp() as client:
            for _ in range(count):
                client.sendmail("a@sender.test", ["bob@here.test"], "Subject: hi\r\n\r\nhello\r\n")
        until(lambda: smtpd.stats().get("mda.delivery.ok") == before + 2 * count, "deliveries")
        until(lambda: at_rest(smtpd), "rest")
        readings = agent_probe.ask(directory, list(roles)).readings
        return {roles[pid]: reading.blocks for pid, reading in readings.items()}

    deliver(40)
    before = deliver(5)
    after = deliver(40)
    assert len(after) == len(roles), "every process answers, whoever and wherever it is"
    grown = {role: after[role] - before[role] for role in after}
    assert all(growth < 40 for growth in grown.values()), grown  # less than one object a message


# ---- crashes


@pytest.mark.parametrize("role", ["delivery", "parent", "queue"])
def test_a_crash_after_a_delivery_and_before_its_report_is_a_duplicate_and_no_loss(
    start_smtpd: StartSmtpd, place: Place, role: str
) -> None:
    program = script(place, 'cat > "$HOME/mail.$$"; test -e $HOME/died || { touch $HOME/there; exec sleep 1000; }')
    smtpd = start_smtpd(config(place, f'mda "{program}"'))
    smtpd.send("bob@here.test", text="Subject: once\r\n\r\nor twice\r\n")
    home = place.home("bob")
    until((home / "there").exists, "the delivery")
    os.kill(smtpd.process.pid if role == "parent" else smtpd.pid_of(role), signal.SIGKILL)
    smtpd.process.wait(20)
    psutil.wait_procs(smtpd.family, timeout=20)
    (home / "died").touch()
    smtpd.start()
    until(lambda: smtpd.stats().get("mda.delivery.ok") == 1, "the second delivery")
    texts = {path.read_text().partition("Received")[2] for path in home.glob("mail.*")}
    assert len(list(home.glob("mail.*"))) == 2
    assert len(texts) == 1
    until(lambda: not list(smtpd.spool.glob("queue/*/*/*")), "an empty queue")
