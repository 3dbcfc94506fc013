"""From statements to the model, and whether what they say can be.

Owns: what was said so far. Never: reads a file, but for the tables that rules use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

from lark import Token, Tree
from msgspec.structs import replace

from mta_under_test.config import values
from mta_under_test.config.interfaces import addresses_of
from mta_under_test.config.model import (
    Action,
    Config,
    Criterion,
    ExpandOnlyAction,
    ForwardOnlyAction,
    Listener,
    LmtpAction,
    MaildirAction,
    Match,
    MboxAction,
    MdaAction,
    RelayAction,
    TableSpec,
)
from mta_under_test.config.rules import SERVICES, open_table
from mta_under_test.tables import Service, Table, TableError

MAX_WARNINGS = 4  # MAX_BOUNCE_WARN
FILE_BACKENDS = ("file", "static")
LIMITS = {"max-mails": "max_mails", "max-rcpt": "max_rcpt"}

Node = Tree[Token]
_T = TypeVar("_T")


class Mistake(Exception):
    """A statement that is well formed and wrong."""

    def __init__(self, token: Token, text: str) -> None:
        super().__init__(text)
        self.token = token


class _Use(NamedTuple):
    """A table is used at `token` as a list that answers `service`, or as a mapping (None)."""

    path: Path
    token: Token
    table: str
    service: Service | None


class Builder:
    def __init__(self) -> None:
        self.listeners: list[Listener] = []
        self._tables: dict[str, TableSpec] = {}
        self._opened: dict[str, Table] = {}
        self._uses: list[_Use] = []
        self._actions: dict[str, Action] = {}
        self._matches: list[Match] = []
        self._chosen: list[tuple[Path, Token]] = []  # actions that rules name
        self._settings: dict[str, Any] = {}
        self._path = Path()  # of the statement in hand

    def take(self, tree: Node, path: Path) -> None:
        """Raises Mistake."""
        self._path = path
        getattr(self, f"_{tree.data}")(tree)

    def check(self) -> Iterator[tuple[Path, Mistake]]:
        """What can be known only when everything was read: that names mean something."""
        for path, token in self._chosen:
            if token not in self._actions:
                yield path, Mistake(token, f'unknown action "{token}"{_known(self._actions)}')
        for use in self._uses:
            if use.table not in self._tables:
                named = [name for name in self._tables if not name.startswith("<")]
                yield use.path, Mistake(use.token, f"unknown table <{use.table}>{_known(named)}")
            elif use.table in self._opened:
                try:
                    self._check_use(use, self._opened[use.table])
                except TableError as error:
                    yield use.path, Mistake(use.token, str(error))

    def _check_use(self, use: _Use, table: Table) -> None:
        if use.service is None:
            if not table.is_mapping:
                raise TableError(f"<{use.table}> is a list, and a mapping is needed here")
            return
        if not table.is_list:
            raise TableError(f"<{use.table}> is a mapping, and a list is needed here")
        table.check(use.service)

    def config(self, path: Path, hostname: str) -> Config:
        return Config(
            path=path,
            hostname=hostname,
            listeners=tuple(self.listeners),
            tables=self._tables,
            actions=self._actions,
            matches=tuple(self._matches),
            **self._settings,
        )

    # ---- settings

    def _bounce(self, tree: Node) -> None:
        delays = _strings(tree)
        if len(delays) > MAX_WARNINGS:
            raise Mistake(delays[MAX_WARNINGS], f"more than {MAX_WARNINGS} delays")
        self._settings["bounce_warn_s"] = tuple(_value(delay, values.duration_s) for delay in delays)

    def _queue_ttl(self, tree: Node) -> None:
        self._settings["queue_ttl_s"] = _value(_last(tree), values.duration_s)

    def _max_message_size(self, tree: Node) -> None:
        self._settings["max_message_bytes"] = _value(_last(tree), values.size_bytes)

    def _limits(self, tree: Node) -> None:
        words = _strings(tree)
        for name, count in zip(words[::2], words[1::2], strict=True):
            if name not in LIMITS:
                raise Mistake(name, f'unknown limit "{name}"{_known(LIMITS)}')
            if int(count) < 1:
                raise Mistake(count, f"{name} is {count}; it can be 1 or more")
            self._settings[LIMITS[name]] = int(count)

    # ---- listeners

    def _listen(self, tree: Node) -> None:
        interface = cast(Token, tree.children[2])
        if interface.type == "SOCKET":
            raise Mistake(interface, '"listen on socket" is not supported yet')
        options = _once(tree)
        listener = Listener("")
        if "port" in options:
            listener = replace(listener, port=_port(_last(options["port"])))
        if "tag" in options:
            listener = replace(listener, tag=str(_last(options["tag"])))
        if "hostname" in options:
            listener = replace(listener, hostname=str(_last(options["hostname"])))
        listener = replace(listener, mask_src="mask_src" in options)
        version = {"inet4": 4, "inet6": 6}[str(_last(options["family"]))] if "family" in options else None
        try:
            addresses = addresses_of(interface, version)
        except OSError as error:
            reason = f'"{interface}" is neither an interface nor a host that can be found: {error.strerror or error}'
            raise Mistake(interface, reason) from error
        if not addresses:
            raise Mistake(interface, f'"{interface}" has no address{f" of IP version {version}" if version else ""}')
        self.listeners += (replace(listener, address=str(address)) for address in addresses)

    # ---- tables

    def _table(self, tree: Node) -> None:
        name = cast(Token, tree.children[1])
        if name in self._tables:
            raise Mistake(name, f'table "{name}" is defined twice')
        body = cast(Token, tree.children[2])
        path = self._table_path(body) if body.type == "STRING" else None
        self._add_table(str(name), body, TableSpec(str(name), {} if path else _entries(tree.children[2:]), path))

    def _table_path(self, source: Token) -> Path:
        backend, _, path = source.partition(":")
        if source.startswith("/"):
            backend, path = "file", str(source)
        elif backend not in FILE_BACKENDS:
            raise Mistake(source, f'tables of type "{backend}" are not supported yet; there is "file:" and a path')
        if not path:
            raise Mistake(source, f'"{source}" has no path; write {backend}: and the path of the file')
        return self._path.parent / path

    def _add_table(self, name: str, token: Token, spec: TableSpec) -> None:
        # Defined even when it cannot be read, so that its uses are no mistakes of their own.
        self._tables[name] = spec
        try:
            self._opened[name] = open_table(spec)
        except TableError as error:
            raise Mistake(token, str(error)) from error

    def _used(self, node: Node, service: Service | None) -> str:
        """The name of the table that a statement refers to, or holds."""
        first = cast(Token, node.children[0])
        if first.type == "LESS":
            token = cast(Token, node.children[1])
            self._uses.append(_Use(self._path, token, str(token), service))
            return str(token)
        name = f"<dynamic:{len(self._tables)}>"
        self._uses.append(_Use(self._path, first, name, service))
        self._add_table(name, first, TableSpec(name, _entries(node.children)))
        return name

    # ---- actions

    def _action(self, tree: Node) -> None:
        name, kind = cast(Token, tree.children[1]), cast(Node, tree.children[2])
        if name in self._actions:
            raise Mistake(name, f'action "{name}" is defined twice')
        options = _once(kind)
        common: dict[str, Any] = {"name": str(name)}
        # Defined even when the rest is wrong, so that rules which name it are no mistakes of their own.
        self._actions[common["name"]] = Action(**common)
        if "ttl" in options:
            common["ttl_s"] = _value(_last(options["ttl"]), values.duration_s)
        make = _LOCAL.get(str(kind.data))
        if make is None:
            self._actions[common["name"]] = self._relay(options, common)
            return
        if "alias" in options and "virtual" in options:
            raise Mistake(_first(options["virtual"]), '"alias" and "virtual" exclude each other')
        if "user" in options:
            if kind.data in ("mbox", "forward_only", "expand_only"):
                raise Mistake(_first(options["user"]), f'"user" has no meaning with "{_first(kind)}"')
            common["user"] = str(_last(options["user"]))
        for option in ("alias", "virtual", "userbase"):
            if option in options:
                common[option] = self._used(cast(Node, options[option].children[1]), None)
        self._actions[common["name"]] = make(kind, common)

    def _relay(self, options: dict[str, Node], common: dict[str, Any]) -> RelayAction:
        if "host" in options:
            common["host"] = _value(_only(options["host"]), values.relay_host)
        if "helo" in options:
            common["helo"] = str(_last(options["helo"]))
        if "src" in options:
            common["src"] = _value(_only(options["src"]), lambda text: str(ip_address(text)))
        return RelayAction(**common)

    # ---- rules

    def _match(self, tree: Node) -> None:
        criteria: dict[str, Criterion] = {}
        for node in tree.children[1:]:
            if isinstance(node, Tree):
                for fact, criterion in self._criteria(node):
                    if fact in criteria:
                        raise Mistake(_first(node), f'"{fact}" is given twice in this rule')
                    criteria[fact] = criterion
        criteria.setdefault("from", Criterion("from", "local"))
        criteria.setdefault("for", Criterion("for", "local"))
        action = _last(tree)
        if action.type == "REJECT":
            self._matches.append(Match(tuple(criteria.values()), None))
        else:
            self._chosen.append((self._path, action))
            self._matches.append(Match(tuple(criteria.values()), str(action)))

    def _criteria(self, option: Node) -> Iterator[tuple[str, Criterion]]:
        """What one option says; `from mail-from` and its like say two things."""
        negated = option.children[0] is not None
        words = [str(word) for word in option.children[1:] if isinstance(word, Token) and word.type != "REGEX"]
        regex = any(isinstance(word, Token) and word.type == "REGEX" for word in option.children)
        fact = words[-1]
        if len(words) == 2 and fact in ("any", "local", "socket"):
            side = cast(Any, words[0])
            yield words[0], Criterion(side, cast(Any, fact), negated=negated)
            return
        if len(words) == 2 and fact in ("mail-from", "rcpt-to", "auth"):
            yield words[0], Criterion(cast(Any, words[0]), "any")
        tables = option.children[-1]
        if fact == "auth":
            if isinstance(tables, Tree):
                raise Mistake(_first(option), '"auth" with users is not supported yet')
            yield fact, Criterion("auth", "yes", negated=negated)
            return
        fact = words[0] if fact in ("src", "domain") else fact
        service = Service.REGEX if regex else SERVICES[fact]
        name = self._used(cast(Node, tables), service)
        yield fact, Criterion(cast(Any, fact), "table", name, regex, negated)


_LOCAL: dict[str, Callable[[Node, dict[str, Any]], Action]] = {
    "mbox": lambda kind, common: MboxAction(**common),
    "maildir": lambda kind, common: MaildirAction(
        path=str(kind.children[1] or "~/Maildir"), junk=kind.children[2] is not None, **common
    ),
    "lmtp": lambda kind, common: LmtpAction(
        destination=str(kind.children[1]), rcpt_to=kind.children[2] is not None, **common
    ),
    "mda": lambda kind, common: MdaAction(command=str(kind.children[1]), **common),
    "forward_only": lambda kind, common: ForwardOnlyAction(**common),
    "expand_only": lambda kind, common: ExpandOnlyAction(**common),
}


def _once(tree: Node) -> dict[str, Node]:
    """A statement's options by name; each may be given once."""
    options: dict[str, Node] = {}
    for child in tree.children:
        if isinstance(child, Tree):
            if child.data in options:
                raise Mistake(_first(child), f'"{_first(child)}" is given twice')
            options[str(child.data)] = child
    return options


def _entries(children: list[Token | Node]) -> dict[str, str | None]:
    entries: dict[str, str | None] = {}
    for child in children:
        if isinstance(child, Tree):
            key, value = _strings(child)
            if key in entries:
                raise Mistake(key, f'"{key}" is given twice')
            entries[str(key)] = str(value)
        elif child.type == "STRING":
            entries[str(child)] = None
    return entries


def _port(token: Token) -> int:
    if token.type == "NUMBER":
        return _value(token, lambda text: values.port_number(text, lowest=0))
    return _value(token, values.service_port)


def _only(option: Node) -> Token:
    """The string of an option that could also name a table."""
    token = cast(Token, cast(Node, option.children[1]).children[0])
    if token.type != "STRING":
        raise Mistake(token, f'"{_first(option)}" with a table is not supported yet')
    return token


def _value(token: Token, read: Callable[[str], _T]) -> _T:
    try:
        return read(str(token))
    except ValueError as error:
        raise Mistake(token, str(error)) from error


def _strings(tree: Node) -> list[Token]:
    return [child for child in tree.children if isinstance(child, Token) and child.type in ("STRING", "NUMBER")]


def _first(tree: Node) -> Token:
    return next(tree.scan_values(lambda value: isinstance(value, Token)))


def _last(tree: Node) -> Token:
    return cast(Token, tree.children[-1])


def _known(names: Any) -> str:
    return f"; there is {', '.join(names)}" if names else ""
