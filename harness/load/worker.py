"""A worker: locust users that hold the sessions that a master on another host gives them (`seatbelt worker`).

Owns: its users and its connection to the master. Never: plans a session, or judges. It ends with its master.
"""

from __future__ import annotations

import sys

import gevent  # type: ignore[import-untyped]
from gevent.fileobject import FileObject  # type: ignore[import-untyped]
from locust import events
from locust.env import Environment
from locust.runners import WorkerRunner

from harness.load import fleet
from harness.load.library import FLEET_USER
from harness.load.sessions import Sessions
from harness.load.user import user_of

ENDED, USAGE, LEFT = 0, 2, 3  # by the master's word; wrong address; before its master did


def run(host: str, port: int, *, until_input_ends: bool = False) -> int:
    """Until the master says so, or Ctrl-C, or, if wished, the end of standard input. Gives the exit status."""
    sessions = Sessions()
    environment = Environment(user_classes=[user_of(FLEET_USER, sessions)], events=events)
    print(f"waiting for the master at {host}:{port}; Ctrl-C ends it", file=sys.stderr, flush=True)
    try:
        runner = environment.create_worker_runner(host, port)  # tries for five minutes
    except OSError:
        print(f"seatbelt worker: nobody answers at {host}:{port}; see that the master runs", file=sys.stderr)
        return USAGE
    except (KeyboardInterrupt, SystemExit):  # locust's own answer to Ctrl-C at this point
        return LEFT
    print("holding sessions for the master", file=sys.stderr, flush=True)
    fleet.serve(runner, sessions)
    if until_input_ends:
        gevent.spawn(_leave_with_input, environment, runner)
    try:
        runner.greenlet.join()
    except KeyboardInterrupt:
        _leave(environment, runner)
        return LEFT
    return ENDED


def _leave(environment: Environment, runner: WorkerRunner) -> None:
    environment.events.quitting.fire(environment=environment)  # type: ignore[no-untyped-call]  # tells the master
    runner.quit()


def _leave_with_input(environment: Environment, runner: WorkerRunner) -> None:
    with FileObject(0, "rb", closefd=False) as standard_input:
        standard_input.read()
    _leave(environment, runner)
