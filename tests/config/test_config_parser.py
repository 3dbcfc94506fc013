"""The parser's tables: kept where that was asked for, and made anew when what is kept is of no use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mta_under_test.config import ConfigError, load, parser

VALID = 'listen on 127.0.0.1 port 2525\naction "out" relay\nmatch from any for any action "out"\n'


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where they are kept during the test. There are none yet."""
    path = tmp_path / "smtpd.tables"
    monkeypatch.setattr(parser, "TABLES", path)
    parser.lalr.cache_clear()
    yield path
    parser.lalr.cache_clear()


def reads(tmp_path: Path) -> None:
    """By a parser that was made just now, what is valid is, and what is not is told."""
    parser.lalr.cache_clear()
    configuration = tmp_path / "smtpd.conf"
    configuration.write_text(VALID)
    assert [listener.port for listener in load(configuration).listeners] == [2525]
    configuration.write_text("listen upon lo\n")
    with pytest.raises(ConfigError, match=r"smtpd.conf:1:8: expected"):
        load(configuration)


def test_nothing_is_kept_unless_it_is_asked_for(tables: Path, tmp_path: Path) -> None:
    reads(tmp_path)
    assert not tables.exists()


@pytest.mark.parametrize("what", [b"", b"rubbish\n", b"0" * 64 + b"\n"])
def test_tables_that_cannot_be_used_are_made_anew(tables: Path, tmp_path: Path, what: bytes) -> None:
    tables.write_bytes(what)
    reads(tmp_path)
    made = tables.read_bytes()
    assert len(made) > 1000
    reads(tmp_path)  # by those that are kept now
    assert tables.read_bytes() == made


def test_they_are_kept_also_where_there_is_no_bytecode(
    tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "nothing yet" / tables.name
    monkeypatch.setattr(parser, "TABLES", place)
    parser.keep()
    assert len(place.read_bytes()) > 1000
    reads(tmp_path)
