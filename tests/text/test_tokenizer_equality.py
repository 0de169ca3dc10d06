"""The tokenizer against Hugging Face `tokenizers` with the published tokenizer.json, and against the shared vectors."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import pytest

from .conftest import Native, Tokenizer

tokenizers = pytest.importorskip("tokenizers")

SURROGATES = range(0xD800, 0xE000)
BATCH = 8192

# What the alternatives of the pre-tokenizer's patterns begin with, end with or give back, and their neighbours.
FRAGMENTS = [
    *" \t\n\r\v\f", "\r\n", "  ", "   ", "\n\n", " \n", "\n ", "\u00a0", "\u0085", "\u1680", "\u2003", "\u2028",
    "\u202f", "\u3000", "\u200b", "\u200d", "\ufeff", "\u180e", "\u001c", "\x00", "\x7f",
    *"!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", "...", "--", "'s", "'LL", "don't", "#define", "a", "Z", "the", " the",
    "hello", "World", "é", "e\u0301", "\u0301", "\u0300\u0302", "ß", "naïve", "ı", "Привет", "العربية",
    "עִבְרִית", "हिन्दी", "ไทย", "한국어", "中", "中文字", "\u9fa5", "\u9fa6", "\u3400", "\u3007", "々", "ひらがな", "カタカナ",
    "\u3040", "\u3097", "\u3099", "\u309b", "\u30a0", "・", "ー", "ｶﾀｶﾅ", "。", "，", "「", "」", "！", "？", "0", "7",
    "12", "123", "1234567", "٣", "½", "Ⅷ", "①", "𝟘", "²", "𒐀", "€", "→", "∑", "©", "😀", "👩\u200d👩\u200d👧", "🇩🇪",
    "👍🏽", "\ufe0f", "\ue000", "\U000f0000", "\U0010ffff", "\u0378", "\ufffe", "\ufffd", "\U00020000",
    "\U0001f1e6", "\U000e0041", "𝒳", "\U00016fe0", "http://", "x_1", "==", "=>", "//", "/*", "*/", "0x1F", "3.14",
    "<", ">", "|", "｜", "▁", "<｜", "｜>", "think", "DSML",
]

SPECIAL_SAMPLE = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>", "<｜User｜>", "<｜Assistant｜>", "<think>",
                  "</think>", "｜DSML｜", "<dsml:", "</dsml:", "<｜/table>｜", "<｜table｜>", "<|EOT|>", "<｜title｜>",
                  "<｜place▁holder▁no▁1｜>", "<｜place▁holder▁no▁10｜>", "<|place_holder_mm_span_0021|>"]


@pytest.fixture(scope="module")
def reference(tokenizer_json: Path) -> Any:
    """The published tokenizer."""
    return tokenizers.Tokenizer.from_file(str(tokenizer_json))


@pytest.fixture(scope="module")
def plain_reference(tokenizer_json: Path) -> Any:
    """The published tokenizer that matches no added tokens in text."""
    data = json.loads(tokenizer_json.read_text(encoding="utf-8"))
    data["added_tokens"] = []
    return tokenizers.Tokenizer.from_str(json.dumps(data))


def compare(tokenizer: Tokenizer, reference: Any, texts: Iterator[str], special: bool) -> int:
    """Number of texts, all of which were encoded alike and decode to themselves."""
    count = 0
    while batch := list(islice(texts, BATCH)):
        for text, expected in zip(batch, reference.encode_batch_fast(batch, add_special_tokens=False), strict=True):
            ids = tokenizer.encode(text, special)
            assert ids == expected.ids, f"{text!r}"
            assert tokenizer.decode(ids, special) == text.encode(), f"{text!r}"
        count += len(batch)
    return count


def random_character(rng: random.Random) -> str:
    top = rng.choice((0x80, 0x100, 0x800, 0x3000, 0xA000, 0x10000, 0x20000, 0x110000))
    while (code_point := rng.randrange(top)) in SURROGATES:
        pass
    return chr(code_point)


def random_texts(rng: random.Random, pieces: list[str], count: int) -> Iterator[str]:
    """Strings of 1 to 16 parts: characters of all planes, fragments, or both mixed; a part is at times repeated."""
    for _ in range(count):
        share = rng.choice((0.0, 0.3, 0.7, 1.0))
        parts = []
        for _ in range(rng.randint(1, 16)):
            part = rng.choice(pieces) if rng.random() < share else random_character(rng)
            parts.append(part * (rng.randint(2, 5) if rng.random() < 0.1 else 1))
        yield "".join(parts)


def test_deepseeks_own_tokenizer(deepseek: Tokenizer, tokenizer_json: Path) -> None:
    """deepseek-recipe's, whose tokens are those of all vectors."""
    recipe = pytest.importorskip("deepseek_recipe", reason="deepseek-recipe is not installed")
    theirs = recipe.Tokenizer.from_file(str(tokenizer_json))
    for text in random_texts(random.Random(20256), FRAGMENTS + 4 * SPECIAL_SAMPLE, 3000):
        assert deepseek.encode(text, special=True) == theirs.encode(text), f"{text!r}"


def test_vectors(deepseek: Tokenizer, shared: Path) -> None:
    vectors = json.loads((shared / "vectors/tokenizer/vectors.json").read_text(encoding="utf-8"))
    assert len(vectors) > 1000
    for vector in vectors:
        assert deepseek.encode(vector["t"], special=True) == vector["ids"], vector["t"]
        assert deepseek.decode(vector["ids"], special=True) == vector["t"].encode()


def test_random_strings_without_special_tokens(deepseek: Tokenizer, plain_reference: Any) -> None:
    rng = random.Random(20251)
    texts = random_texts(rng, FRAGMENTS + SPECIAL_SAMPLE, 180_000)
    assert compare(deepseek, plain_reference, texts, special=False) == 180_000


def test_random_strings_with_special_tokens(deepseek: Tokenizer, reference: Any) -> None:
    """Also cut and overlapping spellings, such as `<｜/table>｜DSML｜`."""
    rng = random.Random(20252)
    cut = [text[:k] for text in SPECIAL_SAMPLE for k in (1, len(text) - 1)] + [text[1:] for text in SPECIAL_SAMPLE]
    texts = random_texts(rng, FRAGMENTS + 4 * SPECIAL_SAMPLE + cut, 40_000)
    assert compare(deepseek, reference, texts, special=True) == 40_000


def test_every_added_token(deepseek: Tokenizer, reference: Any) -> None:
    added = {token.content: id_ for id_, token in reference.get_added_tokens_decoder().items()}
    assert len(added) == 1283
    for text, id_ in added.items():
        assert deepseek.encode(text, special=True) == [id_]
        assert deepseek.token_id(text) == id_
        assert id_ not in deepseek.encode(text, special=False)
        assert deepseek.encode(f"a {text}{text} b", special=True) == reference.encode(f"a {text}{text} b").ids


def test_plain_text_never_gives_added_tokens(deepseek: Tokenizer, reference: Any) -> None:
    """Whatever it spells, and however special tokens are cut, joined and nested in it."""
    added = {token.content: id_ for id_, token in reference.get_added_tokens_decoder().items()}
    rng = random.Random(20255)
    spellings = [*added, *(80 * SPECIAL_SAMPLE)]
    cuts = [text[: rng.randint(1, len(text))] for text in spellings]
    cuts += [text[rng.randrange(len(text)) :] for text in spellings]
    texts = ["".join(added), " ".join(added), "".join(text[:3] + text + text[3:] for text in added)]
    texts += ["".join(rng.choices(spellings + cuts + FRAGMENTS, k=rng.randint(1, 8))) for _ in range(20_000)]
    ids = set(added.values())
    assert len(ids) == 1283
    for text in texts:
        tokens = deepseek.encode(text, special=False)
        assert ids.isdisjoint(tokens), text
        assert deepseek.decode(tokens) == text.encode()


def test_pieces(native: Native, plain_reference: Any) -> None:
    """The cuts themselves, because the vocabulary hides those that no merge crosses: of random strings, and with each
    code point where its class decides. Of the planes without characters and of private use, every 61st."""
    rng = random.Random(20254)
    code_points = [c for c in range(0x110000)
                   if c not in SURROGATES and (c < 0x34000 or 0xE0000 <= c < 0xE0200 or c % 61 == 0)]
    lines = [f"x{c}y {c}!{c}{c}z\n{c}x\n\n{c}" for c in map(chr, code_points)]
    in_context = ["\n".join(lines[i:i + 128]) for i in range(0, len(lines), 128)]
    for text in [*random_texts(rng, FRAGMENTS, 15_000), *in_context]:
        data = text.encode()
        cuts = [0]
        while cuts[-1] < len(data):
            cuts.append(native.lib.pf_pretokenize_next(data, cuts[-1], len(data)))
        pieces = plain_reference.pre_tokenizer.pre_tokenize_str(text)
        # Written in the byte alphabet, so a character is a byte.
        assert cuts == [0, *accumulate(len(piece) for piece, _ in pieces)], f"{text!r}"


def test_long_pieces(deepseek: Tokenizer, plain_reference: Any) -> None:
    """Pieces around and far above the length where the merging changes its method."""
    rng = random.Random(20253)

    def texts() -> Iterator[str]:
        for length in [*range(40, 60), 100, 1000, 20_000]:
            for alphabet in ("a", "ab", "etaoin", " ", "=", "\n ", "-=", "的一是不了", "аеиоу", "éa", "ก็"):
                yield "".join(rng.choices(alphabet, k=length))

    compare(deepseek, plain_reference, texts(), special=False)
