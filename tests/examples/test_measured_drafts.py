"""What measure_drafts.py counts for the demo model: pyflash against PyTorch, and drafts one by one against the loop."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch", reason="torch computes the drafts too")
pytest.importorskip("safetensors", reason="safetensors reads the checkpoint")

import pyflash  # noqa: E402
from gguf_export.convert import ConvertOptions, convert  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "train_demo"))

import measure_drafts  # noqa: E402
from measure_drafts import MTP_BLOCK, Counts, Proposals, Text  # noqa: E402

ROWS = ("arithmetic, high", "tools", "talk")


@pytest.fixture(scope="module")
def texts(demo_model: Path) -> list[Text]:
    with pyflash.Model.open(demo_model, threads=1) as model, model.session(context=2048) as session:
        return measure_drafts.greedy(session, ROWS, 3, seed=5)


def test_drafts_are_pytorchs(texts: list[Text], demo_checkpoint: Path, tmp_path: Path) -> None:
    """With the weights as they are stored: nearly every token, and the confidences."""
    stages = pyflash.demo.stages()
    assert stages is not None
    options = {"dense": "bf16", "mtp": True}
    (model_file, _) = convert(demo_checkpoint, tmp_path / "m.gguf", ConvertOptions(**options)).files
    (file,) = convert(demo_checkpoint, tmp_path / "m.gguf", ConvertOptions(**options, drafts=stages)).files
    proposals = Proposals(*measure_drafts.load(demo_checkpoint, stages))
    n = same = 0
    apart = []
    with pyflash.Model.open(model_file, mtp=file, precision="exact", threads=1) as model, \
            model.session(context=2048) as session:
        block = model.info.draft_most
        for text in texts:
            expected = proposals(text)
            found = measure_drafts.pyflash_drafts(session, text, block)
            assert found.keys() == expected.keys()
            for place, (tokens, sure) in found.items():
                others, other_sure = expected[place]
                n, same = n + 1, same + (tokens == others)
                if tokens == others:
                    apart.append((torch.tensor(sure).sigmoid() - torch.tensor(other_sure).sigmoid()).abs())
    assert n > 300 and same > 0.97 * n
    assert torch.stack(apart).quantile(0.95) < 0.02


@pytest.mark.parametrize("drafter", ["mtp", "dspark"])
def test_the_loop_keeps_what_single_drafts_say(texts: list[Text], demo_model: Path, drafter: str) -> None:
    with pyflash.Model.open(demo_model, mtp=pyflash.demo.draft_path(drafter), threads=1) as model, \
            model.session(context=2048) as session:
        assert model.info.drafts == drafter
        block = model.info.draft_most or MTP_BLOCK
        counts = Counts.of(block)
        for text in texts:
            counts.add(text, measure_drafts.pyflash_drafts(session, text, block))
        assert measure_drafts.in_the_loop(session, texts, block) == counts.kept / counts.steps > 0.5
