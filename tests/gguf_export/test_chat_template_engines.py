"""The stored Jinja template in engines that programs with GGUF files use: llama.cpp's own and @huggingface/jinja."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from chats import EFFORTS
from test_chat_template import cases, encoded

from gguf_export.chat_template import chat_template
from import_llama.runner import install

pytestmark = pytest.mark.llama

CASES = cases(600, seed=2)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    package = install()
    folder = tmp_path_factory.mktemp("engines")
    request = {
        "package": str(package),
        "reply": str(folder / "reply.json"),
        "templates": {release: chat_template(release) for release in EFFORTS},
        "chats": [{"template": release, "variables": given} for release, given in CASES],
    }
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    script = Path(__file__).with_name("render.mjs")
    done = subprocess.run(["node", script, folder / "request.json"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    reply: dict[str, list[Any]] = json.loads((folder / "reply.json").read_text(encoding="utf-8"))
    return reply


@pytest.mark.parametrize("engine", ["llama", "huggingface"])
def test_same_as_the_encoder(rendered: dict[str, list[Any]], engine: str) -> None:
    assert len(rendered[engine]) == len(CASES)
    for (release, given), text in zip(CASES, rendered[engine], strict=True):
        assert text == encoded(given, release), given
