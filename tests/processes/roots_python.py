"""A Python that only root can read: to be imported by a daemon before it starts. Children without rights load nothing.

A directory that is closed to others would have to be the one that Python itself stands in.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType


class RootsAlone(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if os.geteuid() != 0:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, RootsAlone())
