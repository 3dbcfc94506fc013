"""The agent's part inside the target: on a signal, count the objects in use and write the numbers to a file.

`site` imports this at the start of every Python that inherited the environment of `harness.agent.environment`; the
files that it reads and writes are described there.

Owns: one signal handler. At rest it has no thread and no descriptor, and asking leaves no object behind. A process
that gives up its rights or changes its root could no longer reach the files: just before, the agent opens the
directory, and that one descriptor it keeps.
Never: imports anything of Seatbelt (the target's Python may be another one, of 3.7 or later), raises into the target,
takes the place of another sitecustomize: the next one on the path is run as if this one were not there.
"""

from __future__ import annotations

import gc
import importlib.machinery
import importlib.util
import os
import signal
import sys
from collections.abc import Callable

UVLOOP_KEEPS = 250  # DEFAULT_FREELIST_SIZE
MOST_INTERNED = 50000
INTERNED_AT_ONCE = 500


class _Agent:
    def __init__(self, directory: str, number: int, tell: Callable[[bool], bytes] | None = None) -> None:
        self._directory = directory
        self._tell = tell  # the tracer's, in a traced run
        self._number = number
        self._heap = _heap_meter()
        self._filled = False  # what Python and uvloop keep for later
        self._answering = False
        self._kept = -1  # a descriptor of the directory, once its path may be out of reach
        self._kept_identity = (0, 0)
        self._answered = bytes(8)  # the last request (a block from the start): a second signal for it is not answered

    def install(self) -> None:
        try:
            signal.signal(self._number, self._on_signal)
        except ValueError:
            return  # a sub-interpreter: signals belong to the main one
        for name in ("chroot", "setuid", "setreuid", "setresuid"):
            self._stand_before(name)
        os.register_at_fork(after_in_child=self._announce)
        self._announce()

    def _stand_before(self, name: str) -> None:
        plain = getattr(os, name, None)
        if plain is None:
            return

        def guarded(*arguments: object) -> object:
            self._keep_directory()
            return plain(*arguments)

        setattr(os, name, guarded)

    def _keep_directory(self) -> None:
        if self._reach() is None:
            try:
                self._kept = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                found = os.fstat(self._kept)
            except OSError:
                return  # then this process does not answer, and the harness sees it
            self._kept_identity = (found.st_dev, found.st_ino)

    def _reach(self) -> int | None:
        """The kept descriptor, if the target has not closed it, and perhaps used its number for another file."""
        if self._kept < 0:
            return None
        try:
            found = os.fstat(self._kept)
        except OSError:
            return None
        return self._kept if (found.st_dev, found.st_ino) == self._kept_identity else None

    def _announce(self) -> None:
        try:
            started = _read("/proc/self/stat").rpartition(b")")[2].split()[19]
            self._write(".ready", started)
        except OSError:
            return  # no /proc, or a directory that this process may not write: it is not asked, then

    def _on_signal(self, number: int, frame: object) -> None:
        if self._answering:
            return  # the harness signals again as long as no answer comes
        self._answering = True
        try:
            self._answer()
        except (OSError, MemoryError):
            return  # no descriptor left, disk full: the harness sees that no answer comes, the target sees nothing
        finally:
            self._answering = False

    def _answer(self) -> None:
        kept = self._reach()
        request, *only = _read("request" if kept is not None else self._directory + "/request", kept).split()
        if request == self._answered:
            return
        if not self._filled:
            self._filled = True
            _fill_uvloop()
            if self._heap is not None and sys.version_info < (3, 12):  # from then on such strings are there for ever
                _fill_interned(self._heap)
        if gc.isenabled():  # a target that switched the collector off keeps its cycles: they are its own to free
            gc.collect()
            gc.collect()  # finalizers of the first round may have let more go
        blocks = sys.getallocatedblocks()
        objects, tasks, timers = _census()
        if self._tell is not None:  # before the answer: who reads that finds this
            self._write(".trace", self._tell(not only or b"%d" % os.getpid() in only))
        heap = self._heap() if self._heap is not None else 0
        told = b'{"request": %b, "blocks": %d, "objects": %d, "tasks": %d, "timers": %d, "heap": %d}'
        self._write(".json", told % (request, blocks, objects, tasks, timers, heap))
        self._answered = request

    def _write(self, suffix: str, data: bytes) -> None:
        kept = self._reach()
        path = "%d%s" % (os.getpid(), suffix)  # noqa: UP031 - one temporary object
        if kept is None:
            path = self._directory + "/" + path
        partial = path + ".tmp"
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644, dir_fd=kept)
        try:
            os.write(descriptor, data)
        finally:
            os.close(descriptor)
        # The target may not have imported pathlib, and need not.
        os.rename(partial, path, src_dir_fd=kept, dst_dir_fd=kept)


def _census() -> tuple[int, int, int]:
    """Containers that the collector tracks; of them asyncio's tasks, and timers that will still fire."""
    tasks = timers = 0
    objects = gc.get_objects()
    for one in objects:
        kind = type(one)
        if kind.__name__ == "Task" and kind.__module__ in ("_asyncio", "asyncio.tasks"):
            tasks += 1
        elif kind.__name__ == "TimerHandle" and kind.__module__ in ("asyncio.events", "uvloop.loop"):
            timers += not one.cancelled()
    return len(objects), tasks, timers


def _fill_uvloop() -> None:
    """Make uvloop keep as many handles as it ever will.

    It frees none of its first 250 of each kind, but keeps them for the next ones; a process that has more callbacks
    waiting at once than ever before would seem to grow by what is only its high-water mark.
    """
    asyncio = sys.modules.get("asyncio")
    loop = asyncio._get_running_loop() if asyncio is not None else None
    if loop is not None and type(loop).__module__ == "uvloop":
        timers = [loop.call_later(3600, _nothing) for _ in range(UVLOOP_KEEPS)]
        for timer in timers:
            timer.cancel()  # those of `call_soon` are over as soon as the loop runs again
        for _ in range(UVLOOP_KEEPS):
            loop.call_soon(_nothing)


def _nothing() -> None:
    pass


def _fill_interned(heap: Callable[[], int]) -> None:
    """Let Python make the table of interned strings anew, as it does once enough strings have come and gone.

    The new one is larger by up to half a megabyte, and lasts: it has room for three times what is in use when it is
    made. pathlib interns each part of a path, so that a process that names many files comes to it late.
    """
    before = heap()
    for number in range(0, MOST_INTERNED, INTERNED_AT_ONCE):
        for each in range(number, number + INTERNED_AT_ONCE):
            sys.intern("seatbelt %d" % each)  # noqa: UP031 - they live no longer than this call
        if heap() != before:
            return


def _heap_meter() -> Callable[[], int] | None:
    """What tells the bytes that malloc(3) has given out: buffers and other objects over 512 bytes, and libraries'.

    Python's small objects are not among them, they have arenas of their own. None where the C library cannot tell.
    """
    try:
        import ctypes
    except ImportError:
        return None

    class Mallinfo2(ctypes.Structure):  # mallinfo(3), of glibc 2.33
        _fields_ = [
            (name, ctypes.c_size_t)
            for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()  # noqa: SIM905
        ]

    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:
        return None
    mallinfo2.restype = Mallinfo2

    def in_use() -> int:
        info = mallinfo2()
        return int(info.uordblks + info.hblkhd)

    in_use()  # what the first call leaves behind is there from the start
    return in_use


def _read(path: str, directory: int | None = None) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return os.read(descriptor, 4096)
    finally:
        os.close(descriptor)


def _run_the_next_one() -> None:
    """Import the sitecustomize that this one stands before, if there is one, with the path as the target knows it."""
    here = __file__.rpartition("/")[0]
    sys.path[:] = [entry for entry in sys.path if entry != here]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", sys.path)
    if spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    sys.modules["sitecustomize"] = module  # the import system hands out what it finds here in the end
    spec.loader.exec_module(module)


def _traced() -> Callable[[bool], bytes] | None:
    """Start tracing; what is returned tells everything that was seen, and if asked what was allocated."""
    path = __file__.rpartition("/")[0] + "/tracer.py"
    spec = importlib.util.spec_from_file_location("_seatbelt_tracer", path)
    if spec is None or spec.loader is None:
        return None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tracer = module.Tracer()
    tracer.install()
    answer: Callable[[bool], bytes] = tracer.answer
    return answer


_directory = os.environ.get("SEATBELT_AGENT_DIR")
_number = os.environ.get("SEATBELT_AGENT_SIGNAL")
if _directory and _number and hasattr(sys, "getallocatedblocks"):
    _Agent(_directory, int(_number), _traced() if os.environ.get("SEATBELT_AGENT_TRACE") else None).install()
if __name__ == "sitecustomize":
    _run_the_next_one()
