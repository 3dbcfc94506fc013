"""Tests of this repository: a skip that CI did not expect is a failure."""

from __future__ import annotations

import os
import signal

import pytest

# A shell that starts the tests in the background has SIGINT ignored in them, and some tests interrupt themselves.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Reasons (their beginnings) for which a test may be skipped in CI: what no package brings, and a container may lack.
EXPECTED_SKIPS: tuple[str, ...] = (
    "no memory cgroup may be made here",
    "needs a mount namespace: ",
    "network namespaces:",
)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for reason in _unexpected(terminalreporter):
        terminalreporter.write_line(f"unexpected skip in CI: {reason}", red=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and session.exitstatus == 0 and _unexpected(reporter):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _unexpected(reporter: pytest.TerminalReporter) -> list[str]:
    if not os.environ.get("CI"):
        return []
    skipped = [report.longrepr for report in reporter.stats.get("skipped", [])]
    reasons = [str(longrepr[2]).removeprefix("Skipped: ") for longrepr in skipped if isinstance(longrepr, tuple)]
    return [reason for reason in reasons if not reason.startswith(EXPECTED_SKIPS)]
