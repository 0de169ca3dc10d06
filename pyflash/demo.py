"""The built-in demo model: a few MB with seeded random weights, made on first use in the user's cache folder.

It exercises everything that a real model does and talks nonsense.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from gguf_export.errors import reason
from pyflash._native import __version__
from pyflash.errors import Error, FileError
from pyflash.places import cache_dir

MAX_TOKENS = 64  # random weights do not know when to stop
_RECIPE = 2  # raise it when the same version would make another file


def file() -> Path:
    """The demo model's place, whether it is there yet or not."""
    return cache_dir() / f"demo-{__version__}-{_RECIPE}.gguf"


def path(progress: Callable[[int, int], None] | None = None) -> Path:
    """The demo model's GGUF, made when it is not there yet. Safe against other processes doing the same."""
    target = file()
    if target.is_file():
        return target
    from gguf_export.convert import ConvertOptions, convert
    from gguf_export.errors import ConvertError
    from gguf_export.synthetic import make_config, write_checkpoint

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="demo-", dir=target.parent) as folder:
            checkpoint = write_checkpoint(Path(folder) / "demo, random weights", make_config("tiny"), seed=4)
            made = Path(folder) / target.name
            convert(checkpoint, made, ConvertOptions(), progress=progress)
            os.replace(made, target)
    except OSError as error:
        raise FileError(f"cannot make the demo model in {target.parent}: {reason(error)}; "
                        "set PYFLASH_CACHE to a folder that can be written") from error
    except ConvertError as error:
        raise Error(f"cannot make the demo model: {error}") from error
    return target
