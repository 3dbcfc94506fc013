"""What a target's Python finds first on its path. A package only so that wheels carry it."""
