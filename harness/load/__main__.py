"""`python -m harness.load`: the load's process. With --stdio the controller speaks to it in JSON lines (see orders.py),
with --worker it is a worker that such a process has started.

It ends when its standard input does, so that it outlives no controller; Ctrl-C in a terminal is the controller's
business. Standard output belongs to the answers alone: what a scenario file prints goes to standard error.
"""

from __future__ import annotations

import os
import signal

# First of all, for the imports take a while.
signal.signal(signal.SIGINT, signal.SIG_IGN)
# Nothing here needs gevent's patches: all I/O is the bridge's.
os.environ["LOCUST_SKIP_MONKEY_PATCH"] = "1"

import argparse  # noqa: E402
import gc  # noqa: E402
import sys  # noqa: E402

from gevent.fileobject import FileObject  # type: ignore[import-untyped]  # noqa: E402

from harness.load.library import Library  # noqa: E402
from harness.load.serving import serve  # noqa: E402
from harness.load.worker import run  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m harness.load", description=(__doc__ or "").splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--stdio", action="store_true", help="take orders on standard input")
    what.add_argument("--worker", metavar="HOST:PORT", help="be a worker of the master there")
    options = parser.parse_args()
    # What is imported stays: the collector need not look through it again and again while sessions come and go.
    gc.freeze()
    del sys.argv[1:]  # locust's web UI would take them for its own
    if options.worker:
        host, _, port = options.worker.rpartition(":")
        return run(host, int(port), until_input_ends=True)
    load = Library()
    with os.fdopen(os.dup(1), "wb") as answers, FileObject(0, "rb", closefd=False) as orders:
        os.dup2(2, 1)
        try:
            serve(orders, answers, load)
        finally:
            load.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
