"""From characters to the tokens of statements: macros, comments, continued lines, quotes.

The rules are those of OpenSMTPD's parse.y. Newlines end a statement, except between braces. A `$name` outside quotes
is replaced by the macro's value, which is read as if it stood there, but not expanded again.

Owns: the position in one file. Never: opens a file, knows what a statement means.
"""

from __future__ import annotations

import itertools
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping

from lark import Token

_STATEMENTS = "action admd bounce ca filter include listen match mda mta pki proc queue scheduler smtp srs table"
_OTHERS = """
alias any auth auth-optional backup bypass cert chain chroot ciphers commit compression connect data data-line dhe
disconnect domain ehlo encryption expand-only fcrdns for forward-only from group helo helo-src host hostname hostnames
inet4 inet6 junk key limit lmtp local mail-from maildir mask-src masquerade max-deferred max-message-size mbox mx
no-dsn no-verify noop on phase port proc-exec protocols proxy-v2 quit rcpt-to rdns received-auth recipient regex
reject relay report rewrite rset senders smtp-in smtp-out smtps socket src sub-addr-delim tag tagged tls tls-require
ttl user userbase verify virtual warn-interval wrapper
"""
STATEMENTS = frozenset(_STATEMENTS.split())
KEYWORDS = STATEMENTS | frozenset(_OTHERS.split())
PUNCTUATION = {
    "=": "_EQUALS",
    "=>": "_EQUALS",
    ",": "_COMMA",
    "!": "NOT",
    "{": "LBRACE",
    "}": "_RBRACE",
    "<": "LESS",
    ">": "_MORE",
}
MAX_TOKENS = 100_000  # in one statement; a macro's value can be long, and used often

# Between tokens: blanks, continued lines, and comments, which a continued line continues too.
_SKIP = re.compile(r"(?:[ \t\r]|\\\r?\n|#(?:\\\r?\n|[^\n])*)+")
_NUMBER = re.compile(r"-?[0-9]{1,18}(?=[\s),}=#]|\Z)")
_WORD = re.compile(r"[A-Za-z0-9_:][A-Za-z0-9\"$%&'*+\-./:;?@\[\]^_`|~]*")
_PUNCTUATION = re.compile(r"=>|[=,!{}<>]")
_MACRO = re.compile(r"\$[A-Za-z0-9_]*")
_QUOTED = {quote: re.compile(rf"{quote}((?:[^{quote}\\]|\\.)*){quote}", re.DOTALL) for quote in "\"'"}
_ESCAPE = {quote: re.compile(rf"\\?\r?\n|\\(?:\\|([ \t{quote}]))") for quote in "\"'"}


class LexError(Exception):
    """A character or a macro that cannot stand where it stands."""

    def __init__(self, token: Token, text: str) -> None:
        super().__init__(text)
        self.token = token


class Lexer:
    """Reads one file's text, statement by statement. `macros` may grow between statements."""

    def __init__(self, text: str, macros: Mapping[str, str]) -> None:
        self._text = text
        self._macros = macros
        self._at = 0
        self._began_line = 0  # of the statement last read
        # Not re.finditer: it looks "search" up by a fresh string each time, which CPython 3.11 keeps (see wire.date).
        self._lines = [0, *itertools.accumulate(len(line) + 1 for line in text.split("\n")[:-1])]

    def statement(self) -> list[Token] | None:
        """The tokens of the next statement; None at the end. Raises LexError; `skip_past` it to go on."""
        tokens: list[Token] = []
        depth = 0
        while True:
            self._at = _past_blanks(self._text, self._at)
            if self._at == len(self._text):
                return tokens or None
            if self._text[self._at] == "\n":
                self._at += 1
                if tokens and depth <= 0:
                    return tokens
                continue
            for token in self._next():
                if not tokens:
                    self._began_line = bisect_right(self._lines, token.start_pos or 0)
                tokens.append(token)
                depth += (token.type == "LBRACE") - (token.type == "_RBRACE")
                if len(tokens) > MAX_TOKENS:
                    raise LexError(token, f"a statement of more than {MAX_TOKENS} words")

    def skip_past(self, token: Token) -> None:
        """Go on after a mistake at `token`: with its line, if it begins a statement there, else with the next line."""
        assert token.start_pos is not None
        line = bisect_right(self._lines, token.start_pos)
        opens_line = not self._text[self._lines[line - 1] : token.start_pos].strip()
        if opens_line and is_keyword(token) and token in STATEMENTS and self._began_line < line:
            line -= 1
        self._at = self._lines[line] if line < len(self._lines) else len(self._text)

    def end_of(self, tokens: list[Token]) -> Token:
        """Where a statement ends: just after its last token."""
        end = tokens[-1].end_pos
        assert end is not None
        return self._token("$END", "", end, end)

    def _next(self) -> Iterator[Token]:
        start = self._at
        if macro := _MACRO.match(self._text, start):
            self._at = macro.end()
            yield from self._expanded(self._token("MACRO", macro[0], start, self._at))
            return
        try:
            kind, value, self._at = _scan(self._text, start)
        except ValueError as error:
            raise LexError(self._token("", self._text[start], start, start + 1), str(error)) from error
        yield self._token(kind, value, start, self._at)

    def _expanded(self, macro: Token) -> Iterator[Token]:
        """The tokens in a macro's value; all of them stand where its name does."""
        if macro[1:] not in self._macros:
            raise LexError(macro, f'macro "{macro[1:]}" is not defined')
        text = self._macros[macro[1:]]
        at = _past_blanks(text, 0)
        while at < len(text):
            try:
                kind, value, at = _scan(text, at)
            except ValueError as error:
                raise LexError(macro, f"in the value of {macro}: {error}") from error
            yield Token.new_borrow_pos(kind, value, macro)
            at = _past_blanks(text, at)

    def _token(self, kind: str, value: str, start: int, end: int) -> Token:
        line = bisect_right(self._lines, start)
        return Token(kind, value, start_pos=start, line=line, column=start - self._lines[line - 1] + 1, end_pos=end)


def is_keyword(token: Token) -> bool:
    """Whether it is a reserved word, and not the same word in quotes."""
    return token.type not in ("STRING", "NUMBER") and token in KEYWORDS


def terminal(keyword: str) -> str:
    """The grammar's name for a reserved word."""
    return keyword.upper().replace("-", "_")


def _past_blanks(text: str, at: int) -> int:
    blanks = _SKIP.match(text, at)
    return blanks.end() if blanks else at


def _scan(text: str, at: int) -> tuple[str, str, int]:
    """The token at `at`: terminal, value, end. Raises ValueError, with the reason, if there is none."""
    first = text[at]
    if first in _QUOTED:
        quoted = _QUOTED[first].match(text, at)
        if quoted is None:
            raise ValueError("the quoted string has no end")
        if "\0" in quoted[1]:
            raise ValueError("a NUL in the quoted string")
        # An escaped quote or blank loses its backslash, a line's end goes altogether, every other backslash stays.
        plain = _ESCAPE[first].sub(lambda found: "\\\\" if found[0] == "\\\\" else found[1] or "", quoted[1])
        return "STRING", plain, quoted.end()
    if number := _NUMBER.match(text, at):
        return "NUMBER", number[0], number.end()
    if word := _WORD.match(text, at):
        return (terminal(word[0]) if word[0] in KEYWORDS else "STRING"), word[0], word.end()
    if sign := _PUNCTUATION.match(text, at):
        return PUNCTUATION[sign[0]], sign[0], sign.end()
    if first.isprintable() and not first.isspace():
        raise ValueError(f"unexpected {first}; text that begins with it must be quoted")
    raise ValueError(f"unexpected character {first!r}")
