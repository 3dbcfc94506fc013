"""What a run found, for people and for programs. The ground floor: imports nothing of ours."""
