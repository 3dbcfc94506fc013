"""queue: the disk queue, its commits, and the reports that it writes to senders."""
