"""The file of DSpark stages that the converter writes beside a model, in real llama.cpp, and what it drafts with it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyflash
import pytest
from gguf_export.convert import ConvertOptions, convert
from gguf_export.synthetic import make_config, write_checkpoint

from import_llama.runner import LlamaCpp, compiled

pytestmark = pytest.mark.llama

BLOCK = 5
LONGEST = 122  # tokens: from 124 on llama.cpp has each token of a block see its own 128, the published reference the same ones


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a window that reaches over all of LONGEST."""
    return write_checkpoint(tmp_path_factory.mktemp("dspark") / "c", make_config("tiny", "0731", sliding_window=128), seed=3)


def test_the_draft_file_loads(llama: LlamaCpp, checkpoint: Path, tmp_path: Path) -> None:
    """llama.cpp asks for each number and tensor, and ends where one is missing or has another shape."""
    report = convert(checkpoint, tmp_path / "m.gguf", ConvertOptions(mtp=True))
    assert report.files[1].name == "dspark-m.gguf"
    assert llama.run(report.files[1])["vocab"] == make_config("tiny")["vocab_size"]


def llama_drafts(folder: Path, files: list[Path], texts: list[dict[str, Any]]) -> list[list[list[int]]]:
    program, libraries = compiled("drafts.cpp", folder)
    request = {"model": str(files[0]), "drafter": str(files[1]), "n": BLOCK, "texts": texts}
    done = subprocess.run([program, libraries], input=json.dumps(request).encode(), capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:].decode(errors="replace")
    found: list[list[list[int]]] = json.loads(done.stdout)
    return found


def test_drafts_are_llama_cpps(checkpoint: Path, tmp_path: Path) -> None:
    """Float32 everywhere: the same tokens behind each of a text's, from its first one on and far into it."""
    files = convert(checkpoint, tmp_path / "m.gguf", ConvertOptions(mtp=True, dense="f32", experts="f32")).files
    rng = np.random.default_rng(1)
    n_vocab = make_config("tiny")["vocab_size"]
    texts = [{"tokens": rng.integers(5, n_vocab, LONGEST).tolist(), "begin": begin} for begin in (1, 20, 60)]
    expected = llama_drafts(tmp_path, files, texts)
    n_drafts = 0
    with pyflash.Model.open(files[0], mtp=files[1], precision="exact", threads=1) as model, \
            model.session(context=LONGEST) as session:
        for text, drafts in zip(texts, expected, strict=True):
            session.rollback(session.position)
            session.eval(text["tokens"][: text["begin"]])
            for place, draft in enumerate(drafts, text["begin"]):
                assert session.draft_tokens(text["tokens"][place], BLOCK)[0] == draft, f"behind token {place}"
                session.eval([text["tokens"][place]])
                n_drafts += 1
    assert n_drafts > 200
