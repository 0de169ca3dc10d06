"""Real llama.cpp for tests: the prebuilt npm package, installed once into a cache folder, run by llama.mjs."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from npm_packages import installed, require_node

FOLDER = Path(__file__).resolve().parent
PACKAGE = FOLDER / "package.json"
_LEAST_NODE = 20
_HEADERS = ("common", "include", "ggml/include", "vendor")


def _without_amx(folder: Path) -> None:
    """Takes away llama.cpp's kernels for AMX: on processors that have it, every deepseek4 file with Q8_0 weights ends the
    process ("GGML_ASSERT(*cur_backend_id != -1)"), as attn_output_a is used reshaped and AMX's buffers take no such weight.
    Without that library llama.cpp picks its next best one."""
    for library in folder.rglob("libggml-cpu-sapphirerapids.so"):
        library.unlink()


def install() -> Path:
    """The folder that holds node_modules, about 85 MB: only what package.json names, nothing optional (GPU builds), no
    scripts (downloads, compilers). Skips the test where llama.cpp cannot be had."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        pytest.skip("the prebuilt llama.cpp of these tests is for Linux on x86-64")
    require_node(_LEAST_NODE, "llama.cpp comes")
    return installed("llama-cpp", PACKAGE.read_bytes(), ["--omit=optional", "--ignore-scripts"], _without_amx, b"without AMX")


def compiled(source: str, folder: Path) -> tuple[Path, Path]:
    """A program of this folder, linked with the package's libraries, and the folder of these. The package has no programs of
    llama.cpp's, and its sources as a git bundle, whose headers it takes. Skips the test where there is no compiler."""
    package = install()
    compiler = shutil.which("g++") or shutil.which("clang++")
    if not compiler or not shutil.which("git"):
        pytest.skip("llama.cpp's libraries are linked to: install git and g++ to run these tests")
    libraries = package / "node_modules/@node-llama-cpp/linux-x64/bins/linux-x64"
    names = ("libllama-common.so", "libllama.v*.so", "libggml.v*.so", "libggml-base.so")
    linked = [path for name in names for path in libraries.glob(name)]
    sources, program = folder / "llama.cpp", folder / Path(source).stem
    bundle = package / "node_modules/node-llama-cpp/llama/gitRelease.bundle"
    for command in (
        ["git", "clone", "--quiet", "--no-checkout", bundle, sources],
        ["git", "-C", sources, "checkout", "--quiet", "HEAD", "--", *_HEADERS],
        [compiler, "-std=c++17", *[f"-I{sources / header}" for header in _HEADERS], FOLDER / source, "-o", program, *linked,
         f"-Wl,-rpath,{libraries}"],
    ):  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    shutil.rmtree(sources)
    return program, libraries


@dataclass(frozen=True)
class Continuation:
    """tokens: the prompt and what llama.cpp appended. logits: float32 [len(tokens), vocab], row i after token i."""

    tokens: np.ndarray
    n_prompt: int
    logits: np.ndarray


class LlamaCpp:
    """Each call is a process of its own: llama.cpp ends its process where it meets a file it does not expect."""

    def __init__(self, package: Path) -> None:
        self.package = package

    def run(self, model: Path, **request: Any) -> dict[str, Any]:
        """What llama.mjs replies to the request; fails the test with llama.cpp's messages when it does not."""
        with tempfile.TemporaryDirectory() as folder:
            request_file, reply_file = Path(folder, "request.json"), Path(folder, "reply.json")
            request |= {"package": str(self.package), "model": str(model), "reply": str(reply_file)}
            request_file.write_text(json.dumps(request), encoding="utf-8")
            command = ["node", str(FOLDER / "llama.mjs"), str(request_file)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=600)
            assert done.returncode == 0, f"llama.cpp on {model.name}: exit code {done.returncode}\n{done.stderr}"
            reply: dict[str, Any] = json.loads(reply_file.read_text(encoding="utf-8"))
        return reply

    def evaluate(
        self, model: Path, prompts: Sequence[np.ndarray], n_continue: int = 0, **request: Any
    ) -> list[Continuation]:
        """Prompts in llama.cpp's own batches, then its likeliest tokens one at a time.

        float32=True: caches and attention in float32 rather than llama.cpp's float16.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "logits")
            ids = [prompt.tolist() for prompt in prompts]
            reply = self.run(model, prompts=ids, logits=str(path), **{"continue": n_continue}, **request)
            rows = np.fromfile(path, np.float32).reshape(-1, reply["vocab"])
        assert np.isfinite(rows).all()
        results = []
        for prompt, appended in zip(prompts, reply["continuations"], strict=True):
            tokens = np.concatenate([prompt, np.array(appended, prompt.dtype)])
            results.append(Continuation(tokens, len(prompt), rows[: len(tokens)]))
            rows = rows[len(tokens) :]
        assert not len(rows)
        return results
