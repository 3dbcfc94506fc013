"""Pages as a browser and axe-core see them: violations of its rules, what was fetched, errors of scripts, screenshots.

    python -m tests.axe page.html [--dark] [--width 390] [--screenshot page.png] [--pdf page.pdf]

axe-core and playwright-core come from npm, once, into the project's cache; the browser is Debian's chromium. Where one
of them cannot be had, a test is skipped and says why.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest

from harness.cache import cache_directory
from harness.targets.debian import locked

PACKAGES = ("axe-core@4.14.1", "playwright-core@1.65.1")
SERIOUS = frozenset({"serious", "critical"})  # of axe's impacts: minor, moderate, serious, critical
NPM_TIMEOUT_S = 180.0
LOOK_TIMEOUT_S = 120.0
_SCRIPT = Path(__file__).with_name("axe.cjs")


class Unavailable(Exception):
    """No browser, no npm, or no network; one line says which."""


class Violation(msgspec.Struct, frozen=True):
    rule: str
    impact: Literal["minor", "moderate", "serious", "critical"]
    help: str
    where: list[str]  # CSS selectors

    def __str__(self) -> str:
        return f"{self.impact}: {self.rule}: {self.help}: {'; '.join(self.where[:5])}"


class Seen(msgspec.Struct, frozen=True):
    violations: list[Violation]
    requested: list[str]  # addresses, the page's own first
    errors: list[str]  # that no script caught
    answer: Any = None  # of the `script`

    @property
    def serious(self) -> list[str]:
        """One line for each violation that keeps somebody from reading the page."""
        return [str(each) for each in self.violations if each.impact in SERIOUS]


def look(
    url: str,
    *,
    width: int = 1280,
    height: int = 900,
    scheme: Literal["light", "dark"] = "light",
    wait_for: str = "",
    script: str = "",
    screenshot: Path | None = None,
    whole: bool = True,
    pdf: Path | None = None,
) -> Seen:
    """Open `url` and judge it. `wait_for`: a CSS selector that must be there first. `script`: an expression to evaluate
    at the end. `whole`: the screenshot is of the whole page, not of the window. Raises Unavailable.
    """
    browser = shutil.which("chromium")
    if browser is None:
        raise Unavailable("no chromium here; install Debian's package")
    asked = {
        "url": url, "width": width, "height": height, "scheme": scheme, "wait_for": wait_for, "script": script,
        "screenshot": screenshot and str(screenshot), "whole": whole, "pdf": pdf and str(pdf),
        "browser": browser, "timeout_ms": LOOK_TIMEOUT_S * 500,
    }  # fmt: skip
    done = subprocess.run(
        ["node", str(_SCRIPT), msgspec.json.encode(asked).decode()],
        env={**os.environ, "NODE_PATH": str(_modules())},
        capture_output=True,
        text=True,
        timeout=LOOK_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise AssertionError(f"{url} could not be looked at: {done.stderr.strip()}")
    return msgspec.json.decode(done.stdout, type=Seen)


def looked(url: str, **options: Any) -> Seen:
    """`look`, in a test: skipped where there is nothing to look with."""
    try:
        return look(url, **options)
    except Unavailable as reason:
        pytest.skip(f"needs axe-core and chromium: {reason}")


def _modules() -> Path:
    """The directory that has the packages, installed once. Raises Unavailable."""
    home = cache_directory() / "npm"
    home.mkdir(parents=True, exist_ok=True)
    tree = home / "-".join(each.replace("@", "-") for each in PACKAGES)
    with locked(home / "lock"):
        if not tree.exists():
            _install(tree)
    return tree / "node_modules"


def _install(tree: Path) -> None:
    """Beside the place, and renamed: a tree that is there is whole."""
    if shutil.which("npm") is None:
        raise Unavailable("no npm here; install Debian's package")
    partial = tree.with_name(tree.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(partial), *PACKAGES]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=NPM_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"npm gave no answer within {NPM_TIMEOUT_S:.0f} s (no network?)") from error
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["npm install failed"]
        raise Unavailable(f"{said[0]} (no network?)")
    partial.rename(tree)


def main() -> int:
    parser = argparse.ArgumentParser(description="What axe-core says of a page; status 1 for a serious violation.")
    parser.add_argument("page", help="a file, or an address")
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=900)
    parser.add_argument("--window", action="store_true", help="the screenshot is of the window, not of the whole page")
    parser.add_argument("--screenshot", type=Path)
    parser.add_argument("--pdf", type=Path)
    asked = parser.parse_args()
    url = asked.page if "://" in asked.page else Path(asked.page).resolve().as_uri()
    try:
        seen = look(
            url,
            width=asked.width,
            height=asked.height,
            scheme="dark" if asked.dark else "light",
            screenshot=asked.screenshot,
            whole=not asked.window,
            pdf=asked.pdf,
        )
    except (Unavailable, AssertionError) as error:
        print(f"axe: {error}", file=sys.stderr)
        return 2
    for each in seen.violations:
        print(each)
    print(f"{len(seen.violations)} violations, {len(seen.serious)} of them serious or critical")
    return 1 if seen.serious else 0


if __name__ == "__main__":
    sys.exit(main())
