"""The MTA's processes, one file each. `process` is what they all are, `stream` one TCP connection."""
