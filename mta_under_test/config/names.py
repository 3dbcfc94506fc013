"""What the statements so far have defined, for the statements that name it: everything is defined before it is used.

Owns: tables, certificates, filters, actions and their like, by name. Never: reads a file, but for tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from lark import Token, Tree

from mta_under_test.config.model import Action, Ca, Filter, FilterChain, Pki, ProcFilter, TableBackend, TableSpec
from mta_under_test.config.rules import open_table
from mta_under_test.config.statement import Mistake, Node, Unknown, strings
from mta_under_test.tables import Service, Table, TableError

BACKENDS: dict[str, TableBackend] = {"file": "file", "static": "file", "sqlite": "sqlite", "passwd": "passwd"}


class Names:
    def __init__(self) -> None:
        self.tables: dict[str, TableSpec] = {}
        self.pkis: dict[str, Pki] = {}
        self.cas: dict[str, Ca] = {}
        self.filters: dict[str, Filter] = {}
        self.procs: dict[str, ProcFilter] = {}
        self.wrappers: dict[str, str] = {}
        self.actions: dict[str, Action] = {}
        self._opened: dict[str, Table] = {}
        self._chains = 0

    # ---- tables

    def define_table(self, tree: Node, directory: Path) -> None:
        name, body = cast(Token, tree.children[1]), cast(Token, tree.children[2])
        new(name, "table", self.tables)
        if body.type == "STRING":
            spec = _table_of(str(name), body, directory)
        else:
            spec = TableSpec(str(name), _entries(tree.children[2:]))
        self._add(body, spec)

    def list_of(self, tables: Node, service: Service) -> str:
        """The name of a list that answers `service`."""
        token, name = self._named(tables)
        table = self._opened.get(name)
        if table is not None:
            if not table.is_list:
                raise Mistake(token, f"<{name}> is a mapping, and a list is needed here")
            try:
                table.check(service)
            except TableError as error:
                raise Mistake(token, str(error)) from error
        return name

    def mapping_of(self, tables: Node) -> str:
        token, name = self._named(tables)
        table = self._opened.get(name)
        if table is not None and not table.is_mapping:
            raise Mistake(token, f"<{name}> is a list, and a mapping is needed here")
        return name

    def users_of(self, tables: Node) -> str:
        """Names of users: a list, or the credentials themselves."""
        return self._named(tables)[1]

    def _named(self, tables: Node) -> tuple[Token, str]:
        """The table that a statement refers to, or holds: where it is said, and its name."""
        word = cast(Token, tables.children[0])
        if word.type == "LESS":
            token = cast(Token, tables.children[1])
            known(token, "table", self.tables)
            return token, str(token)
        name = f"<dynamic:{len(self.tables)}>"
        self._add(word, TableSpec(name, _entries(tables.children)))
        return word, name

    def _add(self, token: Token, spec: TableSpec) -> None:
        # Defined even when it cannot be read, so that its uses are no mistakes of their own.
        self.tables[spec.name] = spec
        try:
            self._opened[spec.name] = open_table(spec)
        except TableError as error:
            raise Mistake(token, str(error)) from error

    # ---- filters

    def filter_of(self, option: Node) -> str:
        """The filter that an option names, or the chain that it holds."""
        word = cast(Token, option.children[1])
        if word.type == "STRING":
            known(word, "filter", self.filters)
            return str(word)
        name = f"<chain:{self._chains}>"
        self._chains += 1
        self.filters[name] = self.chain(name, strings(option))
        return name

    def chain(self, name: str, members: Sequence[Token]) -> FilterChain:
        """These filters, one after the other; each once, and none of them a chain."""
        programs: set[str] = set()
        for at, member in enumerate(members):
            known(member, "filter", self.filters)
            chosen = self.filters[str(member)]
            if isinstance(chosen, FilterChain):
                raise Mistake(member, f'"{member}" is a chain, and a chain cannot hold another')
            if member in members[:at]:
                raise Mistake(member, f'"{member}" is twice in this chain')
            if isinstance(chosen, ProcFilter):
                if chosen.name in programs:
                    raise Mistake(member, f'the program of "{member}" is twice in this chain')
                programs.add(chosen.name)
        return FilterChain(name, tuple(str(member) for member in members))


def new(name: Token, what: str, defined: Mapping[str, object]) -> None:
    if name in defined:
        raise Mistake(name, f'{what} "{name}" is defined twice')


def known(name: Token, what: str, defined: Mapping[str, object]) -> None:
    if name not in defined:
        raise Unknown(name, what, defined)


def _table_of(name: str, source: Token, directory: Path) -> TableSpec:
    backend, _, path = source.partition(":")
    if source.startswith("/"):
        backend, path = "file", str(source)
    if backend not in BACKENDS:
        raise Mistake(source, f'tables of type "{backend}" are not supported; there is {", ".join(BACKENDS)}')
    if not path:
        raise Mistake(source, f'"{source}" has no path; write {backend}: and the path of the file')
    return TableSpec(name, {}, directory / path, BACKENDS[backend])


def _entries(children: list[Token | Node]) -> dict[str, str | None]:
    entries: dict[str, str | None] = {}
    for child in children:
        if isinstance(child, Tree):
            key, entry = strings(child)
            if key in entries:
                raise Mistake(key, f'"{key}" is given twice')
            entries[str(key)] = str(entry)
        elif child.type == "STRING":
            entries[str(child)] = None
    return entries
