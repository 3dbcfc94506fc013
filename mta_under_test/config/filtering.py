"""What filters say about a session: the conditions and decisions that are written in the configuration. Pure.

Programs that filter (`proc-exec`) are asked elsewhere; here they are members of a chain like any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from mta_under_test.config.model import BuiltinFilter, Config, Filter, FilterChain, FilterCondition, ProcFilter
from mta_under_test.config.rules import SERVICES
from mta_under_test.tables import Service, Table

Outcome = Literal["proceed", "reject", "disconnect", "rewrite"]


class FilterFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of a session when a filter is asked. Later phases know more."""

    src: str = ""  # address; "" for mail made on this machine
    rdns: str = ""
    fcrdns: bool = False  # the name leads back to the address
    helo: str = ""
    username: str = ""
    sender: str = ""
    recipient: str = ""


class Verdict(msgspec.Struct, frozen=True):
    outcome: Outcome = "proceed"
    argument: str = ""  # a reply for reject and disconnect, a value for rewrite
    junk: bool = False  # what comes of this is spam


def members(config: Config, name: str) -> tuple[BuiltinFilter | ProcFilter, ...]:
    """The filters that a listener's `filter NAME` stands for, in order.

    None for "", nor for a name that a session still has from a configuration that was replaced.
    """
    chosen: Filter | None = config.filters.get(name)
    if chosen is None:
        return ()
    if isinstance(chosen, FilterChain):
        return tuple(member for inner in chosen.filters for member in members(config, inner))
    return (chosen,)


def needs_names(config: Config, name: str) -> bool:
    """Whether the client's address must be resolved before these filters are asked."""
    return any(isinstance(one, ProcFilter) or one.condition.fact in ("rdns", "fcrdns") for one in members(config, name))


def holds(condition: FilterCondition, facts: FilterFacts, tables: Mapping[str, Table]) -> bool:
    """Raises TableError for a table that does not answer."""
    return _is_so(condition, facts, tables) != condition.negated


def _is_so(condition: FilterCondition, facts: FilterFacts, tables: Mapping[str, Table]) -> bool:
    if condition.fact == "fcrdns":
        return facts.fcrdns
    value = {
        "rdns": facts.rdns,
        "src": facts.src or "local",
        "helo": facts.helo,
        "auth": facts.username,
        "mail-from": facts.sender,
        "rcpt-to": facts.recipient,
    }[condition.fact]
    if not condition.table:
        return bool(value)
    table = tables[condition.table]
    if condition.regex:
        return table.contains(Service.REGEX, value)
    return table.contains(Service.NETADDR if condition.fact == "src" else SERVICES[condition.fact], value)
