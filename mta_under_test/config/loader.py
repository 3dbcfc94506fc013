"""From files to a Config: reads, follows includes, keeps macros, collects every mistake.

Owns: the order of things. The meaning of single statements is builder.py's.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

from lark import Token, Tree

from mta_under_test.config.builder import Builder
from mta_under_test.config.lexer import Lexer, LexError
from mta_under_test.config.model import Config, ConfigError
from mta_under_test.config.parser import ParseError, parse
from mta_under_test.config.statement import Mistake, Unknown

MAX_ERRORS = 50  # more would bury the first


def load(path: Path) -> Config:
    """Raises ConfigError."""
    loader = _Loader(path)
    try:
        text = _read(path)
    except OSError as error:
        raise ConfigError([f"{path}: cannot read the configuration: {error.strerror}"]) from error
    except UnicodeError as error:
        raise ConfigError([f"{path}:{error}"]) from error
    loader.read(path, text, (path.resolve(),))
    return loader.finish()


class _Loader:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._macros: dict[str, str] = {}
        self._builder = Builder()
        self._errors: list[str] = []
        self._whole = True  # no statement was lost to a mistake in its form

    def read(self, path: Path, text: str, within: Sequence[Path]) -> None:
        """All statements of one file; `within` are the files that led here, and itself."""
        lexer = Lexer(text, self._macros)
        while len(self._errors) < MAX_ERRORS:
            try:
                tokens = lexer.statement()
                if tokens is None:
                    return
                tree = parse(tokens, lexer.end_of(tokens))
            except (LexError, ParseError) as error:
                self._whole = False
                self._mistake(path, error.token, str(error))
                lexer.skip_past(error.token)
                continue
            try:
                self._take(path, tree, within)
            except Mistake as error:
                # A name may be missing only because its statement could not be read: one mistake, one line.
                if self._whole or not isinstance(error, Unknown):
                    self._mistake(path, error.token, str(error))

    def _take(self, path: Path, tree: Tree[Token], within: Sequence[Path]) -> None:
        if tree.data == "macro":
            name, value = tree.children
            assert isinstance(name, Token)
            if not (name.isascii() and name.replace("_", "a").isalnum()):
                raise Mistake(name, f'"{name}" is no name for a macro; it can have letters, digits and "_"')
            self._macros[str(name)] = str(value)
        elif tree.data == "include":
            self._include(path, tree.children[1], within)
        else:
            self._builder.take(tree, path)

    def _include(self, path: Path, name: object, within: Sequence[Path]) -> None:
        assert isinstance(name, Token)
        target = path.parent / name
        try:
            if target.resolve() in within:
                raise Mistake(name, f'cannot include "{name}": it includes itself')
            text = _read(target)
        except OSError as error:
            raise Mistake(name, f'cannot include "{name}": {error.strerror}') from error
        except UnicodeError as error:
            raise Mistake(name, f'cannot include "{name}": line {error}') from error
        except RuntimeError as error:  # links in a circle (Path.resolve)
            raise Mistake(name, f'cannot include "{name}": {error}') from error
        self.read(target, text, (*within, target.resolve()))

    def _mistake(self, path: Path, token: Token, text: str) -> None:
        self._errors.append(f"{path}:{token.line}:{token.column}: {text}")

    def finish(self) -> Config:
        if not self._errors:
            for path, error in self._builder.check():
                self._mistake(path, error.token, str(error))
        if self._whole and not self._errors and not self._builder.matches:
            self._errors.append(f'{self._path}: no rule, so no mail is accepted; write "match" and an action')
        if self._errors:
            raise ConfigError(self._errors)
        return self._builder.config(self._path, socket.gethostname())


def _read(path: Path) -> str:
    """Raises OSError, or UnicodeError which names line and column."""
    data = path.read_bytes()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line_start = data.rfind(b"\n", 0, error.start) + 1
        line, column = data.count(b"\n", 0, error.start) + 1, error.start - line_start + 1
        raise UnicodeError(f"{line}:{column}: byte {data[error.start]:#04x} is not UTF-8") from error
