"""A run: what is under it, its doses, the order of its phases, and the second look after a finding."""
