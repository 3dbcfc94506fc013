"""Everything that fuzzing has kept, and a little fuzzing: what was found once is never found again."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fuzz.parsers import TARGETS

CORPUS = Path(__file__).parent / "corpus"


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus(name: str) -> None:
    paths = sorted((CORPUS / name).iterdir())
    assert len(paths) >= 3
    for path in paths:
        TARGETS[name](path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_what_the_corpus_becomes_when_it_is_damaged(name: str) -> None:
    chance = random.Random(name)
    inputs = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    for data in inputs[:200]:
        damaged = bytearray(data or b" ")
        damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        TARGETS[name](bytes(damaged))
        TARGETS[name](data[: chance.randint(0, len(data))] + chance.choice(inputs))
