from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def wide_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As tiny_checkpoint, with rows of 256 weights, which types of few bits need."""
    from gguf_export.synthetic import make_config, write_checkpoint

    config = make_config("tiny", hidden_size=256, moe_intermediate_size=256)
    return write_checkpoint(tmp_path_factory.mktemp("wide") / "checkpoint", config, seed=12)
