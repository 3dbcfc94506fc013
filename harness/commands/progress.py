"""Live progress of a run, on standard error: a bar on a terminal, lines with -v, nothing with -q."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from harness.run.design import Progress as Show


@contextmanager
def progress(*, quiet: bool, verbose: bool) -> Iterator[Show]:
    """A callable for the experiment to tell what happens now, how much is done, and how much is planned so far."""
    if quiet:
        yield lambda text, done, planned: None
        return
    console = Console(stderr=True)
    if verbose or not console.is_terminal:
        began = time.monotonic()

        def line(text: str, done: int, planned: int) -> None:
            if verbose:
                print(f"{time.monotonic() - began:7.2f} s  {done:5}/{planned:<5} {text}", file=sys.stderr, flush=True)

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda text, done, planned: bar.update(task, description=text, completed=done, total=planned)
