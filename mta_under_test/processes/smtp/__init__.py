"""smtp: inbound sessions, and who is let in."""
