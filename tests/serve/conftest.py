from __future__ import annotations

from collections.abc import Iterator

import pytest
from serving import pace as pace


@pytest.fixture(scope="session", autouse=True)
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The key of signatures away from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYFLASH_STATE", str(tmp_path_factory.mktemp("state")))
        yield
