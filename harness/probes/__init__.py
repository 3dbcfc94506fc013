"""What a process tree holds, read from /proc, the kernel's socket tables and the agent. Probes observe, never judge."""
