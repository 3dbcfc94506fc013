"""Dose a mail server with work, let it come to rest, count what it still holds, and say so with known confidence."""

__version__ = "0.1.0"
