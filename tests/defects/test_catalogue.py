"""The catalogue: every defect tells its whole story, and is asked for by a name that may be misspelt."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness import scenario as scenarios
from mta_under_test import defects
from mta_under_test.defects.__main__ import main
from mta_under_test.processes.parent.parent import BIRTHS
from reports.record import Resource

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", defects.names())
def test_every_defect_is_told_completely(name: str) -> None:
    defect = defects.load(name)
    assert defect.name == name
    assert defect.role in BIRTHS
    assert set(defect.resources) <= set(Resource.__args__)  # type: ignore[attr-defined]
    assert bool(defect.resources) == (defect.difficulty != "innocent")
    assert scenarios.load(defect.scenario)
    assert all((defect.trigger, defect.source, defect.story))


# An overlay changes the classes of the process that calls it: each is laid over in a child of its own.
LAID_OVER = """
import os, sys, traceback
from mta_under_test import defects
from mta_under_test.processes.parent import parent  # and by it, once for all of them, every other process

for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        try:
            defects.load(name).overlay(lambda: True)
            os._exit(0)
        except Exception:
            print(name, traceback.format_exc(), file=sys.stderr, flush=True)
        os._exit(1)
    if os.waitpid(child, 0)[1] == 0:
        print(name)
"""


@pytest.fixture(scope="module")
def laid_over() -> subprocess.CompletedProcess[str]:
    """Prints the names of the defects whose overlay finds what it replaces."""
    command = [sys.executable, "-c", LAID_OVER, *defects.names()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.mark.parametrize("name", defects.names())
def test_what_a_defect_replaces_is_there(name: str, laid_over: subprocess.CompletedProcess[str]) -> None:
    assert name in laid_over.stdout.splitlines(), laid_over.stderr


@pytest.mark.parametrize("name", [each.name for each in defects.every().values() if each.opener])
def test_where_it_is_opened_is_there(name: str) -> None:
    for place in defects.load(name).opener.split():
        path, _, function = place.partition(":")
        source = (ROOT / path).read_text()
        assert not function or re.search(rf"def {function}\b", source)


def test_a_defect_changes_its_own_process_and_no_other() -> None:
    changed = defects.reopened(dict(BIRTHS), [defects.parse("transfer-fd-leak")], seed=1)
    assert {role for role in BIRTHS if changed[role] is not BIRTHS[role]} == {"transfer"}


@pytest.mark.parametrize(
    ("text", "written"),
    [("transfer-fd-leak", "transfer-fd-leak"), ("transfer_fd_leak:0.02", "transfer-fd-leak:0.02")],
)
def test_names_and_probabilities(text: str, written: str) -> None:
    assert str(defects.parse(text)) == written


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("transfer-fd-lek", r"did you mean transfer-fd-leak\?"),
        ("nothing", "There is: "),
        ("transfer-fd-leak:0", "above 0 and at most 1"),
        ("transfer-fd-leak:often", "above 0 and at most 1"),
    ],
)
def test_a_wrong_name_or_probability_is_explained(text: str, complaint: str) -> None:
    with pytest.raises(defects.DefectError, match=complaint):
        defects.parse(text)


def test_the_launcher_refuses_an_unknown_defect_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nothing", "--", "-n"]) == 2
    assert "no defect called 'nothing'" in capsys.readouterr().err
