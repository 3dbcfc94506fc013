"""smtpd.conf: its grammar (the one of OpenSMTPD 6.8), its typed model, and the rules made of it."""

from __future__ import annotations

from pathlib import Path

from mta_under_test.config.model import (
    Action,
    Config,
    ConfigError,
    Criterion,
    ExpandOnlyAction,
    ForwardOnlyAction,
    Listener,
    LmtpAction,
    LocalAction,
    MaildirAction,
    Match,
    MboxAction,
    MdaAction,
    RelayAction,
    RelayHost,
    TableSpec,
)

__all__ = [
    "Action",
    "Config",
    "ConfigError",
    "Criterion",
    "ExpandOnlyAction",
    "ForwardOnlyAction",
    "Listener",
    "LmtpAction",
    "LocalAction",
    "MaildirAction",
    "Match",
    "MboxAction",
    "MdaAction",
    "RelayAction",
    "RelayHost",
    "TableSpec",
    "load",
]


def load(path: Path) -> Config:
    """Read a configuration, and what it includes. Raises ConfigError with every mistake found.

    Relative paths in it (`include`, `table … file:`) are taken from the directory of the file that they stand in.
    """
    # The parser is needed once, by one process; everybody else imports the model alone.
    from mta_under_test.config.loader import load as load_file

    return load_file(path)
