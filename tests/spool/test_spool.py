"""The disk queue from outside: what is there after each call, and after each call's failure."""

from __future__ import annotations

import errno
import gc
import os
import resource
import shutil
import stat
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from mta_under_test.spool import CorruptEnvelope, Spool, SpoolError
from mta_under_test.wire.envelope import Envelope, decode, encode


def envelope(rcpt: str = "bob@example.com") -> Envelope:
    return Envelope(sender="alice@example.net", rcpt=rcpt, dest=rcpt, ctime=1358500000, ttl=345600)


def submit(spool: Spool, *recipients: str, body: bytes = b"Subject: x\r\n\r\nx\r\n") -> int:
    """An uncommitted message, whole."""
    msgid = spool.create()
    for recipient in recipients or ("bob@example.com",):
        spool.add_envelope(msgid, envelope(recipient))
    descriptor = spool.open_message(msgid)
    os.write(descriptor, body)
    os.close(descriptor)
    return msgid


def descriptors() -> set[tuple[str, str]]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add((name, str(Path(f"/proc/self/fd/{name}").readlink())))
        except FileNotFoundError:
            continue  # the one that listed
    return found


def tree(root: Path) -> list[str]:
    """Every file under `root`, and every directory below incoming/ and queue/HH."""
    paths = (path.relative_to(root).as_posix() for path in root.rglob("*"))
    return sorted(path for path in paths if (root / path).is_file() or path.count("/") == (2 if "queue" in path else 1))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def spool(root: Path) -> Spool:
    return Spool(root)


@pytest.fixture
def no_new_descriptors() -> Iterator[None]:
    before = descriptors()
    yield
    assert descriptors() == before


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a forked child; its exit status, 1 when it raised."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# ---- the ordinary life of a message


def test_the_tree_is_private_and_made_once(root: Path) -> None:
    Spool(root)
    Spool(root)
    names = {"incoming", "queue", "corrupt", "purge", "temporary", "offline"}
    assert {path.name for path in root.iterdir()} == names
    assert {stat.S_IMODE((root / name).stat().st_mode) for name in names} == {0o700}


def test_a_message_appears_in_the_queue_at_commit_and_not_before(spool: Spool, root: Path) -> None:
    msgid = submit(spool, "bob@example.com", "carol@example.com")
    with pytest.raises(SpoolError, match=r"cannot open the message: No such file"):
        spool.message_fd(msgid)
    assert list(spool.walk()) == []

    spool.commit([msgid])

    evpids = spool.envelopes(msgid)
    assert {spool.envelope(evpid).rcpt for evpid in evpids} == {"bob@example.com", "carol@example.com"}
    assert all(evpid >> 32 == msgid for evpid in evpids)
    name = f"queue/{msgid >> 24:02x}/{msgid:08x}"
    assert tree(root) == [name, *sorted(f"{name}/{evpid:016x}" for evpid in evpids), f"{name}/message"]
    assert stat.S_IMODE((root / name / "message").stat().st_mode) == 0o600
    assert decode((root / name / f"{evpids[0]:016x}").read_bytes()) == spool.envelope(evpids[0])


def test_the_descriptors_handed_out_are_the_caller_s(spool: Spool) -> None:
    msgid = submit(spool, body=b"hello")
    spool.commit([msgid])
    descriptor = spool.message_fd(msgid)
    assert os.pread(descriptor, 100, 0) == b"hello"
    assert not os.get_inheritable(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(descriptor, b"x")
    os.close(descriptor)


def test_the_message_goes_with_its_last_envelope(spool: Spool, root: Path) -> None:
    msgid = submit(spool, "bob@example.com", "carol@example.com")
    spool.commit([msgid])
    first, second = spool.envelopes(msgid)
    assert not spool.delete(first)
    assert spool.envelopes(msgid) == [second]
    assert spool.delete(second)
    assert tree(root) == []
    for call in (lambda: spool.delete(second), lambda: spool.envelope(second), lambda: spool.envelopes(msgid)):
        with pytest.raises(SpoolError, match=f"queue/{msgid >> 24:02x}/{msgid:08x}.*: No such file or directory"):
            call()


def test_a_discarded_message_leaves_nothing(spool: Spool, root: Path) -> None:
    msgid = submit(spool, "bob@example.com", "carol@example.com")
    spool.discard(msgid)
    spool.discard(msgid)
    assert tree(root) == []


def test_discard_does_not_touch_what_is_committed(spool: Spool) -> None:
    msgid = submit(spool)
    spool.commit([msgid])
    spool.discard(msgid)
    assert len(spool.envelopes(msgid)) == 1


def test_an_update_replaces_the_text(spool: Spool, root: Path) -> None:
    msgid = submit(spool)
    spool.commit([msgid])
    (evpid,) = spool.envelopes(msgid)
    changed = spool.envelope(evpid)
    changed.retry, changed.errorline = 3, "450 4.2.1 later\r\nflags: internal"
    spool.update(evpid, changed)
    assert spool.envelope(evpid) == changed
    assert os.listdir(root / "incoming") == []


def test_an_update_brings_nothing_back(spool: Spool) -> None:
    msgid = submit(spool, "bob@example.com", "carol@example.com")
    spool.commit([msgid])
    first, second = spool.envelopes(msgid)
    spool.delete(first)
    with pytest.raises(SpoolError, match=f"{first:016x}: cannot update the envelope: No such file"):
        spool.update(first, envelope())
    assert spool.envelopes(msgid) == [second]


def test_an_envelope_that_cannot_be_written_is_refused(spool: Spool, root: Path) -> None:
    msgid = submit(spool)
    before = tree(root)
    bad = envelope()
    bad.retry = -1
    with pytest.raises(SpoolError, match=f"message {msgid:08x}: bad envelope: retry is -1"):
        spool.add_envelope(msgid, bad)
    assert tree(root) == before


def test_group_commit(spool: Spool) -> None:
    msgids = [submit(spool, body=b"%d" % number) for number in range(20)]
    spool.commit(msgids)
    assert {evpid >> 32 for evpid, _ in spool.walk()} == set(msgids)


@pytest.mark.parametrize("missing", ["message", "envelope", "everything"])
def test_half_a_message_is_not_committed_and_nor_are_its_neighbours(spool: Spool, root: Path, missing: str) -> None:
    good, bad = submit(spool), submit(spool)
    for path in (root / "incoming" / f"{bad:08x}").iterdir():
        if missing == "everything" or (path.name == "message") == (missing == "message"):
            path.unlink()
    with pytest.raises(SpoolError, match=f"incoming/{bad:08x}: cannot commit: no "):
        spool.commit([good, bad])
    assert list(spool.walk()) == []
    spool.commit([good])
    assert [evpid >> 32 for evpid, _ in spool.walk()] == [good]


# ---- damage


@pytest.mark.parametrize("damage", [b"", b"version: 1\ntype: mta\n", b"\0" * 300, b"x" * 70000, b"version: 9\n"])
@pytest.mark.parametrize("recipients", [1, 2])
def test_a_corrupt_envelope_is_put_aside_with_its_message(
    spool: Spool, root: Path, damage: bytes, recipients: int
) -> None:
    msgid = submit(spool, *(f"user{number}@example.com" for number in range(recipients)), body=b"precious")
    spool.commit([msgid])
    broken, *others = spool.envelopes(msgid)
    (root / f"queue/{msgid >> 24:02x}/{msgid:08x}/{broken:016x}").write_bytes(damage)
    with pytest.raises(CorruptEnvelope, match=rf"^queue/../{msgid:08x}/{broken:016x}: "):
        spool.envelope(broken)
    assert [evpid for evpid, _ in spool.walk()] == others
    assert (root / f"corrupt/{msgid:08x}/{broken:016x}").read_bytes() == damage
    assert (root / f"corrupt/{msgid:08x}/message").read_bytes() == b"precious"


def test_walk_puts_aside_what_does_not_belong_and_goes_on(spool: Spool, root: Path) -> None:
    strange, orphaned, broken, good = (submit(spool) for _ in range(4))
    spool.commit([strange, orphaned, broken, good])
    place = {msgid: root / f"queue/{msgid >> 24:02x}/{msgid:08x}" for msgid in (strange, orphaned, broken)}
    (place[strange] / "0123456789abcdef").write_bytes(encode(envelope()))  # another message's envelope
    (place[orphaned] / "message").unlink()
    (place[broken] / f"{spool.envelopes(broken)[0]:016x}").write_bytes(b"?")
    spool.recover()
    assert {evpid >> 32 for evpid, _ in spool.walk()} == {strange, good}
    assert {path.name for path in (root / "corrupt").iterdir()} == {f"{m:08x}" for m in (strange, orphaned, broken)}
    assert not place[orphaned].exists()
    assert not place[broken].exists()


def test_foreign_names_in_the_queue_are_left_alone(spool: Spool, root: Path) -> None:
    (root / "queue" / "lost+found").mkdir()
    (root / "queue" / "README").write_text("x")
    (root / "queue" / "ab").mkdir()
    (root / "queue" / "ab" / "cd000000").mkdir()  # on the wrong shelf
    assert list(spool.walk()) == []
    spool.recover()
    assert (root / "queue" / "ab" / "cd000000").is_dir()


def test_recover_sweeps_what_was_never_promised(spool: Spool, root: Path) -> None:
    kept = submit(spool)
    spool.commit([kept])
    submit(spool)
    unowned = submit(spool)
    spool.commit([unowned])
    (evpid,) = spool.envelopes(unowned)
    (root / f"queue/{unowned >> 24:02x}/{unowned:08x}/{evpid:016x}").unlink()
    (root / "temporary" / "x").mkdir()
    (root / "temporary" / "x" / "y").write_text("z")
    (root / "incoming" / "envelope.0000000000000001.tmp").write_text("half")
    (root / "offline" / "mail").write_text("a user's mail")
    (root / "temporary" / "link").symlink_to(root / "offline")
    spool.recover()
    assert [evpid >> 32 for evpid, _ in spool.walk()] == [kept]
    assert [path for path in tree(root) if not path.startswith(f"queue/{kept >> 24:02x}")] == ["offline/mail"]


# ---- failure


class Failing:
    """Fails the n-th of the system calls that it stands in for."""

    def __init__(self, at: int) -> None:
        self.left = at

    def instead_of(self, call: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*args: object, **kwargs: object) -> object:
            self.left -= 1
            if self.left == 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return call(*args, **kwargs)

        return wrapped


def fail_nth(patch: pytest.MonkeyPatch, at: int) -> Failing:
    failing = Failing(at)
    for name in ("open", "write", "fsync", "rename", "mkdir", "unlink", "listdir", "posix_fadvise", "scandir"):
        patch.setattr(os, name, failing.instead_of(getattr(os, name)))
    return failing


def test_whatever_call_fails_a_commit_is_all_or_nothing_and_leaks_nothing(
    spool: Spool, root: Path, no_new_descriptors: None
) -> None:
    failures = 0
    for at in range(1, 200):
        msgids = [submit(spool) for _ in range(3)]
        with pytest.MonkeyPatch.context() as patch:
            failing = fail_nth(patch, at)
            try:
                spool.commit(msgids)
                done = True
            except SpoolError:
                failures += 1
                done = False
        committed = {evpid >> 32 for evpid, _ in spool.walk()}
        assert committed == (set(msgids) if done else set())
        for msgid in msgids:
            spool.discard(msgid)
            if done:
                spool.delete(spool.envelopes(msgid)[0])
        assert tree(root) == []
        # Shelves stay, and a commit that needs none makes fewer calls.
        shutil.rmtree(root / "queue")
        (root / "queue").mkdir()
        if failing.left > 0:
            break
    assert done
    assert failures > 40


@pytest.mark.parametrize(
    "act", ["create", "open_message", "add_envelope", "message_fd", "update", "delete", "envelope"]
)
def test_whatever_call_fails_nothing_stays_open_and_nothing_half_done(
    spool: Spool, root: Path, act: str, no_new_descriptors: None
) -> None:
    for at in range(1, 50):
        incoming, queued = submit(spool), submit(spool)
        spool.commit([queued])
        (evpid,) = spool.envelopes(queued)
        (root / "incoming" / f"{incoming:08x}" / "message").unlink()
        before = tree(root)
        calls: dict[str, Callable[[], object]] = {
            "create": spool.create,
            "open_message": partial(spool.open_message, incoming),
            "add_envelope": partial(spool.add_envelope, incoming, envelope()),
            "message_fd": partial(spool.message_fd, queued),
            "update": partial(spool.update, evpid, envelope("new@example.com")),
            "delete": partial(spool.delete, evpid),
            "envelope": partial(spool.envelope, evpid),
        }
        with pytest.MonkeyPatch.context() as patch:
            failing = fail_nth(patch, at)
            try:
                result = calls[act]()
            except SpoolError:
                result = None
        if failing.left > 0:
            if act in ("open_message", "message_fd"):
                assert isinstance(result, int)
                os.close(result)
            return
        assert result is None
        if act != "delete":  # a message may stay behind its last envelope; `recover` takes it
            assert tree(root) == before
            assert spool.envelope(evpid).rcpt == "bob@example.com"
        spool.recover()
        for left, _ in spool.walk():
            spool.delete(left)
        assert tree(root) == []
    pytest.fail("no end of calls")


def test_a_failed_fsync_is_not_believed_the_second_time(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    good, lost = submit(spool), submit(spool)
    fsync = os.fsync

    def failing(descriptor: int) -> None:
        if f"{lost:08x}" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(SpoolError, match=f"incoming/{lost:08x}/.*: cannot commit: Input/output error"):
            spool.commit([good, lost])
    spool.commit([good])
    with pytest.raises(SpoolError, match=f"incoming/{lost:08x}: cannot commit: No such file"):
        spool.commit([lost])
    assert [evpid >> 32 for evpid, _ in spool.walk()] == [good]


def test_a_full_disk_leaves_no_half_envelope_and_no_descriptor(spool: Spool, root: Path) -> None:
    msgid = submit(spool)
    before = tree(root)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))
        held = descriptors()
        with pytest.raises(
            SpoolError, match=r"incoming/[0-9a-f]{8}/[0-9a-f]{16}: cannot write an env.*: File too large"
        ):
            spool.add_envelope(msgid, envelope())
        assert descriptors() == held

    assert in_child(work) == 0
    assert tree(root) == before


def test_out_of_descriptors(spool: Spool, root: Path) -> None:
    committed, msgid = submit(spool), submit(spool)
    spool.commit([committed])

    def work() -> None:
        limit = max(int(name) for name, _ in descriptors()) + 4
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        free = [os.open("/", os.O_RDONLY) for _ in range(limit - len(descriptors()))]
        for call in (
            lambda: spool.message_fd(committed),
            lambda: spool.add_envelope(msgid, envelope()),
            lambda: spool.commit([msgid]),
        ):
            with pytest.raises(SpoolError, match="Too many open files"):
                call()
        for descriptor in free:
            os.close(descriptor)
        spool.commit([msgid])  # it was not the message's fault

    assert in_child(work) == 0


def test_a_root_that_cannot_be_made() -> None:
    with pytest.raises(SpoolError, match=r"^/proc/no-such-thing: cannot make the spool: "):
        Spool(Path("/proc/no-such-thing"))


def test_a_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolError, match=rf"^{tmp_path}/file: cannot make the spool: File exists"):
        Spool(tmp_path / "file")


def test_a_root_that_is_somebody_else_s() -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        Spool(root / "spool")
        root.chmod(0o755)
        (root / "spool").chmod(0o755)
        for path in (root / "spool").iterdir():
            path.chmod(0o500)

        def work() -> None:
            if os.geteuid() == 0:
                os.seteuid(65534)
            with pytest.raises(SpoolError, match=rf"^{root}/spool/incoming: cannot write here as user \d+; change its"):
                Spool(root / "spool")

        assert in_child(work) == 0


# ---- memory


def test_no_memory_stays_behind(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # the disk's time is not what is measured

    def cycles(count: int) -> None:
        for _ in range(count):
            msgid = submit(spool)
            spool.commit([msgid])
            for evpid in spool.envelopes(msgid):
                spool.update(evpid, spool.envelope(evpid))
                spool.delete(evpid)

    def blocks() -> int:
        gc.collect()
        return sys.getallocatedblocks()

    cycles(300)
    before = blocks()
    cycles(2000)
    assert blocks() - before < 100  # one block a cycle would be 2000
