"""The door: locust's options and events on one side, the controller's orders on the other.

Owns: when a run begins and ends with locust's test, which users hold its sessions, and locust's exit status. In a
worker: only that its users hold what the master gives them.
"""

from __future__ import annotations

import logging
import shlex
import signal
from functools import cache
from pathlib import Path
from typing import Any

import gevent  # type: ignore[import-untyped]
from locust import events
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import STATE_RUNNING, MasterRunner, WorkerRunner

from harness.load import fleet
from harness.load.doses import DoseGiver, Doses
from harness.load.fleet import Fleet
from harness.load.orders import Ready, Start
from harness.load.sessions import Holder, LoadStuck, Sessions
from harness.load.user import MailUser, address_of
from harness.locust_plugin.controller import Controller
from harness.scenario import load

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
INCONCLUSIVE = 3
LOOK_S = 0.1
OPTIONS = (
    ("target", "NAME", "what is under test, as `seatbelt list targets` has it: locust's test is then a whole run"),
    ("attach", "PID|:PORT|UNIT", "a server that runs already, as the target"),
    (
        "options",
        "'OPTIONS'",
        "more options of `seatbelt run`, as one word: '--defect transfer-fd-leak --html run.html'",
    ),
)


class Door(DoseGiver):
    """Of one locust that is in charge: alone, or the master of workers. A load (harness.load.serving.Load), and what
    the page is about (harness.load.page.Driven)."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        runner = environment.runner
        self.sessions = Sessions()
        self._holder: Holder = Fleet(runner) if isinstance(runner, MasterRunner) else self.sessions
        self._controller: Controller | None = None
        self._stopped = False  # locust's test, since it began

    # ---- locust's test

    def begin(self) -> None:
        """A test starts, and with it a run."""
        if self._controller is not None:
            self._controller.wait()  # of the test before: it may still be judging
            self._controller.forget()
        self._doses = None
        self._stopped = False
        (scenario,) = self._environment.parsed_locustfiles or [""]
        self._controller = Controller(scenario, arguments(self._environment), self, self._ended)

    def stopping(self) -> None:
        """The test is being stopped: no session shall be cut off that has begun."""
        self._stopped = True
        if self._doses is not None and self._controller is not None and not self._controller.is_over:
            self._doses.finish()

    def leave(self) -> None:
        """Locust ends. Without a stop before it, it was told to by Ctrl-C or a signal."""
        if self._controller is None:
            options = self._environment.parsed_options
            if options is not None and options.headless and is_wanted(self._environment):
                self._environment.process_exit_code = INCONCLUSIVE  # no test has begun; that proves nothing
            return
        if not self._controller.is_over:
            runner = self._environment.runner
            if runner is not None and runner.state == STATE_RUNNING:
                self._controller.interrupt()
            log.info("Waiting for Seatbelt's verdict")
            self._controller.wait()
        # Also when it is over: `_ended` may not have had its turn.
        self._environment.process_exit_code = self._controller.status
        self._controller.forget()

    def _ended(self, status: int) -> None:
        """The verdict is known, and the load needed no more."""
        self._environment.process_exit_code = status
        options, runner = self._environment.parsed_options, self._environment.runner
        if runner is None:
            return
        if options is not None and options.headless:
            runner.quit()
        else:
            runner.stop()

    # ---- the controller's orders

    def start(self, order: Start) -> Ready:
        runner = self._environment.runner
        assert runner is not None
        while runner.state != STATE_RUNNING or not runner.user_count:
            if self._stopped:
                raise LoadStuck("locust's test was stopped before the target had started: give it more time")
            gevent.sleep(LOOK_S)
        self._doses = Doses(load(order.scenario), order.seed, (order.host, order.port), self._holder)
        return Ready()

    # ---- the page

    @property
    def board(self) -> Path | None:
        return self._controller.board if self._controller is not None else None

    @property
    def state(self) -> str:
        if self._controller is None:
            if is_wanted(self._environment):
                return "No run yet: start a test in Locust's page."
            return "No target is known: start locust with --seatbelt-target or --seatbelt-attach."
        if self._controller.is_over:
            return f"The run could not begin: {self._controller.last_words}"
        return "The target is being started." if self._doses is None else "The run is under way."


def is_wanted(environment: Environment) -> bool:
    """Whether a target is known. A worker has it from its master."""
    return any(getattr(environment.parsed_options, f"seatbelt_{name}", None) for name, *_ in OPTIONS)


def arguments(environment: Environment) -> list[str]:
    """For `seatbelt run`. Raises ValueError for a quotation that does not end."""
    options = environment.parsed_options
    assert options is not None, "a target is known by an option"
    words = [f"--{name}={value}" for name in ("target", "attach") if (value := getattr(options, f"seatbelt_{name}"))]
    return words + shlex.split(options.seatbelt_options or "")


# ---- locust's events

_doors: dict[int, Door] = {}  # by environment; locust's CLI has one


@cache
def listen() -> None:
    """To locust; once in a process, however many scenario files it reads."""
    events.init_command_line_parser.add_listener(_add_options)  # type: ignore[no-untyped-call]
    events.init.add_listener(_open)  # type: ignore[no-untyped-call]
    events.test_stopping.add_listener(_stopping)  # type: ignore[no-untyped-call]
    events.quitting.add_listener(_quitting)  # type: ignore[no-untyped-call]


def _add_options(parser: LocustArgumentParser, **_: Any) -> None:
    for name, metavar, text in OPTIONS:
        option = f"--seatbelt-{name}"
        variable = f"SEATBELT_{name.upper()}"
        parser.add_argument(option, metavar=metavar, env_var=variable, help=text, include_in_web_ui=False)
    parser.set_defaults(web_host=LOOPBACK)  # whoever may press Start can send mail; --web-host opens it to others


def _open(environment: Environment, **_: Any) -> None:
    users = [user for user in environment.user_classes if issubclass(user, MailUser)]
    if not users:
        return
    _check(environment, users)
    if isinstance(environment.runner, WorkerRunner):
        sessions = Sessions()
        fleet.serve(environment.runner, sessions)
    else:
        door = _doors[id(environment)] = Door(environment)
        sessions = door.sessions
        if environment.web_ui is not None:
            from harness.load import page

            page.attach(environment.web_ui, door)

    def test_starts(environment: Environment, **_: Any) -> None:
        # Not before: a worker learns from its master's first message whether there is a target.
        if not is_wanted(environment):
            return
        for user in users:
            user.source = sessions
        if (door := _doors.get(id(environment))) is not None:
            door.begin()

    environment.events.test_start.add_listener(test_starts)  # type: ignore[no-untyped-call]


def _check(environment: Environment, users: list[type[MailUser]]) -> None:
    """What cannot work ends locust at once, rather than every user with a traceback."""
    options = environment.parsed_options
    if options is None or isinstance(environment.runner, WorkerRunner):
        return
    if is_wanted(environment):
        if len(environment.user_classes) > 1 or len(environment.parsed_locustfiles or []) != 1:
            raise SystemExit("seatbelt: a run is of one scenario: give one file to -f, without other users in it")
        try:
            arguments(environment)
        except ValueError as error:
            raise SystemExit(f"seatbelt: --seatbelt-options: {error}") from error
        gevent.signal_handler(signal.SIGINT, _interrupted)
    elif options.headless or environment.host:
        try:
            address_of(environment.host or "")
        except ValueError as error:
            raise SystemExit(str(error)) from None


def _interrupted() -> None:
    """Ctrl-C is for the main greenlet. Left to Python it is raised in whichever one runs, and one that waits for the
    controller's end may take it along: locust would then never hear of it.
    """
    gevent.get_hub().handle_system_error(KeyboardInterrupt, KeyboardInterrupt())


def _stopping(environment: Environment, **_: Any) -> None:
    if (door := _doors.get(id(environment))) is not None:
        door.stopping()


def _quitting(environment: Environment, **_: Any) -> None:
    if (door := _doors.pop(id(environment), None)) is not None:
        door.leave()
