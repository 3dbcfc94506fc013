"""`seatbelt fds`: what lsof shows, entry by entry; and clear words when it cannot."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import pytest

from harness.commands.fds import Row, run
from tests.probes.probed import as_another_user, holds_everything, python
from tests.processes.daemon import CONFIGURATION, Smtpd

SEATBELT = Path(sys.executable).with_name("seatbelt")
# lsof's TYPE, or where that says little its name, and what we call it.
KINDS = {
    "REG": "file",
    "DIR": "directory",
    "CHR": "device",
    "FIFO": "pipe",
    "unix": "unix",
    "IPv4": "tcp",
    "memfd": "memfd",
    "protocol: TCP": "tcp",
    "protocol: UDP": "udp",
    "protocol: NETLINK": "other",
}


class Entry(NamedTuple):
    fd: int
    kind: str
    inode: int
    name: str  # of a file; the addresses of an internet socket; "" where lsof has another idea of a name
    deleted: bool


@pytest.fixture
def lsof() -> str:
    found = shutil.which("lsof")
    if found is None:
        pytest.skip("needs lsof; install Debian's package lsof")
    return found


def by_lsof(lsof: str, pid: int) -> list[Entry]:
    """The numbered descriptors. lsof writes a field a line, the letter first; `f` begins an entry (lsof(8))."""
    command = [lsof, "-w", "-nP", "-F", "fPtdDin", "-p", str(pid)]
    text = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout
    entries: list[dict[str, str]] = []
    for line in text.splitlines():
        if line[0] == "f":
            entries.append({})
        if entries:
            entries[-1][line[0]] = line[1:]
    return [_entry(fields) for fields in entries if fields["f"].isdecimal()]


def _entry(fields: dict[str, str]) -> Entry:
    name = fields["n"]
    kind, shown = fields["t"], ""
    if kind == "a_inode":
        return Entry(int(fields["f"]), name.strip("[]").split(":")[0], int(fields["i"]), "", False)
    if kind == "sock":
        kind = name
    elif kind == "IPv4":
        shown = name
        kind = "protocol: UDP" if fields["P"] == "UDP" else kind
    elif name.startswith("/memfd:"):
        kind = "memfd"
    elif name.startswith("/"):
        shown = name.split(" type=")[0]
    inode = fields.get("i") or fields["d"]  # of an internet socket lsof gives it for the device
    deleted = shown.endswith(" (deleted)") and not Path(shown).exists()
    name = shown.removesuffix(" (deleted)") if deleted else shown
    return Entry(int(fields["f"]), KINDS[kind], int(inode), name, deleted)


def by_seatbelt(pid: int) -> list[Row]:
    command = [SEATBELT, "fds", str(pid), "--json"]
    text = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    return [Row(**row) for row in json.loads(text)]


def entry_of(row: Row, named: bool) -> Entry:
    name = f"{row.local}->{row.peer}" if row.peer and row.kind != "unix" else row.local
    # A line end in a name is written out by lsof; in JSON it stands as it is.
    name = (name or row.name).replace("\n", "\\n")
    return Entry(row.fd, row.kind, row.inode, name if named else "", row.deleted and named)


def agree(lsof: str, pid: int) -> None:
    theirs = by_lsof(lsof, pid)
    rows = [row for row in by_seatbelt(pid) if row.pid == pid]
    ours = [entry_of(row, named=bool(entry.name)) for row, entry in zip(rows, theirs, strict=True)]
    assert ours == theirs


def test_lsof_and_we_agree_on_a_process_that_holds_one_of_everything(lsof: str, tmp_path: Path) -> None:
    with holds_everything(tmp_path) as holder:
        agree(lsof, holder.pid)


@pytest.fixture
def smtpd(tmp_path: Path) -> Iterator[Smtpd]:
    daemon = Smtpd(tmp_path, CONFIGURATION.format(refusing=2, home=2))
    yield daemon
    daemon.stop()


def test_lsof_and_we_agree_on_every_process_of_the_mail_server(lsof: str, smtpd: Smtpd) -> None:
    for process in smtpd.family:
        agree(lsof, process.pid)


def test_a_tree_is_listed_with_the_roles_of_its_processes(smtpd: Smtpd) -> None:
    rows = by_seatbelt(smtpd.process.pid)
    assert {row.role for row in rows} == {process.cmdline()[0].split(": ")[1] for process in smtpd.family}


def test_the_summary_counts_by_role_and_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with holds_everything(tmp_path) as holder:
        assert run(holder.pid, as_json=True, summary=True) == 0
        counts = {row["kind"]: (row["count"], row["deleted"]) for row in json.loads(capsys.readouterr().out)}
        rows = by_seatbelt(holder.pid)
    assert counts == {
        kind: (
            sum(row.kind == kind for row in rows),
            sum(row.kind == kind and row.deleted for row in rows),
        )
        for kind in {row.kind for row in rows}
    }


def test_lines_for_grep_have_one_descriptor_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with holds_everything(tmp_path) as holder:
        assert run(holder.pid, as_json=False, summary=False) == 0
        lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["ROLE", "PID", "FD", "KIND", "STATE/FLAGS", "DEVICE", "INODE", "TWINS", "NAME"]
    assert [int(line.split()[2]) for line in lines[1:]] == sorted([0, 1, 2, *holder.held.values()])


def test_no_such_process_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with python("-c", "") as process:
        process.wait()
        assert run(process.pid, as_json=False, summary=False) == 2
        finished = subprocess.run([SEATBELT, "fds", str(process.pid)], capture_output=True, text=True, check=False)
    told = capsys.readouterr()
    assert (told.err, told.out) == (f"seatbelt: no process with pid {process.pid}\n", "")
    assert (finished.returncode, finished.stdout, finished.stderr) == (2, told.out, told.err)


def test_a_process_that_is_not_ours_to_see_is_one_line_and_status_2() -> None:
    unseen = "import ctypes, sys; ctypes.CDLL(None).prctl(4, 0)"  # PR_SET_DUMPABLE: now only root may look
    with python("-c", f"{unseen}; print(flush=True); sys.stdin.read()") as process:
        assert process.stdout is not None
        process.stdout.readline()

        def refused() -> list[str]:
            with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
                status = run(process.pid, as_json=False, summary=False)
            return [str(status), out.getvalue(), err.getvalue()]

        status, out, err = as_another_user(refused)
    assert (status, out) == ("2", "")
    assert re.fullmatch(
        rf"seatbelt: descriptors of \S+ \(pid {process.pid}\): not permitted; run Seatbelt as root\n", err
    )


def test_a_reader_that_leaves_early_sees_no_traceback(tmp_path: Path) -> None:
    with holds_everything(tmp_path) as holder:
        piped = f"'{SEATBELT}' fds {holder.pid} | head -n 1"
        finished = subprocess.run(["sh", "-c", piped], capture_output=True, text=True, check=False)
    assert finished.stdout.startswith("ROLE")
    assert finished.stderr == ""


@pytest.mark.parametrize("argument", ["0", "-1", "x", ""])
def test_what_is_no_pid_is_told_with_status_2(argument: str) -> None:
    finished = subprocess.run([SEATBELT, "fds", "--", argument], capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert "Invalid value for 'pid'" in finished.stderr.splitlines()[-1]
