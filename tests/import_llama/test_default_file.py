"""The converter's default output (Q8_0 and MXFP4) in llama.cpp: logits, generation, chats, shards, the MTP file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyflash
import pytest
from gguf import GGUFReader
from pyflash import chat

from import_llama.models import pyflash_logits, random_tokens, write_model
from import_llama.runner import LlamaCpp
from oracle.compare import kl_divergence

pytestmark = pytest.mark.llama

N_PROMPT, N_CONTINUE = 500, 64
WORST_KL, WORST_TOP1 = 0.15, 0.8  # of a random model, whose routing flips exaggerate; see test_precision.py


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The main file and the MTP file."""
    return write_model(tmp_path_factory.mktemp("default"), 20, {"vocab_size": 1024}, mtp=True)


def test_logits(llama: LlamaCpp, files: list[Path]) -> None:
    prompt = random_tokens(N_PROMPT, 21, 1024)
    (run,) = llama.evaluate(files[0], [prompt], N_CONTINUE)
    ours = pyflash_logits(files[0], run.tokens)
    kl = kl_divergence(ours, run.logits).mean()
    top1 = (ours.argmax(-1) == run.logits.argmax(-1)).mean()
    print(f"\nKL(pyflash exact || llama.cpp) on the default file: {kl:.4f}, same likeliest token: {top1:.3f}")
    assert 0 < kl < WORST_KL and top1 > WORST_TOP1
    assert len(np.unique(run.tokens[N_PROMPT:])) >= N_CONTINUE // 4


def test_shards(llama: LlamaCpp, files: list[Path], tmp_path: Path) -> None:
    """llama.cpp finds all shards from the first one and computes the very same logits."""
    shards = write_model(tmp_path, 20, {"vocab_size": 1024}, shard_bytes=300_000)
    assert len(shards) > 3
    prompt = random_tokens(40, 22, 1024)
    (whole,), (parts,) = (llama.evaluate(path, [prompt]) for path in (files[0], shards[0]))
    assert np.array_equal(whole.logits, parts.logits)


def test_mtp_file(files: list[Path]) -> None:
    """It is for drafting beside the main file: the gguf package reads it, pyflash drafts with it."""
    main, mtp = files
    reader = GGUFReader(mtp)
    assert reader.fields["deepseek4.nextn_predict_layers"].contents() == 1
    assert "blk.6.nextn.eh_proj.weight" in [tensor.name for tensor in reader.tensors]
    with pyflash.Model.open(main, mtp=mtp) as model, model.session(context=8) as session:
        assert model.info.has_mtp
        session.eval([5, 6])
        assert np.isfinite(session.draft(7)).all()


MESSAGE = "Where is the house of the people?"
USER_TEXT = "Hello! Wie geht's? 你好 <think> 12345\n\n"
CHATS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": USER_TEXT}]},
    {"messages": [{"role": "user", "content": "Hi"}], "enable_thinking": True},
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "One?"},
            {"role": "assistant", "content": "Two.", "reasoning_content": "After one comes two."},
            {"role": "user", "content": "Three?"},
            {"role": "user", "content": "Or four?"},
        ],
        "enable_thinking": True,
    },
]


def test_chat(llama: LlamaCpp, files: list[Path]) -> None:
    """llama.cpp's own Jinja renders the stored template as pyflash encodes chats; a session with it generates."""
    chats = [chat_ | {"add_generation_prompt": True} for chat_ in CHATS]
    reply = llama.run(files[0], chats=chats, answers=[MESSAGE])
    for chat_, rendered in zip(CHATS, reply["rendered"], strict=True):
        assert rendered == chat.encode(chat_["messages"], thinking=chat_.get("enable_thinking", False))
    (answer,) = reply["answers"]
    print(f"\nllama.cpp answers {answer['text']!r} and stops because of {answer['stop']}")
    with pyflash.Model.open(files[0]) as model:
        prompt = model.tokenizer.encode_segments(chat.segments([{"role": "user", "content": MESSAGE}]))
    assert answer["ids"][: len(prompt)] == prompt
    assert answer["text"] and 0 < len(answer["ids"]) - len(prompt) <= 24
