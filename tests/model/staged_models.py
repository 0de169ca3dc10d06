"""A model whole or in stages, which the same tests of state are run on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyflash


def open_stages(path: Path, n_stages: int, **options: Any) -> Any:
    """Model.open(), or from two stages on StagedModel.open()."""
    return pyflash.Model.open(path, **options) if n_stages == 1 else pyflash.StagedModel.open(path, n_stages, **options)
