"""What a run of the command line left behind."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ran:
    """What a command left behind. stderr holds one line and no traceback where it failed."""

    code: int
    stdout: str
    stderr: str

    def json(self) -> dict[str, Any]:
        last: dict[str, Any] = json.loads(self.stdout.splitlines()[-1])
        assert last["done"] is True
        return last
