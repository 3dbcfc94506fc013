"""`match`: which envelopes a rule takes, and what it does with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from lark import Token, Tree

from mta_under_test.config.model import Criterion, Match
from mta_under_test.config.names import Names, known
from mta_under_test.config.rules import SERVICES
from mta_under_test.config.statement import Mistake, Node, first, last, tables_of
from mta_under_test.tables import Service


def match(tree: Node, names: Names) -> Match:
    criteria: dict[str, Criterion] = {}
    for node in tree.children[1:]:
        if isinstance(node, Tree):
            for fact, criterion in _criteria(node, names):
                if fact in criteria:
                    raise Mistake(first(node), f'"{fact}" is given twice in this rule')
                criteria[fact] = criterion
    criteria.setdefault("from", Criterion("from", "local"))
    criteria.setdefault("for", Criterion("for", "local"))
    action = last(tree)
    if action.type == "REJECT":
        return Match(tuple(criteria.values()), None)
    known(action, "action", names.actions)
    return Match(tuple(criteria.values()), str(action))


def _criteria(option: Node, names: Names) -> Iterator[tuple[str, Criterion]]:
    """What one option says; `from mail-from` and its like say two things."""
    negated = option.children[0] is not None
    words = [str(word) for word in option.children[1:] if isinstance(word, Token) and word.type != "REGEX"]
    regex = any(isinstance(word, Token) and word.type == "REGEX" for word in option.children)
    fact = words[-1]
    if len(words) == 2:
        side = cast(Any, words[0])
        if fact in ("any", "local", "socket"):
            yield side, Criterion(side, cast(Any, fact), negated=negated)
            return
        if fact in ("src", "domain"):
            fact = side
        else:
            yield side, Criterion(side, "any")
    tables = tables_of(option)
    if tables is None:
        yield fact, Criterion(cast(Any, fact), "yes", negated=negated)
    else:
        if regex:
            name = names.list_of(tables, Service.REGEX)
        elif fact == "auth":
            name = names.users_of(tables)
        else:
            name = names.list_of(tables, SERVICES[fact])
        yield fact, Criterion(cast(Any, fact), "table", name, regex, negated)
