from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from probed import as_another_user

from harness.probes import files


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that every user may enter; tmp_path is root's alone."""
    with tempfile.TemporaryDirectory(prefix="seatbelt-files-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_every_name_that_is_no_directory_is_listed_in_order(tmp_path: Path) -> None:
    (tmp_path / "queue/ab/abcd").mkdir(parents=True)
    (tmp_path / "queue/ab/abcd/message").write_text("x")
    (tmp_path / "queue/ab/abcd/envelope.tmp").write_text("")
    (tmp_path / "incoming").mkdir()
    (tmp_path / "lock").write_text("")
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as forgotten:
        forgotten.bind(str(tmp_path / "s"))
    assert files.read(tmp_path) == files.Listing(
        ["fifo", "lock", "queue/ab/abcd/envelope.tmp", "queue/ab/abcd/message", "s"], []
    )


def test_a_link_is_a_name_and_is_not_followed(tmp_path: Path) -> None:
    spool, elsewhere = tmp_path / "spool", tmp_path / "elsewhere"
    spool.mkdir()
    elsewhere.mkdir()
    (elsewhere / "not ours").write_text("")
    (spool / "to a directory").symlink_to(elsewhere)
    (spool / "to itself").symlink_to(spool)
    (spool / "to nothing").symlink_to(tmp_path / "nothing")
    assert files.read(spool) == files.Listing(["to a directory", "to itself", "to nothing"], [])


def test_a_name_that_is_not_utf_8_fits_into_the_record(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9")).mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9/m\xff")).write_text("")
    assert files.read(tmp_path).names == ["caf\\xe9/m\\xff"]


@pytest.mark.parametrize("missing", [0, 1])
def test_a_full_listing_says_when_it_is_not_all(tmp_path: Path, missing: int) -> None:
    for number in range(5):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "m").write_text("")
    found = files.read(tmp_path, limit=5 - missing)
    assert len(found.names) == 5 - missing
    assert found.problems == [f"spool {tmp_path}: more than 4 files; only 4 were listed"] * missing


def test_a_spool_that_is_not_there_is_a_problem_and_no_error(tmp_path: Path) -> None:
    assert files.read(tmp_path / "none") == files.Listing([], [f"spool {tmp_path}/none: no such directory"])


def test_a_spool_that_is_a_file_is_a_problem_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert files.read(tmp_path / "file") == files.Listing([], [f"spool {tmp_path}/file: not a directory"])


def test_what_is_not_ours_to_see_is_told_and_the_rest_is_listed(public: Path) -> None:
    (public / "queue").mkdir()
    (public / "queue/m").write_text("")
    (public / "secret").mkdir(mode=0o000)
    seen = as_another_user(lambda: [str(files.read(public))])
    expected = files.Listing(["queue/m"], [f"spool directory {public}/secret/: run as root or as its owner"])
    assert seen == [str(expected)]
