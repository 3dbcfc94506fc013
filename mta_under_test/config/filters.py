"""`filter` and `proc`: what is done with mail before the rules see it."""

from __future__ import annotations

from typing import Any, cast

from lark import Token

from mta_under_test.config.model import (
    BuiltinFilter,
    Decision,
    Filter,
    FilterCondition,
    FilterPhase,
    ProcFilter,
)
from mta_under_test.config.names import Names, known, new
from mta_under_test.config.rules import SERVICES
from mta_under_test.config.statement import Mistake, Node, first, last, once, strings, tables_of, text
from mta_under_test.tables import Service

# What is known of a session when a phase comes, beside its source and the names of that.
_KNOWN_LATER: dict[str, frozenset[str]] = {
    "connect": frozenset(),
    "helo": frozenset({"helo"}),
    "ehlo": frozenset({"helo"}),
    "auth": frozenset({"helo", "auth"}),
    "mail-from": frozenset({"helo", "auth", "mail-from"}),
    "rcpt-to": frozenset({"helo", "auth", "mail-from", "rcpt-to"}),
    "data": frozenset({"helo", "auth", "mail-from"}),
    "commit": frozenset({"helo", "auth", "mail-from"}),
}
_AT_ONCE = frozenset({"fcrdns", "rdns", "src"})


def filter_statement(tree: Node, names: Names) -> None:
    name, kind = cast(Token, tree.children[1]), cast(Node, tree.children[2])
    new(name, "filter", names.filters)
    if kind.data == "builtin":
        made: Filter = _builtin(str(name), kind, names)
    elif kind.data == "chain":
        made = names.chain(str(name), strings(kind))
    elif kind.data == "named_proc":
        proc = last(kind)
        known(proc, "proc", names.procs)
        made = names.procs[str(proc)]
    else:
        made = _proc(str(name), cast(Token, kind.children[1]), kind)
    names.filters[str(name)] = made


def proc_statement(tree: Node, names: Names) -> None:
    name, command = strings(tree)
    new(name, "proc", names.procs)
    names.procs[str(name)] = _proc(str(name), command, tree)


def _proc(name: str, command: Token, tree: Node) -> ProcFilter:
    if not command.strip():
        raise Mistake(command, "the command is empty")
    options = once(tree)
    return ProcFilter(name, str(command), text(options, "user"), text(options, "group"), text(options, "chroot"))


def _builtin(name: str, kind: Node, names: Names) -> BuiltinFilter:
    _, phase_node, _, condition_node, decision_node = kind.children
    phase = first(cast(Node, phase_node))
    condition = _condition(cast(Node, condition_node), phase, names)
    words = [cast(Token, word) for word in cast(Node, decision_node).children]
    if words[0] in ("junk", "bypass") and phase == "commit":
        raise Mistake(words[0], f'"{words[0]}" comes too late in phase "commit"')
    argument = str(words[1]) if len(words) == 2 else ""
    return BuiltinFilter(name, cast(FilterPhase, str(phase)), condition, cast(Decision, str(words[0])), argument)


def _condition(node: Node, phase: Token, names: Names) -> FilterCondition:
    negated = node.children[0] is not None
    fact = cast(Token, node.children[1])
    if fact not in _KNOWN_LATER[str(phase)] | _AT_ONCE:
        raise Mistake(fact, f'"{fact}" is not known yet in phase "{phase}"')
    tables = tables_of(node)
    regex = any(isinstance(word, Token) and word.type == "REGEX" for word in node.children)
    table = ""
    if tables is not None:
        service = Service.REGEX if regex else SERVICES.get(str(fact), Service.STRING)
        table = names.list_of(tables, Service.NETADDR if fact == "src" and not regex else service)
    return FilterCondition(cast(Any, str(fact)), table, regex, negated)
