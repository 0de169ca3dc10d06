"""Runs the C test programs of this folder, which are built with sanitizers."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any


def run(program: Path, *args: object, timeout: float = 300, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs a test program; sanitizers end it with a report on stderr and a failing status."""
    env = {**os.environ, "ASAN_OPTIONS": "allocator_may_return_null=1", "UBSAN_OPTIONS": "print_stacktrace=1"}
    command = [str(program), *map(str, args)]
    done: subprocess.CompletedProcess[str] = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env=env, **options
    )
    return done
