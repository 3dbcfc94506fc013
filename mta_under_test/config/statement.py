"""Reading a statement's tree: its words and options, and the mistakes that can be found in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar, cast

from lark import Token, Tree

Node = Tree[Token]
_T = TypeVar("_T")


class Mistake(Exception):
    """A statement that is well formed and wrong."""

    def __init__(self, token: Token, text: str) -> None:
        super().__init__(text)
        self.token = token


class Unknown(Mistake):
    """A name that nothing before it has defined."""

    def __init__(self, token: Token, what: str, known: Iterable[str]) -> None:
        names = [name for name in known if not name.startswith("<")]
        said = f"<{token}>" if what == "table" else f'"{token}"'
        super().__init__(token, f"unknown {what} {said}{there_is(names)}")


def once(tree: Node) -> dict[str, Node]:
    """A statement's options by name; each may be given once."""
    options: dict[str, Node] = {}
    for child in tree.children:
        if isinstance(child, Tree):
            if child.data in options:
                raise Mistake(first(child), f'"{first(child)}" is given twice')
            options[str(child.data)] = child
    return options


def value(token: Token, read: Callable[[str], _T]) -> _T:
    try:
        return read(str(token))
    except ValueError as error:
        raise Mistake(token, str(error)) from error


def text(options: dict[str, Node], name: str) -> str:
    """The word that an option ends with; "" when it is not given."""
    return str(last(options[name])) if name in options else ""


def strings(tree: Node) -> list[Token]:
    return [child for child in tree.children if isinstance(child, Token) and child.type in ("STRING", "NUMBER")]


def first(tree: Node) -> Token:
    return next(tree.scan_values(lambda child: isinstance(child, Token)))


def last(tree: Node) -> Token:
    return cast(Token, tree.children[-1])


def tables_of(option: Node) -> Node | None:
    """The table that an option names or holds."""
    return next((child for child in option.children if isinstance(child, Tree) and child.data == "tables"), None)


def there_is(names: Iterable[str]) -> str:
    listed = ", ".join(names)
    return f"; there is {listed}" if listed else ""
