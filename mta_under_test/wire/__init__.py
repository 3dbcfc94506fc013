"""The protocols without I/O: SMTP from both sides, addresses, the ASCII envelope, imsg. Imports nothing of ours."""
