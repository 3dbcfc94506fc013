"""Exit statuses of the commands: 0 clean · 1 a finding · 2 usage or configuration · 3 inconclusive."""

from __future__ import annotations

import sys

CLEAN, FINDING, USAGE, INCONCLUSIVE = 0, 1, 2, 3
OF_VERDICT = {"clean": CLEAN, "leak": FINDING, "inconclusive": INCONCLUSIVE}


def usage_error(text: object) -> int:
    """One line that says what is wrong, and the status."""
    print(f"seatbelt: {text}", file=sys.stderr)
    return USAGE
