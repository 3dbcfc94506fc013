"""smtpd.conf: its grammar (the one of OpenSMTPD 6.8), its typed model, and the rules made of it."""

from __future__ import annotations

from pathlib import Path

from mta_under_test.config.model import (
    Action,
    BuiltinFilter,
    Ca,
    Config,
    ConfigError,
    Criterion,
    Decision,
    ExpandOnlyAction,
    Filter,
    FilterChain,
    FilterCondition,
    FilterPhase,
    ForwardOnlyAction,
    Listener,
    LmtpAction,
    LocalAction,
    MaildirAction,
    Match,
    MboxAction,
    MdaAction,
    MdaLimits,
    Pki,
    ProcFilter,
    RelayAction,
    RelayHost,
    RelayLimits,
    SchedulerLimits,
    TableSpec,
    TlsUse,
)

__all__ = [
    "Action",
    "BuiltinFilter",
    "Ca",
    "Config",
    "ConfigError",
    "Criterion",
    "Decision",
    "ExpandOnlyAction",
    "Filter",
    "FilterChain",
    "FilterCondition",
    "FilterPhase",
    "ForwardOnlyAction",
    "Listener",
    "LmtpAction",
    "LocalAction",
    "MaildirAction",
    "Match",
    "MboxAction",
    "MdaAction",
    "MdaLimits",
    "Pki",
    "ProcFilter",
    "RelayAction",
    "RelayHost",
    "RelayLimits",
    "SchedulerLimits",
    "TableSpec",
    "TlsUse",
    "load",
]


def load(path: Path) -> Config:
    """Read a configuration, and what it includes. Raises ConfigError with every mistake found.

    Relative paths in it (`include`, `table … file:`) are taken from the directory of the file that they stand in.
    """
    # The parser is needed once, by one process; everybody else imports the model alone.
    from mta_under_test.config.loader import load as load_file

    return load_file(path)
