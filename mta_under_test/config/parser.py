"""From tokens to statements: the grammar, and what to say when it does not fit.

Owns: the LALR parser, made once. Never: knows what a statement is good for.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from lark import Lark, Token, Tree, UnexpectedToken
from lark.common import LexerConf
from lark.lexer import Lexer as LarkLexer

from mta_under_test.config.lexer import KEYWORDS, PUNCTUATION, is_keyword, terminal

# In 6.8's grammar, and not in ours: by the statement that it is said in, "" for statements.
_TLS = frozenset({"ca", "ciphers", "pki", "protocols", "tls"})
NOT_YET = {
    "": frozenset({"admd", "ca", "filter", "mda", "mta", "pki", "proc", "scheduler", "srs"}),
    "listen": _TLS
    | {"auth", "auth-optional", "filter", "hostnames", "no-dsn", "proxy-v2", "received-auth", "senders", "smtps"}
    | {"tls-require"},
    "action": _TLS | {"auth", "backup", "domain", "filter", "helo-src", "mail-from", "srs", "wrapper"},
    "match": frozenset({"rdns", "tls"}),
    "queue": frozenset({"compression", "encryption"}),
    "smtp": frozenset({"ciphers", "sub-addr-delim"}),
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
def _parser() -> Lark:
    grammar = Path(__file__).with_name("smtpd.lark").read_text(encoding="utf-8")
    return Lark(grammar, parser="lalr", lexer=_Tokens, start="statement")


def parse(tokens: Sequence[Token], end: Token) -> Tree[Token]:
    """The statement that `tokens` are; `end` stands for the end of its line. Raises ParseError."""
    try:
        return _parser().parse(tokens)
    except UnexpectedToken as error:
        got = end if error.token.type == "$END" else error.token
        raise ParseError(got, _complaint(tokens, got, error.accepts)) from error


def _complaint(tokens: Sequence[Token], got: Token, accepted: set[str]) -> str:
    statement = "" if got is tokens[0] else str(tokens[0])
    wants_name = "STRING" in accepted and statement
    if is_keyword(got) and got in NOT_YET.get(statement, ()) and not wants_name:
        return f'"{got}" is not supported yet'
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
