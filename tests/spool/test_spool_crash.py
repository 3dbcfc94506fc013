"""The disk queue against the end of its process and of its power, and against a model."""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from mta_under_test.spool import Spool, SpoolError
from mta_under_test.wire.envelope import Envelope


def envelope(rcpt: str) -> Envelope:
    return Envelope(rcpt=rcpt, dest=rcpt, ctime=1358500000, ttl=345600)


def submit(spool: Spool, recipients: int) -> int:
    msgid = spool.create()
    for number in range(recipients):
        spool.add_envelope(msgid, envelope(f"{number}@example.com"))
    descriptor = spool.open_message(msgid)
    os.write(descriptor, b"%08x" % msgid)
    os.close(descriptor)
    return msgid


def content(spool: Spool, msgid: int) -> bytes:
    descriptor = spool.message_fd(msgid)
    try:
        return os.read(descriptor, 100)
    finally:
        os.close(descriptor)


def work_until_killed(root: Path, promises: int) -> None:
    """Commit and delete without end. `+` and an id are promised after a commit, `-` before a delete."""
    spool = Spool(root)
    while True:
        group = [submit(spool, recipients=3) for _ in range(random.randrange(1, 5))]
        spool.commit(group)
        os.write(promises, b"".join(b"+%08x\n" % msgid for msgid in group))
        spool.update(spool.envelopes(group[0])[0], envelope("updated@example.com"))
        if random.random() < 0.5:
            os.write(promises, b"-%08x\n" % group[0])
            for evpid in spool.envelopes(group[0]):
                spool.delete(evpid)
        spool.discard(submit(spool, recipients=1))


@pytest.mark.parametrize("seed", range(12))
def test_killed_at_any_moment_nothing_promised_is_lost(tmp_path: Path, seed: int) -> None:
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read_end)
            random.seed(seed)
            work_until_killed(tmp_path, write_end)
        finally:
            os._exit(1)
    os.close(write_end)
    time.sleep(random.Random(seed).uniform(0.005, 0.1))
    os.kill(pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    with os.fdopen(read_end, "rb") as pipe:
        lines = pipe.read().splitlines()
    promised = {int(line[1:], 16) for line in lines if line.startswith(b"+")}
    given_up = {int(line[1:], 16) for line in lines if line.startswith(b"-")}

    spool = Spool(tmp_path)
    spool.recover()
    found: dict[int, int] = {}
    for evpid, _ in spool.walk():
        found[evpid >> 32] = found.get(evpid >> 32, 0) + 1
    for msgid in promised - given_up:
        assert found[msgid] == 3
    for msgid in found:  # also those that were moved, and not yet promised
        assert content(spool, msgid) == b"%08x" % msgid
    assert os.listdir(tmp_path / "incoming") == os.listdir(tmp_path / "corrupt") == []
    assert len(list(tmp_path.glob("queue/*/*"))) == len(found)


class Disk:
    """Remembers what was synced, and judges every rename by what power loss would leave of it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.safe: set[int] = set()  # inodes
        self.renames: list[Path] = []
        fsync, rename = os.fsync, os.rename

        def remembering_fsync(descriptor: int) -> None:
            fsync(descriptor)
            self.safe.add(os.fstat(descriptor).st_ino)

        def judging_rename(source: Path, target: Path) -> None:
            for path in (source, *source.rglob("*")):
                assert path.stat().st_ino in self.safe, f"{path} is renamed before it is safe"
            rename(source, target)
            self.renames.append(target)
            self.safe.discard(target.parent.stat().st_ino)
            self.safe.discard(source.parent.stat().st_ino)

        patch.setattr(os, "fsync", remembering_fsync)
        patch.setattr(os, "rename", judging_rename)


def test_a_commit_is_safe_from_power_loss_when_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path)
    msgids = [submit(spool, recipients=2) for _ in range(5)]
    disk = Disk(monkeypatch)
    spool.commit(msgids)
    assert len(disk.renames) == 5
    for target in disk.renames:
        for directory in (target.parent, tmp_path / "queue", tmp_path / "incoming"):
            assert directory.stat().st_ino in disk.safe


def test_an_update_never_puts_an_unwritten_text_under_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path)
    msgid = submit(spool, recipients=1)
    spool.commit([msgid])
    disk = Disk(monkeypatch)
    spool.update(spool.envelopes(msgid)[0], envelope("new@example.com"))
    assert len(disk.renames) == 1


class SpoolModel(RuleBasedStateMachine):
    """Any order of calls, against two dictionaries."""

    pending = Bundle("pending")
    committed = Bundle("committed")

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="spool-model-"))
        self.spool = Spool(self.root)
        self.incoming: dict[int, dict[int, Envelope]] = {}
        self.queue: dict[int, Envelope] = {}

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    @rule(target=pending)
    def create(self) -> int:
        msgid = submit(self.spool, 0)
        self.incoming[msgid] = {}
        return msgid

    @rule(msgid=pending, rcpt=st.text(min_size=1, max_size=20))
    def add(self, msgid: int, rcpt: str) -> None:
        if msgid in self.incoming:
            self.incoming[msgid][self.spool.add_envelope(msgid, envelope(rcpt))] = envelope(rcpt)
        else:
            with pytest.raises(SpoolError):
                self.spool.add_envelope(msgid, envelope(rcpt))

    @rule(target=committed, msgids=st.lists(consumes(pending), min_size=1, max_size=3))
    def commit(self, msgids: list[int]):  # type: ignore[no-untyped-def]  # Hypothesis hides what multiple() is
        if not all(self.incoming.get(msgid) for msgid in msgids):
            with pytest.raises(SpoolError):
                self.spool.commit(msgids)
            for msgid in msgids:
                self.discard(msgid)
            return multiple()
        self.spool.commit(msgids)
        moved = {}
        for msgid in msgids:
            moved.update(self.incoming.pop(msgid))
        self.queue.update(moved)
        return multiple(*moved)

    @rule(msgid=consumes(pending))
    def discard(self, msgid: int) -> None:
        self.spool.discard(msgid)
        self.incoming.pop(msgid, None)

    @rule(evpid=committed, rcpt=st.text(min_size=1, max_size=20))
    def update(self, evpid: int, rcpt: str) -> None:
        if evpid in self.queue:
            self.spool.update(evpid, envelope(rcpt))
            self.queue[evpid] = envelope(rcpt)
        else:
            with pytest.raises(SpoolError):
                self.spool.update(evpid, envelope(rcpt))

    @rule(evpid=committed)
    def delete(self, evpid: int) -> None:
        if self.queue.pop(evpid, None) is None:
            with pytest.raises(SpoolError):
                self.spool.delete(evpid)
        else:
            last = all(other >> 32 != evpid >> 32 for other in self.queue)
            assert self.spool.delete(evpid) == last

    @rule()
    def restart(self) -> None:
        self.spool = Spool(self.root)
        self.spool.recover()
        self.incoming.clear()

    @invariant()
    def the_queue_is_what_was_committed(self) -> None:
        assert dict(self.spool.walk()) == self.queue
        assert {path.name for path in (self.root / "incoming").iterdir()} == {f"{m:08x}" for m in self.incoming}
        assert len(list(self.root.glob("queue/*/*/message"))) == len({evpid >> 32 for evpid in self.queue})


SpoolModel.TestCase.settings = settings(deadline=None, max_examples=40, stateful_step_count=25)
test_any_order_of_calls = SpoolModel.TestCase
