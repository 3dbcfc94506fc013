"""`python -m mta_under_test.defects NAME[:P] ... [--seed N] -- SMTPD-ARGUMENTS`: an smtpd with bugs re-opened."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mta_under_test import smtpd
from mta_under_test.defects import DefectError, parse, reopened
from mta_under_test.processes.parent.parent import BIRTHS


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m mta_under_test.defects")
    parser.add_argument("defect", nargs="*", metavar="NAME[:P]")
    parser.add_argument("--seed", type=int, default=0, help="of the probabilities [%(default)s]")
    split = argv.index("--") if "--" in argv else len(argv)
    options = parser.parse_args(argv[:split])
    try:
        seeded = [parse(text) for text in options.defect]
    except DefectError as error:
        print(error, file=sys.stderr)
        return 2
    return smtpd.main(argv[split + 1 :], reopened(dict(BIRTHS), seeded, options.seed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
