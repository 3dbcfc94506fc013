"""What the commands of `seatbelt` do, one file each, and what several share. Their options are in `harness.cli`."""
