"""The memory plan of `pyflash info` against the measured peak of a process that fills the context."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# Large next to the interpreter, and quick: wide rows in the cache, small experts of which one is used.
SHAPE: dict[str, Any] = {
    "hidden_size": 256, "head_dim": 512, "qk_rope_head_dim": 64, "num_attention_heads": 2, "o_groups": 1,
    "index_n_heads": 2, "index_head_dim": 128, "moe_intermediate_size": 512, "n_routed_experts": 224,
    "num_experts_per_tok": 1, "num_hash_layers": 1, "vocab_size": 8192, "num_nextn_predict_layers": 0,
    "compress_ratios": [0, 4, 4, 4, 4, 128],
}  # fmt: skip
CONTEXTS, CACHES = (2048, 6144), ("f16", "reference")

# Random tokens come to every expert and every row of the embedding. The checkpoints stand where the rings are full.
FILL = """
import re, sys
import numpy as np
import pyflash
path, context, cache = sys.argv[1], int(sys.argv[2]), sys.argv[3]
tokens = np.random.default_rng(1).integers(2, 8192, context).astype(np.int32)
with pyflash.Model.open(path) as model, model.session(context=context, cache=cache) as session:
    session.eval(tokens[: context - 240])
    for start in range(context - 240, context - 80, 20):
        session.eval(tokens[start : start + 20])
        session.checkpoint()
    for piece in session.generate(tokens[-80:-16], temperature=0.7, seed=3):
        pass
status = open("/proc/self/status").read()
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) * 1024)
"""


@pytest.fixture(scope="module")
def large_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from gguf_export.convert import ConvertOptions, convert
    from gguf_export.synthetic import make_config, write_checkpoint

    folder = tmp_path_factory.mktemp("large")
    checkpoint = write_checkpoint(folder / "checkpoint", make_config("tiny", **SHAPE), seed=1)
    convert(checkpoint, folder / "m.gguf", ConvertOptions())
    shutil.rmtree(checkpoint)
    return folder / "m.gguf"


def output_of(*command: object) -> str:
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")
def test_plan_is_the_measured_peak(large_model: Path) -> None:
    """Within 5 % each; and what a longer context or the other cache costs, within 10 % of the difference."""
    plans: dict[tuple[str, int], int] = {}
    peaks: dict[tuple[str, int], int] = {}
    for cache, context in itertools.product(CACHES, CONTEXTS):
        report = json.loads(output_of("-m", "pyflash", "info", large_model, "--ctx", context, "--cache-type", cache,
                                      "--json"))
        assert report["fits"] and report["needed_bytes"] == sum(
            report[f"{name}_bytes"] for name in ("weight", "cache", "buffer", "checkpoint", "program"))
        plans[cache, context] = report["needed_bytes"]
        peaks[cache, context] = int(output_of("-c", FILL, large_model, context, cache))
    for key, plan in plans.items():
        print(f"{key}: planned {plan / 1e6:.1f} MB, measured {peaks[key] / 1e6:.1f} MB")
    for key, plan in plans.items():
        assert 0.95 <= plan / peaks[key] <= 1.05, key
    for first, second in ((("f16", 6144), ("f16", 2048)), (("reference", 6144), ("reference", 2048)),
                          (("f16", 6144), ("reference", 6144))):
        planned, measured = plans[first] - plans[second], peaks[first] - peaks[second]
        assert planned > 2e6
        assert abs(planned - measured) < 0.1 * planned + 1e6, (first, second)  # 1 MB: the interpreter's own noise
