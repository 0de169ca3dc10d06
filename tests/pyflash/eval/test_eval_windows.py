"""How `pyflash eval` reads texts and cuts them into windows."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyflash
import pytest
from gguf_export.reader import read_gguf
from pyflash.eval import windows as windows_module
from pyflash.eval.windows import TextRules, encode_text, plan_windows, text_pieces, tokens_needed

pytestmark = pytest.mark.quick


def numbered(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.int32)


def test_windows_lie_side_by_side() -> None:
    windows = plan_windows(numbered(35), 8)
    assert (windows.count, windows.first, windows.n_scored) == (4, 4, 3)
    assert windows.inputs(1).tolist() == [8, 9, 10, 11, 12, 13, 14]  # nobody scores what follows 15
    assert windows.targets(1).tolist() == [13, 14, 15]
    assert windows.targets(3).tolist() == [29, 30, 31]
    assert plan_windows(numbered(35), 7).n_scored == 3  # llama.cpp: n_ctx - n_ctx / 2 - 1
    assert plan_windows(numbered(35), 7).inputs(0).tolist() == list(range(6))


def test_bos_takes_the_place_of_the_first_token() -> None:
    windows = plan_windows(numbered(35), 8, bos=99)
    assert windows.inputs(1).tolist() == [99, 9, 10, 11, 12, 13, 14]
    assert windows.tokens.tolist() == list(range(35)) and windows.targets(0).tolist() == [5, 6, 7]


def test_stride() -> None:
    windows = plan_windows(numbered(21), 8, stride=3, bos=99)
    assert (windows.count, windows.n_scored, windows.bos) == (5, 3, None)
    scored = [windows.targets(index).tolist() for index in range(windows.count)]
    assert scored[:2] == [[5, 6, 7], [8, 9, 10]] and scored[-1] == [17, 18, 19]  # each token once, none left out
    assert windows.inputs(2).tolist() == list(range(6, 13))
    assert plan_windows(numbered(20), 8, stride=3).count == 4
    assert plan_windows(numbered(16), 8, stride=7).inputs(0).tolist() == list(range(7))


def test_number_of_windows() -> None:
    assert plan_windows(numbered(100), 8, 3).count == 3
    assert plan_windows(numbered(100), 8, 1000).count == 12
    for stride in (None, 3, 7):
        for most in (1, 2, 5):
            enough = tokens_needed(8, most, stride)
            assert enough is not None
            cut = plan_windows(numbered(enough), 8, most, stride)
            whole = plan_windows(numbered(1000), 8, most, stride)
            assert cut.count == whole.count == most
            assert cut.targets(most - 1).tolist() == whole.targets(most - 1).tolist()
    assert tokens_needed(8, None, None) is None


@pytest.mark.parametrize(("n_tokens", "n_ctx", "stride", "words"), [
    (15, 8, None, "only 15 tokens, and a context of 8 needs twice"),
    (100, 3, None, "use at least 4"),
    (100, 8, 8, "use 1 to 7"),
    (100, 8, 0, "use 1 to 7"),
])  # fmt: skip
def test_impossible_windows(n_tokens: int, n_ctx: int, stride: int | None, words: str) -> None:
    with pytest.raises(pyflash.ArgumentError, match=words):
        plan_windows(numbered(n_tokens), n_ctx, stride=stride)


# -- texts --


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Iterator[pyflash.Tokenizer]:
    with pyflash.Model.open(tiny_model) as model:
        yield model.tokenizer


NO_RULES = TextRules(False, 0, {})


@pytest.mark.parametrize("size", [1, 2, 7, 64, 10_000])
def test_text_in_pieces_gives_the_same_tokens(tokenizer: pyflash.Tokenizer, size: int) -> None:
    rng = random.Random(size)
    parts = ["\n", "\n\n", " ", "  ", "A", "the ", "word", "12", "3", ".", "!\n", "\r\n", "é", "日本", "\t", "\u0301"]
    for _ in range(30):
        text = "".join(rng.choice(parts) for _ in range(rng.randrange(200)))
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        found = encode_text([*pieces, ""], tokenizer, NO_RULES)
        assert found.dtype == np.int32 and found.tolist() == tokenizer.encode(text)


def test_only_as_much_as_needed_is_read(tokenizer: pyflash.Tokenizer) -> None:
    def pieces() -> Iterator[str]:
        yield from ("one two\nthree four\n" for _ in range(5))
        raise AssertionError("too much was read")

    found = encode_text(pieces(), tokenizer, NO_RULES, enough=12)
    assert found.tolist() == tokenizer.encode("one two\nthree four\n" * 5)[:12]


def test_tokens_that_any_text_may_give(tokenizer: pyflash.Tokenizer) -> None:
    """llama.cpp takes text of type USER_DEFINED for its token, that of type CONTROL for text."""
    think, user = tokenizer.token_id("<think>"), tokenizer.token_id("<｜User｜>")
    assert think is not None and user is not None
    rules = TextRules(True, 7, {"<think>": think, "<think>>": 5})
    text = "a <think>b<think>> <｜User｜> c"
    found = encode_text([text], tokenizer, rules).tolist()
    assert found == [7, *tokenizer.encode("a "), think, *tokenizer.encode("b"), 5, *tokenizer.encode(" <｜User｜> c")]
    assert user not in found
    special = encode_text([text], tokenizer, rules, special=True).tolist()
    assert special == [7, *tokenizer.encode(text, special=True)] and user in special
    lines = TextRules(False, 0, {"\nA": 5})  # such a token would be cut in two
    assert encode_text(["x\n", "A"], tokenizer, lines).tolist() == [*tokenizer.encode("x"), 5, *tokenizer.encode("")]


def test_rules_come_from_the_file(tiny_model: Path, tokenizer: pyflash.Tokenizer) -> None:
    keys = read_gguf(tiny_model).keys
    rules = TextRules.of(keys, 3)
    assert not rules.add_bos and rules.bos == 3
    assert rules.plain and all(tokenizer.token_id(text) == token for text, token in rules.plain.items())
    assert TextRules.of({**keys, "tokenizer.ggml.add_bos_token": True}, 3).add_bos
    assert TextRules.of({}, 3) == TextRules(False, 3, {})


def test_last_newline_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (1, 3, 100):
        monkeypatch.setattr(windows_module, "_PIECE_CHARACTERS", size)
        for text, kept in (("a\nb\n", "a\nb"), ("a\n\n", "a\n"), ("ab", "ab"), ("\n", ""), ("", ""), ("a\r\n", "a\r")):
            assert "".join(text_pieces(io.StringIO(text, newline=""), "t.txt")) == kept


def test_what_is_no_text(tmp_path: Path) -> None:
    path: Any = tmp_path / "t.bin"
    path.write_bytes(b"ab\xff\xfe")
    with open(path, encoding="utf-8") as file, pytest.raises(pyflash.FormatError, match="t.bin is not UTF-8 text"):
        list(text_pieces(file, "t.bin"))
