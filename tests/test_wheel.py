"""What is installed from the wheel has everything that the checkout has, and works without it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("harness", "mta_under_test", "reports", "scenarios")
NOT_OURS = shutil.ignore_patterns(".*", "runs", "build", "*.egg-info", "__pycache__", "tests", "node_modules")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy and unpacked: a directory for PYTHONPATH."""
    place = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, place / "source", ignore=NOT_OURS)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", place, place / "source"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)
    if done.returncode and "setuptools" in done.stderr:
        pytest.skip("pip cannot fetch setuptools to build a wheel; it needs a network")
    assert done.returncode == 0, done.stderr
    (wheel,) = place.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place / "site")
    return place / "site"


def test_every_file_of_the_packages_is_in_it(installed: Path) -> None:
    there = {path.relative_to(ROOT) for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file()}
    missing = {path for path in there if "__pycache__" not in path.parts and not (installed / path).is_file()}
    assert not missing


def test_it_judges_a_server_far_from_the_checkout(installed: Path, tmp_path: Path) -> None:
    code = "import harness, sys; print(harness.__file__, file=sys.stderr); from harness.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, "run", "connect-quit", "--quiet"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.stderr.startswith(str(installed)), "it was the checkout's"
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("CLEAN: nothing is kept")
