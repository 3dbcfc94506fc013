"""From statements to the model, and whether what they say can be.

Owns: what was said so far. Never: reads a file, but for the tables that rules use.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from lark import Token
from msgspec.structs import replace

from mta_under_test.config import values
from mta_under_test.config.actions import action, command
from mta_under_test.config.filters import filter_statement, proc_statement
from mta_under_test.config.listeners import listeners, local_socket
from mta_under_test.config.matches import match
from mta_under_test.config.model import (
    Ca,
    Config,
    Listener,
    Match,
    MdaLimits,
    Pki,
    RelayLimits,
    SchedulerLimits,
)
from mta_under_test.config.names import Names, new
from mta_under_test.config.statement import Mistake, Node, first, last, strings, there_is, value

MAX_WARNINGS = 4  # MAX_BOUNCE_WARN
SESSION_LIMITS = {"max-mails": "max_mails", "max-rcpt": "max_rcpt"}
DHE = ("none", "auto", "legacy")


class Builder:
    def __init__(self) -> None:
        self.names = Names()
        self.listeners: list[Listener] = []
        self.matches: list[Match] = []
        self._settings: dict[str, Any] = {}
        self._pkis: dict[str, dict[str, str]] = {}  # what was said of each; a statement may add to another
        self._said_first: dict[str, tuple[Path, Token]] = {}  # where
        self._domain_limits: dict[str, RelayLimits] = {}
        self._path = Path()  # of the statement in hand

    def take(self, tree: Node, path: Path) -> None:
        """Raises Mistake."""
        self._path = path
        # Interned: CPython 3.11 keeps the fresh strings by which attributes are looked up (see wire.date).
        getattr(self, sys.intern(f"_{tree.data}"))(tree)

    def check(self) -> Iterator[tuple[Path, Mistake]]:
        """What can be known only when everything was read: that every certificate has its key."""
        for name, (path, token) in self._said_first.items():
            for part in ("cert", "key"):
                if part not in self._pkis[name]:
                    yield path, Mistake(token, f'pki "{name}" has no {part}; write pki {name} {part} and its file')

    def config(self, path: Path, hostname: str) -> Config:
        names = self.names
        return Config(
            path=path,
            hostname=hostname,
            listeners=tuple(self.listeners),
            tables=names.tables,
            actions=names.actions,
            matches=tuple(self.matches),
            pkis=names.pkis,
            cas=names.cas,
            filters=names.filters,
            wrappers=names.wrappers,
            domain_limits=self._domain_limits,
            **self._settings,
        )

    # ---- rooms of their own

    def _listen(self, tree: Node) -> None:
        self.listeners += listeners(tree, self.names)

    def _listen_socket(self, tree: Node) -> None:
        if "socket" in self._settings:
            raise Mistake(cast(Token, tree.children[2]), '"listen on socket" is said already')
        self._settings["socket"] = local_socket(tree, self.names)

    def _table(self, tree: Node) -> None:
        self.names.define_table(tree, self._path.parent)

    def _action(self, tree: Node) -> None:
        action(tree, self.names)

    def _match(self, tree: Node) -> None:
        self.matches.append(match(tree, self.names))

    def _filter(self, tree: Node) -> None:
        filter_statement(tree, self.names)

    def _proc(self, tree: Node) -> None:
        proc_statement(tree, self.names)

    # ---- certificates

    def _pki(self, tree: Node) -> None:
        token = cast(Token, tree.children[1])
        name = _host(token)
        self._said_first.setdefault(name, (self._path, token))
        said = self._pkis.setdefault(name, {})
        for option in tree.children[2:]:
            word = last(cast(Node, option))
            what = str(cast(Node, option).data)
            if what == "dhe" and word.lower() not in DHE:
                raise Mistake(word, f'"{word}" is not a choice for dhe; there is {", ".join(DHE)}')
            said[what] = word.lower() if what == "dhe" else str(self._readable(word))
        if "cert" in said and "key" in said:
            cert, key = Path(said["cert"]), Path(said["key"])
            self.names.pkis[name] = Pki(name, cert, key, cast(Any, said.get("dhe", "none")))

    def _ca(self, tree: Node) -> None:
        name = _host(cast(Token, tree.children[1]))
        self.names.cas[name] = Ca(name, self._readable(last(cast(Node, tree.children[2]))))

    def _readable(self, name: Token) -> Path:
        path = self._path.parent / name
        try:
            path.read_bytes()
        except OSError as error:
            raise Mistake(name, f'cannot read "{name}": {error.strerror}') from error
        return path

    # ---- settings

    def _admd(self, tree: Node) -> None:
        if not last(tree).isprintable():
            raise Mistake(last(tree), f'"{last(tree)}" cannot stand in a header')
        self._settings["admd"] = str(last(tree))

    def _bounce(self, tree: Node) -> None:
        delays = strings(tree)
        if len(delays) > MAX_WARNINGS:
            raise Mistake(delays[MAX_WARNINGS], f"more than {MAX_WARNINGS} delays")
        self._settings["bounce_warn_s"] = tuple(value(delay, values.duration_s) for delay in delays)

    def _queue_ttl(self, tree: Node) -> None:
        self._settings["queue_ttl_s"] = value(last(tree), values.duration_s)

    def _queue_compression(self, tree: Node) -> None:
        self._settings["queue_compression"] = True

    def _max_message_size(self, tree: Node) -> None:
        self._settings["max_message_bytes"] = value(last(tree), values.size_bytes)

    def _ciphers(self, tree: Node) -> None:
        self._settings["ciphers"] = str(last(tree))

    def _delimiter(self, tree: Node) -> None:
        sign = last(tree)
        if len(sign) != 1 or not sign.isprintable() or sign.isspace() or sign == "@":
            raise Mistake(sign, f'"{sign}" is no delimiter; write one printable character other than @')
        self._settings["subaddress_delimiter"] = str(sign)

    def _mda_wrapper(self, tree: Node) -> None:
        name, line = strings(tree)
        new(name, "mda wrapper", self.names.wrappers)
        self.names.wrappers[str(name)] = command(line)

    # ---- limits

    def _limits(self, tree: Node) -> None:
        for name, count in _pairs(tree):
            if name not in SESSION_LIMITS:
                raise Mistake(name, f'unknown limit "{name}"{there_is(SESSION_LIMITS)}')
            if int(count) < 1:
                raise Mistake(count, f"{name} is {count}; it can be 1 or more")
            self._settings[SESSION_LIMITS[str(name)]] = int(count)

    def _max_deferred(self, tree: Node) -> None:
        count = last(tree)
        if int(count) < 0:
            raise Mistake(count, f"max-deferred is {count}; it can be 0 or more")
        self._settings["max_deferred"] = int(count)

    def _relay_limit(self, tree: Node) -> None:
        domain = next((token for token in tree.children if isinstance(token, Token) and token.type == "STRING"), None)
        default = self._settings.get("relay_limits", RelayLimits())
        old = default if domain is None else self._domain_limits.get(str(domain).lower(), default)
        limits = _changed(old, tree)
        for family in tree.find_data("family"):
            limits = replace(limits, family=str(first(family)))
        if domain is None:
            self._settings["relay_limits"] = limits
        else:
            self._domain_limits[str(domain).lower()] = limits

    def _mda_limit(self, tree: Node) -> None:
        self._settings["mda_limits"] = _changed(self._settings.get("mda_limits", MdaLimits()), tree)

    def _scheduler_limit(self, tree: Node) -> None:
        self._settings["scheduler_limits"] = _changed(self._settings.get("scheduler_limits", SchedulerLimits()), tree)


def _host(token: Token) -> str:
    """A host's name in lower case, or `*` for any."""
    labels = token.split(".")
    if token != "*" and not all(label and label.replace("-", "a").replace("_", "a").isalnum() for label in labels):
        raise Mistake(token, f'"{token}" is not the name of a host')
    return str(token).lower()


def _pairs(tree: Node) -> Iterator[tuple[Token, Token]]:
    """Names of limits and their counts."""
    for limit in tree.find_data("limit"):
        name, count = strings(limit)
        yield name, count


def _changed(limits: Any, tree: Node) -> Any:
    fields = {field.replace("_", "-"): field for field in limits.__struct_fields__ if field != "family"}
    changes: dict[str, int] = {}
    for name, count in _pairs(tree):
        if name not in fields:
            raise Mistake(name, f'unknown limit "{name}"{there_is(fields)}')
        if int(count) < 0:
            raise Mistake(count, f"{name} is {count}; it can be 0 or more")
        changes[fields[str(name)]] = int(count)
    return replace(limits, **changes)
