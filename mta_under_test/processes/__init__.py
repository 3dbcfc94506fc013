"""The MTA's processes, a file or a package each. `process` is what they all are, `stream` one TCP connection."""
