"""Channels between the MTA's processes: frames, passed descriptors, back-pressure, counters."""
