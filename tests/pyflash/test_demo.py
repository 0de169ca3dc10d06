"""The demo model: the bundled checkpoint, and how the first use converts it."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pyflash
from gguf_export.checkpoint import open_checkpoint
from gguf_export.convert import ConvertOptions, plan_conversion
from gguf_export.inventory import Weight
from gguf_export.safetensors_file import read_header
from pyflash import demo
from pyflash.cli.progress import Progress
from quantize.plan import Form

COMMAND = [sys.executable, "-m", "pyflash"]
MOST_BYTES, MOST_STAGE_BYTES = 16 * 10**6, 3 * 10**6


@pytest.fixture
def source(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint in the bundled one's place, to be changed at will; the cache is empty."""
    folder = tmp_path / "source"
    shutil.copytree(tiny_checkpoint, folder)
    monkeypatch.setenv("PYFLASH_DEMO", str(folder))
    monkeypatch.setenv("PYFLASH_CACHE", str(tmp_path / "cache"))
    return folder


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, encoding="utf-8", timeout=120)


def test_first_use_tells_what_is_converted(source: Path) -> None:
    first, second = (run("run", "Hello", "-n", 3, "--temp", 0, "--json") for _ in range(2))
    assert (first.returncode, second.returncode) == (0, 0)
    what, weights, where = first.stderr.splitlines()
    tensors = open_checkpoint(source).tensors
    assert str(source) in what and f"{len(tensors)} tensors" in what and "MB" in what
    assert "FP4 → MXFP4" in weights and "FP8 → Q8_0" in weights
    assert str(demo.file()) in where and demo.file().is_file()
    assert second.stderr == "" and second.stdout.splitlines()[0] == first.stdout.splitlines()[0]
    assert all(isinstance(json.loads(line), dict) for line in first.stdout.splitlines())
    with pyflash.Model.open(demo.file()) as model:
        assert model.info.name == demo.NAME


def test_another_checkpoint_is_another_file(source: Path) -> None:
    first = demo.path()
    (source / "MODEL_CARD.md").write_text("About this model.")
    assert demo.path() == first
    weights = next(source.glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert demo.file() != first and demo.path() == demo.file()
    assert sorted(first.parent.glob("demo*.gguf")) == sorted([first, demo.file()])


def test_several_processes_at_once(source: Path) -> None:
    program = "from pyflash import demo; print(demo.path())"
    running = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert {process.communicate(timeout=120)[0] for process in running} == {f"{demo.file()}\n"}
    assert [process.returncode for process in running] == [0] * 4
    draft = demo.draft_path()
    assert draft is not None and sorted(demo.file().parent.iterdir()) == [demo.file(), demo.file().with_suffix(".sum"), draft]
    with pyflash.Model.open(demo.file()) as model:
        assert model.info.n_layer == 6


def test_damaged_checkpoint(source: Path) -> None:
    weights = next(source.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    done = run("run", "Hello")
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
    assert weights.name in done.stderr and list(demo.cache_dir().iterdir()) == []


def test_folder_of_the_checkpoint(source: Path) -> None:
    done = run("--demo-checkpoint")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{source}\n", "")
    (source / "config.json").unlink()
    for arguments in (["--demo-checkpoint"], ["run", "Hello"]):
        done = run(*arguments)
        assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
        assert "PYFLASH_DEMO" in done.stderr


def test_lines_above_the_progress_bar() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    with Progress("converting", stream := Terminal()) as progress:
        progress.update(1, 2)
        progress.say("a line")
    assert stream.getvalue().endswith("\r\x1b[Ka line\n") and "50%" in stream.getvalue()
    with Progress("converting", plain := io.StringIO()) as progress:
        progress.update(1, 2)
        progress.say("a line")
    assert plain.getvalue() == "a line\n"


def test_bundled_checkpoint(demo_checkpoint: Path) -> None:
    """The official layout, and no more than may be shipped."""
    files = {path.name for path in demo_checkpoint.iterdir()}
    assert files >= {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert sum(path.stat().st_size for path in demo_checkpoint.iterdir()) <= MOST_BYTES
    checkpoint = open_checkpoint(demo_checkpoint)
    config = checkpoint.config
    assert {0, 4, 128} <= set(config.compress_ratios) and config.hc_mult == 4
    assert 0 < config.n_hash_layers < config.n_layers and checkpoint.drafts == "mtp"

    def forms(ending: str) -> set[Form]:
        return {weight.form for weight in checkpoint.main_weights() if weight.name.endswith(ending)}

    experts: list[Weight] = [weight for weight in checkpoint.main_weights() if weight.is_expert]
    assert {weight.form for weight in experts} == {Form.FP4} and len(experts) > 100
    assert forms(".wq_a") == forms(".wo_b") == forms(".wkv") == {Form.FP8}


def test_bundled_stages(demo_checkpoint: Path) -> None:
    """Release 0731's, for the checkpoint beside them; nothing that this has is there a second time."""
    stages = demo.stages()
    if stages is None:
        pytest.skip("PYFLASH_DEMO names another checkpoint, which needs no stages")
    assert sum(path.stat().st_size for path in stages.iterdir()) <= MOST_STAGE_BYTES
    assert all(name.startswith("mtp.") for name in read_header(stages / "model.safetensors"))
    checkpoint = plan_conversion(demo_checkpoint, ConvertOptions(mtp=True, drafts=stages)).checkpoint
    assert checkpoint.drafts == "dspark" and checkpoint.release == "0731"
    assert checkpoint.config.dspark is not None and checkpoint.config.dspark.block_size == 5


def test_what_drafts_by_its_name(demo_model: Path) -> None:
    if demo.stages() is None:
        pytest.skip("PYFLASH_DEMO names another checkpoint, which needs no stages")
    paths = {drafter: demo.draft_path(drafter) for drafter in ("auto", "off", "ngram", "mtp", "dspark")}
    assert {drafter: path.name.split("-")[0] for drafter, path in paths.items() if path is not None} == {
        "auto": "dspark", "off": "dspark", "ngram": "dspark", "mtp": "mtp", "dspark": "dspark"}


def test_card(demo_checkpoint: Path) -> None:
    if "PYFLASH_DEMO" in os.environ:
        pytest.skip("PYFLASH_DEMO names another checkpoint, which needs no card")
    card = (demo_checkpoint / "MODEL_CARD.md").read_text(encoding="utf-8")
    for word in ("MIT", "Data", "Training", "Limits"):
        assert word in card
