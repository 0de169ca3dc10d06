"""A small byte-level BPE tokenizer in the official tokenizer.json layout, for synthetic checkpoints.

It has the official pre-tokenizer and special tokens, so chat turns and tools work, and a few hundred merges learned
from a short list of English words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
PAD = "<｜▁pad▁｜>"

# In the order of their official ids from 128800; None are ids that hold a placeholder there.
_SPECIAL_START = 128800
_SPECIALS: tuple[str | None, ...] = (
    "<｜fim▁hole｜>", "<｜fim▁begin｜>", "<｜fim▁end｜>", "<｜User｜>", "<｜Assistant｜>", "<|EOT|>",
    "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>",
    "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>", "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>",
    "<｜tool▁sep｜>", "<｜begin▁of▁repo▁name｜>", "<｜end▁of▁repo▁name｜>", "<｜begin▁of▁file▁name｜>",
    "<｜end▁of▁file▁name｜>", "<｜begin▁of▁file｜>", "<｜end▁of▁file｜>", "<think>", "</think>", None, None,
    "｜DSML｜", "<｜begin▁sys｜>", "<｜end▁sys｜>", "<｜latest_reminder｜>", "<｜action｜>", "<｜query｜>",
    "<｜authority｜>", "<｜domain｜>", "<｜task｜>", "<｜political｜>", "<｜entity｜>", "<｜title｜>", "<｜safety｜>",
    "<｜answer｜>", "<｜search｜>", "<dsml:", "</dsml:", "<｜search▁begin｜>", "<｜search▁end｜>",
    "<｜extracted_url｜>", "<｜read_url｜>", "<｜end_of_query｜>",
)  # fmt: skip
_NAMED = [name for name in _SPECIALS if name is not None]

_WORDS = """the of and to in is you that it he was for on are as with his they at be this have from or one had by word
but not what all were we when your can said there use an each which she do how their if will up other about out many
then them these so some her would make like him into time has look two more write go see number no way could people my
than first water been call who oil its now find long down day did get come made may part over new sound take only
little work know place year live me back give most very after thing our just name good sentence man think say great
where help through much before line right too mean old any same tell boy follow came want show also around form three
small set put end does another well large must big even such because turn here why ask went men read need land
different home us move try kind hand picture again change off play spell air away animal house point page letter mother
answer found study still learn should world""".split()

_N_BYTES = 256
_FIRST_BYTE = 3
MOST_MERGES = 400


def least_vocabulary() -> int:
    """The smallest vocabulary that holds the bytes, the special tokens and at least a few merges."""
    return _FIRST_BYTE + _N_BYTES + len(_NAMED) + 16


def merge_room(vocab_size: int) -> int:
    """How many merges fit beside the bytes and the special tokens."""
    return vocab_size - _FIRST_BYTE - _N_BYTES - len(_NAMED)


@lru_cache(maxsize=1)
def byte_alphabet() -> tuple[str, ...]:
    """The printable character that byte-level BPE writes for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return tuple(table[byte] for byte in range(256))


def _merge(symbols: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged: list[str] = []
    i = 0
    while i < len(symbols):
        if symbols[i : i + 2] == pair:
            merged.append(symbols[i] + symbols[i + 1])
            i += 2
        else:
            merged.append(symbols[i])
            i += 1
    return tuple(merged)


@lru_cache(maxsize=1)
def _learn_merges() -> tuple[tuple[str, str], ...]:
    """Up to MOST_MERGES pairs, most frequent first, ties by text; common words first in _WORDS weigh more."""
    space = byte_alphabet()[0x20]
    words: Counter[tuple[str, ...]] = Counter()
    for rank, word in enumerate(_WORDS):
        weight = 1 + 200 // (rank + 2)
        words[(space,) + tuple(word)] += 3 * weight
        words[tuple(word)] += weight
    merges: list[tuple[str, str]] = []
    while len(merges) < MOST_MERGES:
        pairs: Counter[tuple[str, str]] = Counter()
        for symbols, weight in words.items():
            for pair in zip(symbols, symbols[1:], strict=False):
                pairs[pair] += weight
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        words = Counter({_merge(symbols, best): weight for symbols, weight in words.items()})
    return tuple(merges)


def _special_ids(vocab_size: int, base_end: int) -> dict[int, str]:
    """Official ids where the vocabulary reaches that far, else directly after the base vocabulary."""
    if vocab_size >= _SPECIAL_START + len(_SPECIALS):
        return {_SPECIAL_START + i: name for i, name in enumerate(_SPECIALS) if name is not None}
    return {base_end + i: name for i, name in enumerate(_NAMED)}


def _added(token_id: int, text: str, special: bool) -> dict[str, Any]:
    return {
        "id": token_id,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": not special,
        "special": special,
    }


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _byte_level(prefix_space: bool, trim: bool, use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": prefix_space, "trim_offsets": trim, "use_regex": use_regex}


# The splits of the published tokenizer.json.
_PUNCTUATION = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
_PRE_TOKENIZERS = [
    _split(r"\p{N}{1,3}"),
    _split("[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"),
    _split(
        _PUNCTUATION + "[A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*"
        r"|\s*[" + "\r\n" + r"]+|\s+(?!\S)|\s+"
    ),
    _byte_level(prefix_space=False, trim=True, use_regex=False),
]


def build_tokenizer(
    vocab_size: int, merges: Sequence[tuple[str, str]] | None = None
) -> dict[str, dict[str, Any]]:
    """tokenizer.json and tokenizer_config.json objects for exactly `vocab_size` ids.

    merges: pairs in byte_alphabet()'s characters, most important first, all of which must fit; None for the built-in
    ones, as many as fit. Raises ValueError for a vocabulary smaller than least_vocabulary(), or for too many merges.
    """
    if vocab_size < least_vocabulary():
        raise ValueError(f"a vocabulary of {vocab_size} is too small, {least_vocabulary()} is the least")
    room = merge_room(vocab_size)
    if merges is None:
        merges = _learn_merges()[:room]
    elif len(merges) > room:
        raise ValueError(f"{len(merges)} merges do not fit a vocabulary of {vocab_size}, which has room for {room}")
    vocab = {BOS: 0, EOS: 1, PAD: 2}
    vocab |= {char: _FIRST_BYTE + byte for byte, char in enumerate(byte_alphabet())}
    for left, right in merges:
        vocab.setdefault(left + right, len(vocab))
    base_end = len(vocab)
    specials = _special_ids(vocab_size, base_end)
    added = [_added(token_id, text, True) for text, token_id in list(vocab.items())[:3]]
    n_placeholders = 0
    for token_id in range(base_end, vocab_size):
        if token_id in specials:
            text = specials[token_id]
            added.append(_added(token_id, text, text == "<｜end_of_query｜>"))
        else:
            added.append(_added(token_id, f"<｜place▁holder▁no▁{n_placeholders}｜>", True))
            n_placeholders += 1
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocab,
        "merges": [f"{left} {right}" for left, right in merges],
    }  # fmt: skip
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": []},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _PRE_TOKENIZERS},
        "post_processor": _byte_level(prefix_space=True, trim=False, use_regex=True),
        "decoder": _byte_level(prefix_space=True, trim=True, use_regex=True),
        "model": model,
    }
    settings = {
        "add_bos_token": False,
        "add_eos_token": False,
        "bos_token": {"__type": "AddedToken", "content": BOS},
        "eos_token": {"__type": "AddedToken", "content": EOS},
        "pad_token": {"__type": "AddedToken", "content": EOS},
        "model_max_length": 1048576,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    return {"tokenizer.json": tokenizer, "tokenizer_config.json": settings}
