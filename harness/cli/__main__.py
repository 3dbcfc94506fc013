"""`python -m harness.cli`: the same command, of this very Python."""

from __future__ import annotations

from harness.cli import main

if __name__ == "__main__":
    main()
