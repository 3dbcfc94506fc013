"""delivery: local deliveries, by a process of parent's or by LMTP."""
