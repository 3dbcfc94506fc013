"""pytest plugin: `leak_check`, `mta`, `remote_mx`, `target`, and the marker `leakcheck`; docs/pytest.md tells how.

Every pytest of an environment that has Seatbelt imports this module: it imports nothing of ours before a test asks.
A finding fails its test with the report's text and no traceback, since none of ours would help. Whatever is started has
a free port and a directory of its own: tests may run in parallel.

Owns: what a test sees. Never: judges.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, cast

import pytest

if TYPE_CHECKING:
    from harness.rig import RefusingMX
    from harness.run.plan import Profile
    from harness.targets import Target
    from harness.targets.choice import MakeTarget
    from harness.targets.embedded import Embedded
    from reports.record import RunRecord

MARKER = "leakcheck"
RECORD, CHECK = "leak_record", "leak_check"  # fixtures
_SUFFIXES = {"json": "json", "html": "html", "junit": "xml"}
_KEPT: pytest.StashKey[int] = pytest.StashKey()  # reports of a test so far


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("seatbelt", "resource leaks")
    group.addoption(
        "--seatbelt-report",
        metavar="DIR",
        help="write the record (JSON), the page (HTML) and JUnit XML of every check there",
    )
    group.addoption("--seatbelt-target", metavar="NAME", help="of the fixture `target` and of marked tests [embedded]")
    group.addoption("--seatbelt-profile", metavar="NAME", help="how long a check looks: quick, standard or soak")
    group.addoption(
        "--seatbelt-trace",
        action="store_true",
        help="`mta`, `target` and servers with `leak_check.environment` tell where they opened what they keep; slower",
    )
    parser.addini("seatbelt_target", "as --seatbelt-target", default="embedded")
    parser.addini("seatbelt_profile", "as --seatbelt-profile", default="quick")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        f"{MARKER}(scenario='rejected-reuse', target=…, defect=…, mx=…, command=…, verdict='clean'): a run of Seatbelt "
        f"must come to that verdict; the test gets its record as the fixture `{RECORD}`. Without a scenario on a test "
        "that takes `mta` or `target`: what these are set up with.",
    )


def pytest_itemcollected(item: pytest.Item) -> None:
    """A marked test need not name the fixture."""
    if isinstance(item, pytest.Function) and (marker := item.get_closest_marker(MARKER)) is not None:
        try:
            asked = _Asked.of(marker)
        except TypeError as error:
            raise pytest.UsageError(f"{item.nodeid}: {error}") from None
        if RECORD not in item.fixturenames and (asked.scenario or not {"mta", "target"} & set(item.fixturenames)):
            item.fixturenames = [*item.fixturenames, RECORD]  # the list itself is that of all parameters' tests


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    """After the body, which may have assertions of its own about the record."""
    result = yield
    if RECORD in pyfuncitem.funcargs:
        record = cast("RunRecord", pyfuncitem.funcargs[RECORD])
        _settle(record, _Asked.of(pyfuncitem.get_closest_marker(MARKER)).verdict)
    check = pyfuncitem.funcargs.get(CHECK)
    if isinstance(check, Checks) and check.unfinished:
        fail(f"a leak check ended before its last dose, so there is no verdict: {check.unfinished}")
    return result


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    directory = _report_directory(config)
    if directory is not None and directory.is_dir():
        judged = len(list(directory.glob("*.html")))
        terminalreporter.write_line(f"seatbelt: reports of {judged} check{'s' * (judged != 1)} in {directory}")


# ---- fixtures


@pytest.fixture
def leak_check(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checks:
    """Do something many times, and fail if something is kept: `leak_check(function)`, as `benchmark(function)`."""
    return Checks(request, tmp_path_factory)


@pytest.fixture
def remote_mx(request: pytest.FixtureRequest) -> Iterator[RefusingMX]:
    """The remote MX that `mta` and `target` relay to; `remote_mx.policy = "rcpt=550"` makes it refuse."""
    from harness.remote_mx.process import RemoteMXError
    from harness.rig import refusing_mx

    try:
        with refusing_mx(_asked(request).mx or "") as mx:
            yield mx
    except RemoteMXError as error:
        fail(error)


@pytest.fixture
def mta(
    request: pytest.FixtureRequest, remote_mx: RefusingMX, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Embedded]:
    """The embedded mail server, running: `address`, `smtpctl("show", "queue")`, `counters()`, `directory`."""
    make = _maker("embedded", _asked(request))
    yield from _started(request, make, remote_mx, tmp_path_factory)  # type: ignore[misc]


@pytest.fixture
def target(
    request: pytest.FixtureRequest, remote_mx: RefusingMX, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Target]:
    """The mail server that the marker, `--seatbelt-target` or `seatbelt_target` names, running."""
    asked = _asked(request)
    yield from _started(request, _maker(_target_name(request.config, asked), asked), remote_mx, tmp_path_factory)


@pytest.fixture
def leak_record(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """The record of the run that the test's marker asks for."""
    from harness.load.process import LoadError
    from harness.remote_mx.process import RemoteMXError
    from harness.run.attribution import run_and_explain
    from harness.run.design import Design, Options
    from harness.scenario import ScenarioError
    from harness.scenario import load as load_scenario
    from harness.targets import TargetError

    asked = _asked(request)
    try:
        scenario = load_scenario(asked.scenario or "rejected-reuse")
        make = _maker(_target_name(request.config, asked), asked, needs=scenario.needs, nofile=scenario.nofile)
        options = Options(profile=_profile(request.config), refuses=asked.mx)
        record = run_and_explain(Design(scenario, make, _directory(tmp_path_factory), options))
    except (ScenarioError, TargetError, LoadError, RemoteMXError) as error:
        fail(error)
    record.command = f"pytest {shlex.quote(request.node.nodeid)}"
    _keep(request, record)
    return record


# ---- what leak_check is


class Checks:
    """`leak_check` of one test: everything that is checked in it."""

    def __init__(self, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> None:
        self._request = request
        self._tmp_path_factory = tmp_path_factory
        self._agent_directory: Path | None = None
        self._under_way: list[str] = []

    def __call__(self, work: Callable[[], object], *, of: object = None, **options: Any) -> RunRecord:
        """Call `work` in doses, some hundred times; the test fails if something is kept. Returns the record.

        `of`: what may not keep anything: this process (the default), a pid, a process with `.pid`, or a target.
        `options`: as of `turns`.
        """
        for units in self.doses(of=of, **options):
            for _ in range(units):
                work()
        return self.record

    def turns(self, *, of: object = None, **options: Any) -> Iterator[int]:
        """``for turn in leak_check.turns(of=server): …``: each turn is one unit of work. After the last, the verdict.

        `unit`: what a turn is, in the singular ("call"); `first_dose`: units of it (20); `memory`: whether memory is
        judged (where objects can be counted); `profile`: how long to look; `verdict`: what must come out ("clean").
        """
        done = 0
        for units in self.doses(of=of, **options):
            yield from range(done, done + units)
            done += units

    def doses(
        self,
        *,
        of: object = None,
        unit: str = "call",
        first_dose: int = 20,
        memory: bool | None = None,
        profile: str | None = None,
        verdict: str = "clean",
    ) -> Iterator[int]:
        """``for units in leak_check.doses(of=server): …``: as `turns`, for work that is done in parallel."""
        from harness.leak_check import LeakCheck, watched
        from harness.targets import TargetError

        request = self._request
        try:
            target = watched(of, self._agent_directory)
            check = LeakCheck(
                target,
                request.node.nodeid,
                unit=unit,
                profile=_profile(request.config, profile),
                first_dose=first_dose,
                memory=memory,
                command=f"pytest {shlex.quote(request.node.nodeid)}",
                traced=_is_traced(request.config) and target.agent_directory is not None,
            )
            self._under_way.append(target.version)
            yield from check.doses()
        except TargetError as error:
            fail(error)
        self._under_way.remove(target.version)
        self.record = check.record
        if check.record.findings and not check.record.attribution and target.agent_directory is not None:
            check.record.attribution = "--seatbelt-trace tells where it was opened or made"
        _keep(request, check.record)
        _settle(check.record, verdict)

    @property
    def environment(self) -> dict[str, str]:
        """To start a server with: a Python in it counts its objects, so that its memory is judged by them."""
        from harness import agent

        if self._agent_directory is None:
            self._agent_directory = _directory(self._tmp_path_factory)
            self._agent_directory.chmod(0o1777)  # the server's processes may become another user
        return agent.environment(self._agent_directory, traced=bool(self._request.config.getoption("--seatbelt-trace")))

    @property
    def unfinished(self) -> str:
        return ", ".join(self._under_way)


# ---- settings


class _Asked(NamedTuple):
    """What a marker says. `of` raises TypeError for what none can say."""

    scenario: str | None = None
    target: str | None = None
    defect: str | tuple[str, ...] = ()
    mx: str | None = None
    command: str = ""
    verdict: str = "clean"
    server: str = ""

    @classmethod
    def of(cls, marker: pytest.Mark | None) -> _Asked:
        if marker is None:
            return cls()
        try:
            return cls(*marker.args, **marker.kwargs)
        except TypeError:
            known = ", ".join(cls._fields)
            told = ", ".join([*map(repr, marker.args), *marker.kwargs])
            raise TypeError(f"@pytest.mark.{MARKER}({told}): it knows {known}") from None


def _asked(request: pytest.FixtureRequest) -> _Asked:
    return _Asked.of(request.node.get_closest_marker(MARKER))


def _target_name(config: pytest.Config, asked: _Asked) -> str | None:
    if asked.target or asked.command or asked.server:
        return asked.target
    return str(config.getoption("--seatbelt-target") or config.getini("seatbelt_target"))


def _is_traced(config: pytest.Config) -> bool:
    return bool(config.getoption("--seatbelt-trace"))


def _profile(config: pytest.Config, name: str | None = None) -> Profile:
    from harness.run.plan import PROFILES

    name = name or config.getoption("--seatbelt-profile") or str(config.getini("seatbelt_profile"))
    if name not in PROFILES:
        fail(f"no profile called {name!r}; there is {', '.join(PROFILES)}")
    return PROFILES[name]


def _maker(name: str | None, asked: _Asked, **settings: Any) -> MakeTarget:
    from harness.targets import TargetError
    from harness.targets.choice import Settings, choose

    defects = (asked.defect,) if isinstance(asked.defect, str) else tuple(asked.defect)
    try:
        return choose(name, Settings(seed=1, defects=defects, command=asked.command, server=asked.server, **settings))
    except TargetError as error:
        fail(error)


def _started(
    request: pytest.FixtureRequest, make: MakeTarget, mx: RefusingMX, factory: pytest.TempPathFactory
) -> Iterator[Target]:
    from harness.rig import running
    from harness.targets import TargetError

    try:
        with running(make, _directory(factory), mx, traced=_is_traced(request.config)) as target:
            yield target
    except TargetError as error:
        fail(error)


def _directory(factory: pytest.TempPathFactory) -> Path:
    return factory.mktemp("seatbelt")


# ---- verdicts


def _settle(record: RunRecord, expected: str) -> None:
    """The test fails, with the report, unless the verdict is as expected."""
    from reports import terminal

    if record.verdict != expected:
        text = terminal.as_text(record, columns=terminal.UNFOLDED)
        fail(text if expected == "clean" else f"expected: {expected}\n{text}")


def fail(reason: object) -> NoReturn:
    """Nothing of ours in the test's report but the reason."""
    raise pytest.fail.Exception(str(reason).rstrip(), pytrace=False) from None


def _report_directory(config: pytest.Config) -> Path | None:
    chosen = config.getoption("--seatbelt-report")
    return config.invocation_params.dir / chosen if chosen else None


def _keep(request: pytest.FixtureRequest, record: RunRecord) -> None:
    """With --seatbelt-report: the record and its reports, under the test's name."""
    directory = _report_directory(request.config)
    if directory is None:
        return
    from harness.commands import reporting

    directory.mkdir(parents=True, exist_ok=True)
    number = request.node.stash.setdefault(_KEPT, 0) + 1
    request.node.stash[_KEPT] = number
    name = re.sub(r"[^\w.-]+", "-", request.node.nodeid).strip("-") + (f"-{number}" if number > 1 else "")
    paths = {kind: directory / f"{name}.{suffix}" for kind, suffix in _SUFFIXES.items()}
    reporting.write(record, reporting.Files(**paths))
    request.node.user_properties.append(("seatbelt", str(paths["html"])))
