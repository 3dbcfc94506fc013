"""What the documents name is there, and their examples do what they say."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from harness import cli
from reports.record import schema

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


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_the_lines_of_the_sample_report_are_where_they_were() -> None:
    told = re.findall(r"(mta_under_test/\S+\.py):(\d+) in (\w+)", (ROOT / "README.md").read_text())
    assert told
    for path, line, name in told:
        spans = [(each.lineno, each.end_lineno or 0) for each in functions(ROOT / path) if each.name == name]
        assert any(first <= int(line) <= last for first, last in spans), f"README.md: {path}:{line} is not in {name}"


# ---- examples

_FENCE = re.compile(
    r"(?:<!-- status (?P<status>\d) -->\n)?^```(?P<language>\w*)(?: (?P<file>\S+))?\n(?P<text>.*?)^```$", re.M | re.S
)
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
EXECUTED = [path.name for path in DOCUMENTS if "```sh\n" in path.read_text()]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", EXECUTED)
def test_examples_do_what_the_document_says(name: str, tmp_path: Path) -> None:
    """Files are written as they stand there; shell blocks are run in order, and end as the comment before them says."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for block in _FENCE.finditer((ROOT / "docs" / name).read_text()):
        if block["file"]:
            (tmp_path / block["file"]).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / block["file"]).write_text(block["text"])
        elif block["language"] == "sh":
            done = subprocess.run(
                ["bash", "-e", "-c", block["text"]],
                cwd=tmp_path,
                env={**os.environ, "PATH": path},
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            assert done.returncode == int(block["status"] or 0), f"{block['text']}\n{done.stdout}\n{done.stderr}"


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every line of a code block that calls `seatbelt`, with what it is continued by."""
    for document in DOCUMENTS:
        for block in _FENCE.finditer(document.read_text()):
            text = re.sub(r"\\\n|\n +(?=--)", " ", block["text"])
            for line in re.findall(r"(?:^|[ $/])seatbelt ((?:[a-z]+)\b.*)$", text, re.M):
                yield f"{document.name}: {line}"[:90], _words(line)


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError:  # prose behind it, with an apostrophe
        return line.split()


COMMANDS = list(commands())


@pytest.mark.parametrize("words", [words for _, words in COMMANDS], ids=[name for name, _ in COMMANDS])
def test_options_in_the_documents_exist(words: list[str]) -> None:
    group = typer.main.get_command(cli.app)
    assert isinstance(group, typer.core.TyperGroup)
    assert words[0] in group.commands
    known = {"--help"} | {
        option for one in group.commands[words[0]].params for option in (*one.opts, *one.secondary_opts)
    }
    asked = {
        word.split("=")[0].strip("[]`'|,.;:") for word in words if word.strip("[]`").startswith("--") and word != "--"
    }
    assert asked <= known


def test_the_reference_of_the_command_line_is_what_it_says_itself() -> None:
    command = [sys.executable, "-m", "typer", "harness.cli", "utils", "docs", "--name", "seatbelt"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert (ROOT / "docs" / "cli.md").read_text().strip() == done.stdout.strip(), "run `make docs`"


def test_the_schema_of_the_record_is_that_of_the_record() -> None:
    assert json.loads((ROOT / "docs" / "record.schema.json").read_text()) == json.loads(schema()), "run `make docs`"
