"""`python -m harness.load --stdio`: the load's process. The controller speaks to it in JSON lines (see orders.py).

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
from typing import BinaryIO  # noqa: E402

import gevent  # type: ignore[import-untyped]  # noqa: E402
import msgspec  # noqa: E402
from gevent.fileobject import FileObject  # type: ignore[import-untyped]  # noqa: E402
from gevent.queue import SimpleQueue  # type: ignore[import-untyped]  # noqa: E402

from harness.load.doses import Doses, LoadStuck  # noqa: E402
from harness.load.orders import Answer, Failed, GiveDose, Ready, Start, decode_order, line  # noqa: E402
from harness.scenario import ScenarioError  # noqa: E402


class _ControllerGone(Exception):
    """Standard input has ended: nobody waits for an answer."""


def serve(orders: BinaryIO, answers: BinaryIO) -> None:
    """Carry out orders, one at a time, until there can be no more."""
    lines: SimpleQueue[bytes] = SimpleQueue()
    worker = gevent.getcurrent()

    def read() -> None:
        for order in orders:
            lines.put(order)
        gevent.kill(worker, _ControllerGone)  # in the middle of a dose, too

    reader = gevent.spawn(read)
    load: Doses | None = None
    try:
        while True:
            order = lines.get()
            answer: Answer
            try:
                match decode_order(order):
                    case Start() as start:
                        load = Doses(start)
                        answer = Ready(start.users)
                    case GiveDose() as dose if load is not None:
                        answer = load.give_dose(dose)
                    case GiveDose():
                        answer = Failed("a dose was ordered before the start")
            except (ScenarioError, LoadStuck, ValueError, msgspec.MsgspecError) as error:
                answer = Failed(str(error))
            answers.write(line(answer))
            answers.flush()
    except _ControllerGone:
        return
    finally:
        reader.kill()
        if load is not None:
            load.stop()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m harness.load", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stdio", action="store_true", required=True, help="take orders on standard input")
    parser.parse_args()
    with os.fdopen(os.dup(1), "wb") as answers, FileObject(0, "rb", closefd=False) as orders:
        os.dup2(2, 1)
        serve(orders, answers)


if __name__ == "__main__":
    main()
