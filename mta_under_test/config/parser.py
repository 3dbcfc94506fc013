"""From tokens to statements: the grammar, and what to say when it does not fit.

Owns: the LALR parser, made once; its tables are kept beside the bytecode. Never: knows what a statement is good for.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from lark import Lark, Token, Tree, UnexpectedToken
from lark.common import LexerConf
from lark.lexer import Lexer as LarkLexer

from mta_under_test.config.lexer import KEYWORDS, PUNCTUATION, is_keyword, terminal

TABLES = Path(__file__).parent / "__pycache__" / "smtpd.tables"
# In 6.8's grammar, and not in ours: by the statement that it is said in, "" for statements.
NOT_SUPPORTED = {
    "": frozenset({"srs"}),  # rewrites senders of forwarded mail; nothing that leaks depends on it
    "action": frozenset({"filter", "srs"}),
    "queue": frozenset({"encryption"}),
}
_SAID = {
    "STRING": "a string",
    "NUMBER": "a number",
    "$END": "end of line",
    **{kind: f'"{sign}"' for sign, kind in PUNCTUATION.items() if sign != "=>"},
    **{terminal(keyword): f'"{keyword}"' for keyword in KEYWORDS},
}


class ParseError(Exception):
    """Tokens that are no statement; the text says what was expected instead of `token`."""

    def __init__(self, token: Token, text: str) -> None:
        super().__init__(text)
        self.token = token


class _Tokens(LarkLexer):
    """Hands on tokens that have been made already."""

    def __init__(self, lexer_conf: LexerConf) -> None:
        pass

    def lex(self, data: Iterable[Token]) -> Iterator[Token]:  # type: ignore[override]  # lark hands on any input
        yield from data


@functools.cache
def lalr() -> Lark:
    """The parser. To make its tables takes a third of all the time in which a daemon starts, so `keep` puts
    them where Python keeps what it has compiled. Those of another grammar or lark, or broken ones, are made anew.
    """
    grammar = Path(__file__).with_name("smtpd.lark").read_text(encoding="utf-8")
    cache = str(TABLES) if TABLES.exists() else False
    return Lark(grammar, parser="lalr", lexer=_Tokens, start="statement", cache=cache)


def keep() -> None:
    """Keep the tables for the processes to come (`make bytecode`)."""
    TABLES.parent.mkdir(exist_ok=True)  # Python's bytecode may be elsewhere
    TABLES.touch()
    lalr()


def parse(tokens: Sequence[Token], end: Token) -> Tree[Token]:
    """The statement that `tokens` are; `end` stands for the end of its line. Raises ParseError."""
    try:
        return lalr().parse(tokens)
    except UnexpectedToken as error:
        got = end if error.token.type == "$END" else error.token
        raise ParseError(got, _complaint(tokens, got, error.accepts)) from error


def _complaint(tokens: Sequence[Token], got: Token, accepted: set[str]) -> str:
    statement = "" if got is tokens[0] else str(tokens[0])
    wants_name = "STRING" in accepted and statement
    if is_keyword(got) and got in NOT_SUPPORTED.get(statement, ()) and not wants_name:
        return f'"{got}" is not supported'
    expected = sorted((_SAID[name] for name in accepted), key=lambda said: (not said.startswith('"'), said))
    one_of = expected[0] if len(expected) == 1 else ", ".join(expected[:-1]) + f" or {expected[-1]}"
    hint = "; it is a reserved word, which must be quoted to be a name" if is_keyword(got) and wants_name else ""
    return f"expected {one_of}, got {_said(got)}{hint}"


def _said(token: Token) -> str:
    if token.type == "$END":
        return "end of line"
    text = str(token)
    shown = text if len(text) <= 40 else text[:37] + "..."
    said = '"' + "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown) + '"'
    return f"{said} in quotes" if token.type == "STRING" and token in KEYWORDS else said
