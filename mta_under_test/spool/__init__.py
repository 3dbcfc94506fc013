"""The disk queue: messages and envelopes that survive a crash, and how they get there and away again."""

from pathlib import Path

from mta_under_test.spool.disk import Spool
from mta_under_test.spool.journaled import JournaledSpool
from mta_under_test.spool.memory import NullStore, RamStore
from mta_under_test.spool.store import Batch, CorruptEnvelope, SpoolError, Store

__all__ = ["BACKENDS", "Batch", "CorruptEnvelope", "JournaledSpool", "Spool", "SpoolError", "Store", "open_store"]

BACKENDS = ("disk", "ram", "null")


def open_store(backend: str, root: Path, *, compress: bool = False) -> Store:
    """One of BACKENDS; only the disk looks at the rest. Raises SpoolError."""
    if backend == "disk":
        return JournaledSpool(root, compress=compress)
    return RamStore() if backend == "ram" else NullStore()
