"""A configuration as bytes, for its way from parent to the others. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from mta_under_test.config.model import (
    Config,
    ExpandOnlyAction,
    ForwardOnlyAction,
    LmtpAction,
    MaildirAction,
    MboxAction,
    MdaAction,
    RelayAction,
)

_AnyAction = RelayAction | MboxAction | MaildirAction | LmtpAction | MdaAction | ForwardOnlyAction | ExpandOnlyAction


class _Encoded(Config, frozen=True, kw_only=True):
    """The same, with the classes that an action may be of: a decoder has to know them all."""

    actions: Mapping[str, _AnyAction] = msgspec.field(default_factory=dict)


def encode(config: Config) -> bytes:
    return msgspec.msgpack.encode(config, enc_hook=_to_text)


def decode(text: bytes) -> Config:
    """Raises msgspec.MsgspecError for bytes that `encode` did not make."""
    found = msgspec.msgpack.decode(text, type=_Encoded, dec_hook=_from_text)
    return Config(**{name: getattr(found, name) for name in Config.__struct_fields__})


def _to_text(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"a {type(value).__name__} in a configuration")


def _from_text(kind: type, value: Any) -> Any:
    if kind is Path:
        return Path(value)
    raise NotImplementedError(f"a {kind.__name__} in a configuration")
