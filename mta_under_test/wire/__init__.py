"""The protocols, without I/O: SMTP on both sides, addresses, replies, the ASCII envelope, imsg. Imports nothing of ours."""
