"""The page in a browser: servers for it, and what tests do with it again and again."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "pyflash" / "serve" / "page"

# Random weights end most answers some day, and these have to be stopped before: every step takes its time.
SLOW = """
import sys, time
from pyflash.serve import engine

evaluate = engine.evaluate

def slow(*arguments, **options):
    time.sleep(0.02)
    return evaluate(*arguments, **options)

engine.evaluate = slow
from pyflash.cli.main import main

main(sys.argv[1:])
"""

# The model is opened when a file appears, whose path is the first argument.
LATE = """
import os, sys, time
from pyflash import Model

gate, opened = sys.argv[1], Model.open

def late(*arguments, **options):
    while not os.path.exists(gate):
        time.sleep(0.05)
    return opened(*arguments, **options)

Model.open = late
from pyflash.cli.main import main

main(sys.argv[2:])
"""


@contextmanager
def started(*arguments: object, program: str | None = None, before: tuple[object, ...] = ()) -> Iterator[subprocess.Popen[str]]:
    """`pyflash serve` in a process of its own. program: Python that runs it otherwise, with arguments before its own."""
    start = [sys.executable, "-m", "pyflash"] if program is None else [sys.executable, "-c", program, *map(str, before)]
    command = [*start, "serve", *map(str, arguments), "--no-disk-cache"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.communicate(timeout=60)


def serving(*arguments: object, program: str | None = None) -> Iterator[str]:
    """Its address, once it answers."""
    with started(*arguments, "--port", 0, program=program) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"answers at (http://\S+)", line):
                yield found[1]
                return
        raise AssertionError(lines)


def ask(page: Any, text: str) -> None:
    page.fill("#question", text)
    page.click(".composer >> text=Send")


def answers(page: Any, n: int) -> list[str]:
    """The texts of n complete answers."""
    page.locator(".answer .actions").nth(n - 1).wait_for()
    return [text.strip() for text in page.locator(".answer .markdown").all_inner_texts()]


def until(page: Any, holds: str, argument: Any = None) -> None:
    """Waits for a condition of JavaScript: a function, or an expression."""
    page.wait_for_function(holds if "=>" in holds else f"() => {holds}", arg=argument)


def hold(page: Any, pattern: str) -> Callable[[], None]:
    """Has the page's requests wait until what is returned is called."""
    held: list[Any] = []
    released: list[bool] = []

    def take(route: Any) -> None:
        if released:
            route.continue_()
        else:
            held.append(route)

    def release() -> None:
        released.append(True)
        for route in held:
            route.continue_()

    page.route(pattern, take)
    return release


def streamed(page: Any, pieces: list[str], kind: str = "content", finish: str | None = "stop") -> None:
    """Has the page's questions answered with these pieces, instead of by the server."""
    chunks: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": {kind: piece}}]} for piece in pieces]
    if finish is not None:
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    fulfill: Callable[[Any], None] = lambda route: route.fulfill(status=200, content_type="text/event-stream", body=body)  # noqa: E731
    page.route("**/v1/chat/completions", fulfill)
