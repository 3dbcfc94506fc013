"""The same configurations are valid, and the same are broken, for Debian's OpenSMTPD and for us."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from harness.targets.debian import library_path
from mta_under_test.config import ConfigError, load
from tests.certificates import self_signed
from tests.debian import unpacked

CORPUS = Path(__file__).parent / "corpus"
VALID, BROKEN = "valid", "broken"


class Case(NamedTuple):
    name: str
    text: str
    valid: bool


def cases() -> Iterator[Case]:
    for kind in (VALID, BROKEN):
        _, *sections = ("\n" + (CORPUS / f"{kind}.txt").read_text()).split("\n--- ")
        for section in sections:
            name, _, text = section.partition("\n")
            yield Case(name, text + "\n", kind == VALID)


CASES = list(cases())


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("corpus")
    certificate, key = self_signed("mx.example.org")
    (directory / "cert.pem").write_bytes(certificate)
    (directory / "key.pem").write_bytes(key)
    (directory / "key.pem").chmod(0o600)
    (directory / "aliases").write_text("root: bob\n# nobody else\n")
    (directory / "secrets").write_text("label user:password\n")
    (directory / "domains").write_text("example.org\nexample.net\n")
    (directory / "included.conf").write_text('address = "127.0.0.1"\n')
    return directory


def written(case: Case, directory: Path, tmp_path: Path) -> Path:
    path = tmp_path / "smtpd.conf"
    path.write_text(case.text.replace("$DIR", str(directory)))
    return path


def test_the_corpus_is_large_enough() -> None:
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=[f"{BROKEN if not case.valid else VALID}: {case.name}" for case in CASES])
def test_debians_smtpd_and_ours_agree(case: Case, directory: Path, tmp_path: Path) -> None:
    path = written(case, directory, tmp_path)
    if case.valid:
        load(path)
    else:
        with pytest.raises(ConfigError) as mistakes:
            load(path)
        assert str(mistakes.value).startswith(str(path)), "a mistake is named with its place"
    theirs = subprocess.run(
        [unpacked("opensmtpd") / "usr/sbin/smtpd", "-n", "-f", path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "LD_LIBRARY_PATH": library_path(unpacked("opensmtpd"))},
    )
    assert (theirs.returncode == 0) == case.valid, theirs.stderr
