"""What is compiled when first needed, and what is said where it cannot be."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from harness.compiled import COMPILERS, NativeError, library
from tests.probes.probed import as_another_user

needs_a_compiler = pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="needs a C compiler: install gcc")
ANSWER = "int answer(void) { return 42; }\n"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEATBELT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def source(directory: Path, text: str = ANSWER) -> Path:
    written = directory / "answer.c"
    written.write_text(text)
    return written


@needs_a_compiler
def test_it_is_built_once_and_kept(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = library(source(tmp_path))
    assert ctypes.CDLL(str(built)).answer() == 42
    assert list((cache / "native").iterdir()) == [built]
    monkeypatch.setenv("PATH", str(tmp_path))  # no compiler any more, and none needed
    library.cache_clear()
    assert library(source(tmp_path)) == built


@needs_a_compiler
def test_another_text_is_another_library(tmp_path: Path) -> None:
    first = library(source(tmp_path))
    library.cache_clear()
    other = library(source(tmp_path, ANSWER.replace("42", "43")))
    assert other != first
    assert ctypes.CDLL(str(other)).answer() == 43


def test_without_a_compiler_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NativeError, match=r"no C compiler to build answer\.c with: install gcc"):
        library(source(tmp_path))


@needs_a_compiler
def test_the_first_error_is_told_and_nothing_is_left_behind(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(NativeError, match=r"cannot build answer\.c: .*answer\.c:2.*error.*nowhere"):
        library(source(tmp_path, "int answer(void) {\nreturn nowhere; }\n"))
    assert list((cache / "native").iterdir()) == []


@needs_a_compiler
def test_a_header_that_is_missing_is_told_with_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(NativeError, match=r"nowhere\.h.*install libc6-dev"):
        library(source(tmp_path, "#include <nowhere.h>\n"))


@needs_a_compiler
@pytest.mark.parametrize("mode", [0o500, 0o000], ids=["read-only", "closed"])
def test_a_cache_that_is_not_ours_is_one_error(monkeypatch: pytest.MonkeyPatch, mode: int) -> None:
    with TemporaryDirectory() as public:
        Path(public).chmod(0o755)
        written = source(Path(public))
        kept = Path(public) / "cache/native"
        kept.mkdir(parents=True)
        kept.chmod(mode)
        monkeypatch.setenv("SEATBELT_CACHE", str(kept.parent))

        def refused() -> list[str]:
            try:
                return [str(library(written))]
            except NativeError as error:
                return [str(error)]

        (said,) = as_another_user(refused)
        kept.chmod(0o700)
    assert "answer.c: cannot be built" in said
    assert "Permission denied" in said


def test_a_compiler_that_fails_without_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / COMPILERS[0]
    compiler.write_text("#!/bin/sh\nexit 3\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NativeError, match="status 3"):
        library(source(tmp_path))


def test_a_user_without_a_home_is_told_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for variable in ("SEATBELT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    with pytest.raises(NativeError, match="set SEATBELT_CACHE to a directory"):
        library(source(tmp_path))
