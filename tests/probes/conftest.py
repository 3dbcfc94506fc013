from __future__ import annotations

from collections.abc import Iterator

import pytest
from probed import Holder, holds_everything


@pytest.fixture
def holder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Holder]:
    with holds_everything(tmp_path_factory.mktemp("h")) as holder:
        yield holder
