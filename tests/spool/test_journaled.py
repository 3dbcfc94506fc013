"""The journal in front of the files: what is where at which moment, and what a replay makes of it."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from benchmarks.power_loss import Shadow, restore
from mta_under_test.spool import JournaledSpool, SpoolError, durable, journaled
from mta_under_test.spool.journal import Journal
from mta_under_test.wire.envelope import Envelope, encode


def text(rcpt: str = "bob@example.com") -> bytes:
    return encode(Envelope(sender="alice@example.net", rcpt=rcpt, dest=rcpt, ctime=1358500000, ttl=345600))


def submit(spool: JournaledSpool, recipients: int = 1, body: bytes = b"Subject: x\r\n\r\nx\r\n") -> int:
    msgid = spool.create()
    for number in range(recipients):
        spool.add_text(msgid, text(f"{number}@example.com"))
    spool.put_message(msgid, body)
    return msgid


def committed(spool: JournaledSpool, recipients: int = 1, body: bytes = b"Subject: x\r\n\r\nx\r\n") -> int:
    msgid = submit(spool, recipients, body)
    spool.commit([msgid])
    return msgid


def settle(spool: JournaledSpool) -> None:
    while spool.unsettled_bytes:
        if spool.settle(10.0):
            spool.sync_settled()
            spool.settled()


def content(spool: JournaledSpool, msgid: int) -> bytes:
    descriptor = spool.message_fd(msgid)
    try:
        return os.read(descriptor, 1 << 20)
    finally:
        os.close(descriptor)


def files(root: Path, room: str = "queue") -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in (root / room).rglob("*") if path.is_file())


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[JournaledSpool]:
    spool = JournaledSpool(tmp_path)
    spool.recover()
    yield spool
    spool.close()


def again(root: Path) -> JournaledSpool:
    """The spool as the next start finds it, when the last one ended without a word."""
    spool = JournaledSpool(root)
    spool.recover()
    return spool


def test_a_commit_is_one_fdatasync_and_no_file_but_the_journal(
    spool: JournaledSpool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.commit([submit(spool)])
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    monkeypatch.setattr(os, "fsync", lambda _: pytest.fail("an fsync"))
    spool.commit([submit(spool) for _ in range(20)])
    assert len(synced) == 1
    assert files(tmp_path) == []
    assert len(files(tmp_path, "journal")) == 1
    assert len(list(spool.walk())) == 21


def test_a_reader_gets_a_file_that_settling_puts_in_its_place(spool: JournaledSpool, tmp_path: Path) -> None:
    msgid = committed(spool, 2, b"hello")
    assert content(spool, msgid) == b"hello"
    name = f"queue/{msgid >> 24:02x}/{msgid:08x}"
    assert files(tmp_path) == []
    assert files(tmp_path, "temporary") == [f"temporary/{msgid:08x}.message"]
    evpids = spool.envelopes(msgid)
    settle(spool)
    assert files(tmp_path) == [*(f"{name}/{evpid:016x}" for evpid in evpids), f"{name}/message"]
    assert spool.unsettled_bytes == 0
    assert files(tmp_path, "temporary") == []
    assert spool.envelopes(msgid) == evpids
    assert content(spool, msgid) == b"hello"


def test_a_message_that_is_delivered_at_once_never_has_an_envelope_file(spool: JournaledSpool, tmp_path: Path) -> None:
    msgid = committed(spool)
    content(spool, msgid)
    assert spool.delete(spool.envelopes(msgid)[0])
    assert files(tmp_path) == files(tmp_path, "temporary") == []
    settle(spool)
    assert files(tmp_path) == []
    assert spool.unsettled_bytes == 0


def test_a_replay_knows_what_was_committed_updated_and_deleted(spool: JournaledSpool, tmp_path: Path) -> None:
    kept, updated, partly, gone = (committed(spool, 2, b"%d" % number) for number in range(4))
    settled = committed(spool, 2, b"settled")
    settle(spool)
    late = committed(spool, 2, b"late")
    for evpid in (spool.envelopes(partly)[0], *spool.envelopes(gone), spool.envelopes(late)[0]):
        spool.delete(evpid)
    for evpid in (spool.envelopes(updated)[0], spool.envelopes(late)[0]):
        envelope = spool.envelope(evpid)
        envelope.retry = 7
        spool.update(evpid, envelope)
    before = dict(spool.walk())
    fresh = again(tmp_path)
    assert dict(fresh.walk()) == before
    assert sorted(envelope.retry for envelope in before.values()) == [0] * 6 + [7, 7]
    assert {content(fresh, msgid) for msgid in (kept, updated, partly, settled, late)} == {
        b"0",
        b"1",
        b"2",
        b"settled",
        b"late",
    }
    assert files(tmp_path, "journal") == files(tmp_path, "incoming") == []
    fresh.close()


@pytest.mark.parametrize("cut", [1, 20, 120])
def test_a_record_that_is_cut_short_is_not_replayed_and_those_before_it_are(tmp_path: Path, cut: int) -> None:
    spool = again(tmp_path)
    first = committed(spool)
    committed(spool)
    (journal,) = (tmp_path / "journal").iterdir()
    os.truncate(journal, journal.stat().st_size - cut)
    assert {evpid >> 32 for evpid, _ in again(tmp_path).walk()} == {first}


def test_a_damaged_record_ends_the_replay(spool: JournaledSpool, tmp_path: Path) -> None:
    first = committed(spool)
    (path,) = (tmp_path / "journal").iterdir()
    size = path.stat().st_size
    committed(spool)
    with path.open("r+b") as journal:
        journal.seek(size + 60)
        journal.write(b"\xff\xff")
    assert {evpid >> 32 for evpid, _ in again(tmp_path).walk()} == {first}


def test_a_large_message_and_one_with_many_recipients_take_the_way_of_files(
    spool: JournaledSpool, tmp_path: Path
) -> None:
    large = spool.create()
    spool.add_text(large, text())
    descriptor = spool.open_message(large)
    os.write(descriptor, b"x" * 100_000)
    os.close(descriptor)
    many = submit(spool, journaled.PENDING_ENVELOPES + 50)
    small = submit(spool)
    spool.commit([large, many, small])
    assert len(spool.envelopes(many)) == journaled.PENDING_ENVELOPES + 50
    assert len(files(tmp_path)) == 2 + journaled.PENDING_ENVELOPES + 51
    assert len(content(spool, large)) == 100_000
    assert len(list(spool.walk())) == journaled.PENDING_ENVELOPES + 52
    discarded = spool.create()
    os.close(spool.open_message(discarded))
    spool.discard(discarded)
    assert files(tmp_path, "incoming") == []


def test_updates_wait_for_the_disk_before_they_take_the_place_of_the_old_text(
    spool: JournaledSpool, tmp_path: Path
) -> None:
    msgid = committed(spool)
    (evpid,) = spool.envelopes(msgid)
    settle(spool)
    (name,) = (name for name in files(tmp_path) if not name.endswith("message"))
    envelope = spool.envelope(evpid)
    envelope.retry = 1
    spool.update(evpid, envelope)
    assert spool.settle(10.0)  # the new text is written, and must reach the disk
    assert b"retry" not in (tmp_path / name).read_bytes()
    assert spool.envelope(evpid).retry == 1
    envelope.retry = 2
    spool.update(evpid, envelope)  # while the disk works
    spool.sync_settled()
    spool.settled()
    assert spool.envelope(evpid).retry == 2
    settle(spool)
    assert b"retry: 2\n" in (tmp_path / name).read_bytes()
    assert files(tmp_path, "incoming") == []


def test_an_envelope_that_is_deleted_while_its_update_waits_stays_deleted(
    spool: JournaledSpool, tmp_path: Path
) -> None:
    msgid = committed(spool, 2)
    first, second = spool.envelopes(msgid)
    settle(spool)
    spool.update(first, spool.envelope(first))
    assert spool.settle(10.0)
    spool.delete(first)
    spool.sync_settled()
    spool.settled()
    settle(spool)
    assert spool.envelopes(msgid) == [second]
    assert files(tmp_path, "incoming") == []


def test_a_commit_that_the_disk_refuses_is_not_replayed(
    spool: JournaledSpool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = committed(spool)
    msgid = submit(spool)

    def fails(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fails)
        with pytest.raises(SpoolError, match=r"^journal/0000000\d: cannot commit: Input/output error"):
            spool.commit([msgid])
    assert {evpid >> 32 for evpid, _ in spool.walk()} == {good}
    another = committed(spool)  # into another journal: the damaged one takes nothing more
    assert len(files(tmp_path, "journal")) == 2
    assert {evpid >> 32 for evpid, _ in again(tmp_path).walk()} == {good, another}


def test_a_full_disk_fails_the_commit_and_leaves_no_half_record(
    spool: JournaledSpool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = committed(spool)
    pwrite = os.pwrite
    calls = iter(range(100))

    def half(descriptor: int, data: bytes, offset: int) -> int:
        if next(calls) == 0:
            return pwrite(descriptor, data[: len(data) // 2], offset)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    msgid = submit(spool)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", half)
        with pytest.raises(SpoolError, match="cannot commit: No space left on device"):
            spool.commit([msgid])
    spool.commit([msgid])  # once there is room again
    assert {evpid >> 32 for evpid, _ in again(tmp_path).walk()} == {good, msgid}


def test_when_nobody_knows_what_the_disk_has_the_journal_stays(
    spool: JournaledSpool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    msgid = committed(spool)
    assert spool.settle(10.0)

    def fails(path: Path) -> None:
        raise durable.LostWrites(errno.EIO, os.strerror(errno.EIO), os.fspath(path))

    with monkeypatch.context() as patch:
        patch.setattr(durable, "sync_file_system", fails)
        with pytest.raises(SpoolError, match="cannot make the queue safe"):
            spool.sync_settled()
    spool.give_up_settling()
    (tmp_path / files(tmp_path)[0]).write_bytes(b"")  # what the disk made of it
    assert {evpid >> 32 for evpid, _ in again(tmp_path).walk()} == {msgid}


def test_under_pressure_a_full_journal_is_settled_while_the_next_one_fills(
    spool: JournaledSpool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journaled, "SEGMENT_BYTES", 10_000)
    msgids = [committed(spool, body=b"x" * 2000) for _ in range(8)]
    assert len(files(tmp_path, "journal")) == 2
    assert spool.settle(10.0)
    spool.sync_settled()
    spool.settled()
    assert len(files(tmp_path, "journal")) == 1
    assert {evpid >> 32 for evpid, _ in again(tmp_path).walk()} == set(msgids)


def test_at_rest_an_empty_journal_is_open_and_nothing_is_remembered(spool: JournaledSpool, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        msgid = committed(spool)
        for evpid in spool.envelopes(msgid):
            spool.update(evpid, spool.envelope(evpid))
        settle(spool)
        for evpid in spool.envelopes(msgid):
            spool.delete(evpid)
        settle(spool)
        assert len(os.listdir("/proc/self/fd")) == before + 1
        assert [(tmp_path / name).stat().st_size for name in files(tmp_path, "journal")] == [0]
    spool.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert files(tmp_path, "journal") == []
    assert not [value for value in vars(spool).values() if isinstance(value, (dict, list)) and value]


def test_a_journal_that_was_settled_is_written_on_and_replayed(spool: JournaledSpool, tmp_path: Path) -> None:
    filed = committed(spool)
    settle(spool)
    assert spool.delete(spool.envelopes(filed)[0])  # an empty journal could not bring it back, and hears nothing of it
    assert spool.unsettled_bytes == 0
    later = committed(spool)
    assert files(tmp_path, "journal") == ["journal/00000001"]
    assert {evpid >> 32 for evpid, _ in again(tmp_path).walk()} == {later}


def test_records_are_read_back_as_they_were_written(spool: JournaledSpool, tmp_path: Path) -> None:
    msgid = committed(spool, 3, b"content")
    (path,) = (tmp_path / "journal").iterdir()
    journal = Journal.open(path)
    (record,) = journal.records()
    assert record.number == msgid
    assert record.content is not None
    assert record.content.read() == b"content"
    assert [place.read() for place in record.texts.values()] == [text(f"{number}@example.com") for number in range(3)]
    journal.close()


# ---- compression


def test_a_compressed_queue_reads_as_a_plain_one_and_a_mixed_one_too(tmp_path: Path) -> None:
    plain = JournaledSpool(tmp_path)
    plain.recover()
    body = b"Received: here\r\n\r\n" + b"the same again\r\n" * 500
    first = committed(plain, body=body)
    settle(plain)
    packed = JournaledSpool(tmp_path, compress=True)
    packed.recover()
    second = committed(packed, body=body)
    settle(packed)
    third = packed.create()
    packed.add_text(third, text())
    descriptor = packed.open_message(third)
    os.write(descriptor, body)
    os.close(descriptor)
    packed.commit([third])
    sizes = {msgid: (packed.files._queue(msgid) / "message").stat().st_size for msgid in (first, second, third)}
    assert sizes[second] == pytest.approx(sizes[third], abs=20)
    assert sizes[second] < sizes[first] / 10
    for spool in (plain, packed):
        for msgid in (first, second, third):
            assert content(spool, msgid) == body
            assert spool.envelope(spool.envelopes(msgid)[0]).rcpt.endswith("@example.com")
    assert files(tmp_path, "temporary") == []


def test_gzip_that_is_damaged_is_put_aside_or_refused(tmp_path: Path) -> None:
    spool = JournaledSpool(tmp_path, compress=True)
    spool.recover()
    msgid = committed(spool, body=b"Received: x\r\n\r\n" * 100)
    settle(spool)
    directory = spool.files._queue(msgid)
    packed = (directory / "message").read_bytes()
    (directory / "message").write_bytes(packed[:-10])
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(SpoolError, match="not gzip"):
        spool.message_fd(msgid)
    assert len(os.listdir("/proc/self/fd")) == before
    (evpid,) = spool.envelopes(msgid)
    (directory / f"{evpid:016x}").write_bytes(b"\x1f\x8bnothing of the kind")
    with pytest.raises(SpoolError):
        spool.envelope(evpid)
    assert len(files(tmp_path, "corrupt")) == 2


# ---- power


@pytest.mark.parametrize("seed", range(16))
def test_power_lost_at_any_moment_takes_nothing_that_was_promised(tmp_path: Path, seed: int) -> None:
    """Strictly for even seeds, by chance for odd ones."""
    random = Random(seed)
    root, copy = tmp_path / "spool", Path(tempfile.mkdtemp(prefix="power-", dir="/dev/shm"))
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _work_until_the_power_goes(root, copy, write_end, random)
        finally:
            os._exit(1)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        lines = pipe.read().split()
    os.waitpid(pid, 0)
    promised = {int(line[1:], 16) for line in lines if line.startswith(b"+")}
    given_up = {int(line[1:], 16) for line in lines if line.startswith(b"-")}
    left = tmp_path / "left"
    by_chance = {"current": root, "chance": random} if seed % 2 else {}
    restore(copy, left, **by_chance)  # type: ignore[arg-type]
    shutil.rmtree(copy)
    spool = again(left)
    found = dict(spool.walk())
    missing = promised - given_up - {evpid >> 32 for evpid in found}
    assert not missing
    for evpid in found:
        assert content(spool, evpid >> 32).startswith(b"%08x" % (evpid >> 32))
    assert promised
    spool.close()


def _work_until_the_power_goes(root: Path, copy: Path, promises: int, random: Random) -> None:
    journaled.SEGMENT_BYTES = 20_000
    spool = JournaledSpool(root)
    spool.recover()
    Shadow(root, copy).install()
    steps = random.randint(5, 60)
    live: list[int] = []
    for _ in range(steps):
        match random.randrange(6):
            case 0 | 1 | 2:
                group = []
                for _ in range(random.randint(1, 4)):
                    msgid = spool.create()
                    spool.add_text(msgid, text())
                    body = b"%08x" % msgid + b"x" * random.choice((10, 3000))
                    if random.random() < 0.2:
                        descriptor = spool.open_message(msgid)
                        os.write(descriptor, body)
                        os.close(descriptor)
                    else:
                        spool.put_message(msgid, body)
                    group.append(msgid)
                spool.commit(group)
                os.write(promises, b"".join(b"+%08x\n" % msgid for msgid in group))
                live += group
            case 3 if live:
                msgid = live.pop(random.randrange(len(live)))
                os.write(promises, b"-%08x\n" % msgid)
                spool.delete(spool.envelopes(msgid)[0])
            case 4 if live:
                evpid = spool.envelopes(random.choice(live))[0]
                spool.update(evpid, spool.envelope(evpid))
                os.close(spool.message_fd(evpid >> 32))
            case 5:
                if spool.settle(random.choice((0.0, 1.0))):
                    spool.sync_settled()
                    if random.random() < 0.8:
                        spool.settled()


# ---- any order of calls, against two dictionaries


class JournaledModel(RuleBasedStateMachine):
    pending = Bundle("pending")
    committed = Bundle("committed")

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="journaled-model-", dir="/dev/shm"))
        self.spool = again(self.root)
        self.incoming: dict[int, dict[int, bytes]] = {}
        self.queue: dict[int, bytes] = {}

    def teardown(self) -> None:
        self.spool.close()
        shutil.rmtree(self.root)

    @rule(target=pending, recipients=st.integers(1, 3), large=st.booleans())
    def create(self, recipients: int, large: bool) -> int:
        msgid = self.spool.create()
        self.incoming[msgid] = {}
        for number in range(recipients):
            self.incoming[msgid][self.spool.add_text(msgid, text(f"{number}@x"))] = text(f"{number}@x")
        if large:
            os.close(self.spool.open_message(msgid))
        else:
            self.spool.put_message(msgid, b"%08x" % msgid)
        return msgid

    @rule(target=committed, msgids=st.lists(consumes(pending), min_size=1, max_size=3))
    def commit(self, msgids: list[int]):  # type: ignore[no-untyped-def]  # Hypothesis hides what multiple() is
        here = [msgid for msgid in msgids if msgid in self.incoming]
        self.spool.commit(here)
        moved = {}
        for msgid in here:
            moved.update(self.incoming.pop(msgid))
        self.queue.update(moved)
        return multiple(*moved)

    @rule(msgid=consumes(pending))
    def discard(self, msgid: int) -> None:
        self.spool.discard(msgid)
        self.incoming.pop(msgid, None)

    @rule(evpid=committed, rcpt=st.text(min_size=1, max_size=20))
    def update(self, evpid: int, rcpt: str) -> None:
        envelope = Envelope(rcpt=rcpt, dest=rcpt, ctime=1, ttl=1)
        if evpid in self.queue:
            self.spool.update(evpid, envelope)
            self.queue[evpid] = encode(envelope)
        else:
            with pytest.raises(SpoolError):
                self.spool.update(evpid, envelope)

    @rule(evpid=committed)
    def delete(self, evpid: int) -> None:
        if self.queue.pop(evpid, None) is None:
            with pytest.raises(SpoolError):
                self.spool.delete(evpid)
        else:
            assert self.spool.delete(evpid) == all(other >> 32 != evpid >> 32 for other in self.queue)

    @rule(evpid=committed)
    def read(self, evpid: int) -> None:
        if evpid in self.queue:
            os.close(self.spool.message_fd(evpid >> 32))

    @rule(budget_s=st.sampled_from([0.0, 10.0]), confirm=st.booleans())
    def settle(self, budget_s: float, confirm: bool) -> None:
        if self.spool.settle(budget_s) and confirm:
            self.spool.sync_settled()
            self.spool.settled()

    @rule(cleanly=st.booleans())
    def restart(self, cleanly: bool) -> None:
        if cleanly:
            self.spool.close()
        self.spool = again(self.root)
        self.incoming.clear()

    @invariant()
    def the_queue_is_what_was_committed(self) -> None:
        assert {evpid: encode(envelope) for evpid, envelope in self.spool.walk()} == self.queue
        for evpid, expected in self.queue.items():
            assert self.spool.envelope_text(evpid) == expected


JournaledModel.TestCase.settings = settings(deadline=None, max_examples=60, stateful_step_count=25)
test_any_order_of_calls = JournaledModel.TestCase
