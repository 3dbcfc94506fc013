"""The load in a process of its own: locust in library mode, with users here or in workers.

Owns: the environment, its runner, the workers that were started here, and the web UI. Never: reads or writes the
controller's pipes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gevent  # type: ignore[import-untyped]
from locust import events
from locust.env import Environment
from locust.exception import RPCError
from locust.runners import MasterRunner, Runner

from harness.load.doses import DoseGiver, Doses
from harness.load.fleet import Fleet
from harness.load.orders import FleetOrder, Ready, Start, WebOrder
from harness.load.sessions import Holder, LoadStuck, Sessions
from harness.load.user import Unread, user_of
from harness.scenario import load

FLEET_TIMEOUT_S = 120.0  # for all workers to come
LOOK_S = 0.1
STOP_TIMEOUT_S = 10.0
MOST_SPAWNED_A_SECOND = 100  # by a runner; locust warns of more
FLEET_USER = "fleet"  # the user class has the same name in master and workers


class Library(DoseGiver):
    """One load (harness.load.serving.Load)."""

    def __init__(self) -> None:
        self._running = ExitStack()

    def start(self, order: Start) -> Ready:
        if self._doses is not None:
            raise ValueError("a second start")
        scenario = load(order.scenario)
        holder: Holder
        if order.fleet is None:
            holder = sessions = Sessions()
            environment = Environment(
                user_classes=[user_of(scenario.name, sessions)], events=events, host=_url(order.host, order.port)
            )
            if order.web is None:
                events.request = Unread(events.request)
            runner: Runner = environment.create_local_runner()
            self._running.callback(runner.quit)
        else:
            # The workers have users of the same name, and these are never spawned.
            environment = Environment(user_classes=[user_of(FLEET_USER, Sessions())], events=events)
            runner = self._fleet(environment, order.fleet)
            holder = Fleet(runner)
        # Locust's own events: the bridge opens and closes by them, here as in a plain locustfile.
        runner.start(order.users, spawn_rate=order.users if order.fleet is None else MOST_SPAWNED_A_SECOND)
        if runner.spawning_greenlet is not None:
            runner.spawning_greenlet.join()
        if runner.user_count != order.users:
            raise LoadStuck(f"{runner.user_count} of {order.users} users started")
        self._doses = Doses(scenario, order.seed, (order.host, order.port), holder)
        return Ready(self._page(environment, order.web) if order.web is not None else "")

    def stop(self) -> None:
        """Cut off what is under way, close its connections, end the users and the workers that were started here."""
        self._running.close()

    # ---- what the page asks (harness.load.page.Driven)

    board: Path | None = None
    state = "The run has not begun."

    def _page(self, environment: Environment, order: WebOrder) -> str:
        """Serve it; returns its URL."""
        from harness.load import page  # late: most loads have none

        self.board = Path(order.board)
        web_ui = environment.create_web_ui(order.host, order.port, delayed_start=True)
        page.attach(web_ui, self)
        web_ui.start()  # type: ignore[no-untyped-call]
        assert web_ui.greenlet is not None
        while web_ui.server is None or not web_ui.server.started:
            if web_ui.greenlet.ready():
                where = f"{order.host}:{order.port}"
                raise LoadStuck(f"{where}: no page there: {web_ui.greenlet.exception}; choose with --web-port")
            gevent.sleep(0.01)
        self._running.callback(web_ui.stop)
        events.test_stopping.add_listener(self._stopping)  # type: ignore[no-untyped-call]
        return f"http://{order.host}:{web_ui.server.server_port}/seatbelt"

    def _stopping(self, **_: Any) -> None:
        """Somebody has pressed locust's own Stop, or the load ends."""
        if self._doses is not None:
            self._doses.finish()

    # ---- workers

    def _fleet(self, environment: Environment, order: FleetOrder) -> MasterRunner:
        """The master of all workers that were ordered, when they have come."""
        try:
            runner = environment.create_master_runner(order.host, order.port)
        except RPCError as error:
            raise LoadStuck(f"{order.host}:{order.port}: workers cannot be listened for: {error}") from error
        here: list[subprocess.Popen[bytes]] = []
        self._running.callback(_end, here)
        self._running.callback(runner.quit)  # first: it tells the workers to end
        master = f"{order.host}:{runner.server.port}"
        if order.local:
            here += [_local_worker(master) for _ in range(order.workers)]
        deadline = time.monotonic() + FLEET_TIMEOUT_S
        while len(runner.clients.ready) < order.workers:
            for worker in here:
                if worker.poll() is not None:
                    raise LoadStuck(f"a worker ended with status {worker.returncode} before it was ready")
            if time.monotonic() > deadline:
                raise LoadStuck(
                    f"{len(runner.clients.ready)} of {order.workers} workers came within {FLEET_TIMEOUT_S:.0f} s; "
                    f"start each with `seatbelt worker --master {master}`"
                )
            gevent.sleep(LOOK_S)
        return runner


def _local_worker(master: str) -> subprocess.Popen[bytes]:
    """It ends with its standard input, and so outlives no load."""
    return subprocess.Popen(
        [sys.executable, "-m", "harness.load", "--worker", master],
        stdin=subprocess.PIPE,
        stdout=sys.stderr.fileno(),
        env={**os.environ},
    )


def _end(workers: list[subprocess.Popen[bytes]]) -> None:
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.close()
    deadline = time.monotonic() + STOP_TIMEOUT_S
    for worker in workers:
        try:
            worker.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def _url(host: str, port: int) -> str:
    return f"smtp://[{host}]:{port}" if ":" in host else f"smtp://{host}:{port}"
