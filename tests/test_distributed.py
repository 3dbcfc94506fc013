"""A run whose load comes from other hosts: workers in network namespaces of their own, over veth pairs and a bridge.

The namespaces are made here, with `ip` of Debian's iproute2. Where that is not permitted the test is skipped.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from reports.record import Finding, RunRecord, load

SEATBELT = Path(sys.executable).with_name("seatbelt")
MASTER, *WORKERS = ("10.77.0.1", "10.77.0.2", "10.77.0.3")  # in namespaces: nobody else sees them
LEAK = ("run", "--users", "4", "--sessions", "10", "--defect", "transfer-fd-leak", "--no-attribution", "--quiet")


@dataclass
class Host:
    namespace: str

    def start(self, *arguments: str, cwd: Path) -> subprocess.Popen[str]:
        command = ["ip", "netns", "exec", self.namespace, str(SEATBELT), *arguments]
        return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    """Three hosts on one network: each reaches the others by the addresses above, and nothing else."""
    if shutil.which("ip") is None:
        pytest.skip("network namespaces: no `ip` here; install Debian's iproute2")
    mark = f"sb{secrets.token_hex(3)}"
    names = [f"{mark}-{number}" for number in range(3)]
    made: list[str] = []
    try:
        for number, (name, address) in enumerate(zip(names, (MASTER, *WORKERS), strict=True)):
            try:
                ip("netns", "add", name)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"network namespaces: not permitted here: {error.stderr.strip()}")
            made.append(name)
            ip("-n", name, "link", "set", "lo", "up")
            if number == 0:
                ip("-n", name, "link", "add", "bridge", "type", "bridge")
                ip("-n", name, "addr", "add", f"{address}/24", "dev", "bridge")
                ip("-n", name, "link", "set", "bridge", "up")
                continue
            ip("-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", f"port{number}", "netns", names[0])
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", names[0], "link", "set", f"port{number}", "master", "bridge", "up")
        yield [Host(name) for name in names]
    finally:
        for name in made:
            ip("netns", "delete", name)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=10)


def descriptor(record: RunRecord) -> Finding:
    (finding,) = (finding for finding in record.findings if finding.resource == "descriptor")
    return finding


def told(record: RunRecord) -> tuple[object, ...]:
    """What must not depend on who held the sessions. How many are left does, by one or two, on how many sessions the
    server relays them in, and so does how many are refused, when one that breaks is tried again: its own affair."""
    finding, work = descriptor(record), record.work
    return (
        (record.verdict, finding.role, finding.label, finding.dose_units, finding.first_dose),
        (work.sessions, work.messages, work.accepted, work.refused_recipients, work.bounced),
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces: need root")
def test_two_workers_on_other_hosts_give_the_finding_and_the_counts_of_a_single_process(
    hosts: list[Host], tmp_path: Path
) -> None:
    alone = subprocess.run(
        [SEATBELT, *LEAK, "--record", "alone.json"], cwd=tmp_path, capture_output=True, text=True, timeout=90
    )
    assert alone.returncode == 1, alone.stderr
    here, *others = hosts
    elsewhere = ("--master-bind", f"{MASTER}:5557", "--expect-workers", "2", "--address", MASTER)
    running = [here.start(*LEAK, *elsewhere, "--record", "shared.json", cwd=tmp_path)]
    try:
        running += [host.start("worker", "--master", f"{MASTER}:5557", cwd=tmp_path) for host in others]
        said, _ = running[0].communicate(timeout=90)
        assert running[0].returncode == 1, said
        for worker in running[1:]:
            held, _ = worker.communicate(timeout=20)
            assert worker.returncode == 0, held
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.wait()
    one, two = (load(tmp_path / name) for name in ("alone.json", "shared.json"))
    assert told(one) == told(two)
    assert one.work.refused_messages == pytest.approx(two.work.refused_messages, abs=4)
    assert descriptor(one).count == pytest.approx(descriptor(two).count, abs=4)
    assert max(descriptor(each).low for each in (one, two)) < min(descriptor(each).high for each in (one, two))
