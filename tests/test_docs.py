"""What the documents name is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
_NAMED = re.compile(r"`([^`]+)`")


def rows() -> Iterator[tuple[str, str, str]]:
    for line in (ROOT / "docs" / "mta.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) == 3 and cells[0] not in ("feature", "---"):
            yield cells[0], cells[1], cells[2]


ROWS = list(rows())


def paths(cell: str, root: str) -> Iterator[str]:
    """Files in a cell; one without a folder stands in that of the one before it."""
    folder = ""
    for name in _NAMED.findall(cell):
        if name.startswith("benchmarks/"):
            yield name
        elif name.endswith((".py", ".smtp", "/")):
            folder = name.rpartition("/")[0] or folder
            found = name if "/" in name or not folder else f"{folder}/{name}"
            yield f"{root}/{found}"


@pytest.mark.parametrize(("feature", "where", "test"), ROWS, ids=[row[0][:50] for row in ROWS])
def test_every_feature_names_where_it_is_and_its_test(feature: str, where: str, test: str) -> None:
    if "deliberately not:" in where and not test:
        return
    tests = list(paths(test, "tests"))
    assert tests, f"{feature}: no test"
    for path in tests + [path for path in paths(where, "mta_under_test") if "deliberately" not in where]:
        assert list(ROOT.glob(path.rstrip("/"))), f"{feature}: {path} is not there"


def test_there_is_no_not_yet() -> None:
    assert not re.search("not yet|todo", (ROOT / "docs" / "mta.md").read_text(), re.IGNORECASE)
