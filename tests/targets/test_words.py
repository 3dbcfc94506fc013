"""A target in words: which one is meant, and with what."""

from __future__ import annotations

import re

import pytest

from harness.targets import TargetError
from harness.targets.choice import Settings
from harness.targets.words import from_words


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "a target without a name"),
        ("server 'half", "No closing quotation"),
        ("embedded --port 25", "after embedded comes --defect NAME or --binary PATH, and no '--port'"),
        ("embedded --defect", "and no '--defect'"),
        ("postfix --binary", "and no '--binary'"),
        ("mine.toml", "mine.toml: No such file or directory"),
    ],
)
def test_what_cannot_be_meant_is_told(text: str, told: str) -> None:
    with pytest.raises(TargetError, match=re.escape(told)):
        from_words(text, Settings())


def test_a_command_line_may_end_in_the_name_of_a_file() -> None:
    make = from_words("./server --port {port} --config server.toml", Settings())
    assert make.keywords["server"].start == ["./server", "--port", "{port}", "--config", "server.toml"]  # type: ignore[attr-defined]
