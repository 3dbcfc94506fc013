"""The disk queue: messages and envelopes that survive a crash, and how they get there and away again."""

from mta_under_test.spool.disk import CorruptEnvelope, Spool, SpoolError

__all__ = ["CorruptEnvelope", "Spool", "SpoolError"]
