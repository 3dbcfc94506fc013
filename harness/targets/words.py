"""A target in words, as `ab --a` and `shrink --target` take it.

embedded --defect transfer-fd-leak      a target's name, and options as `seatbelt run` has them
./my-server --listen {port}             a command line: any server
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from harness.targets import TargetError, description
from harness.targets.choice import TARGETS, MakeTarget, Settings, choose

COMMAND = "command"


def is_known(name: str) -> bool:
    """Whether a record's target can be started by its name."""
    return name in TARGETS or name in description.names()


def name_of(text: str) -> str:
    """Which target is meant. Raises TargetError for nothing at all."""
    words = _split(text)
    return words[0] if words[0] in TARGETS else COMMAND


def from_words(text: str, settings: Settings) -> MakeTarget:
    """Raises TargetError for what there is not, or what it cannot have."""
    name = name_of(text)
    if name == COMMAND:
        is_described = text in description.names() or (len(_split(text)) == 1 and text.endswith(".toml"))
        return choose(name, replace(settings, server=text) if is_described else replace(settings, command=text))
    words = iter(_split(text)[1:])
    for word in words:
        option, equals, value = word.partition("=")
        value = value if equals else next(words, "")
        match option:
            case "--defect" if value:
                settings = replace(settings, defects=(*settings.defects, value))
            case "--binary" if value:
                settings = replace(settings, binary=Path(value))
            case _:
                raise TargetError(f"{text!r}: after {name} comes --defect NAME or --binary PATH, and no {word!r}")
    return choose(name, settings)


def _split(text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise TargetError(f"{text!r}: {error}") from error
    if not words:
        raise TargetError("a target without a name; give 'embedded', or 'PROGRAM ARGUMENT … {port}'")
    return words
