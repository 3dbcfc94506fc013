"""The MTA's processes: one file each, one job each. `process.py` is what they all are, `stream.py` one TCP connection."""
