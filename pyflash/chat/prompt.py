"""From a conversation's segments to tokens, as far as possible those that a session has evaluated already."""

from __future__ import annotations

from collections.abc import Sequence

from pyflash.chat import Segment
from pyflash.engine.tokenizer import Tokenizer


def encode_prompt(tokenizer: Tokenizer, segments: Sequence[Segment], known: Sequence[int]) -> list[int]:
    """Token ids of chat.segments() for a session that has evaluated the tokens known.

    A text may be written in tokens in more than one way, and a model does not always generate the one that the
    tokenizer gives. Where known goes on with a segment's text in other tokens, these are taken: they are what the
    model has written, and need not be evaluated again.
    """
    out: list[int] = []
    follows = True  # out is the beginning of known
    for n, (text, special) in enumerate(segments):
        ids = tokenizer.encode(text, special=special)
        left = known[len(out) :]
        if follows and ids[: len(left)] != left[: len(ids)]:
            after = segments[n + 1] if n + 1 < len(segments) else None
            as_known = None if special else _as_known(tokenizer, text, left, after)
            follows = as_known is not None
            ids = as_known or ids
        out += ids
    return out


def _as_known(tokenizer: Tokenizer, text: str, left: Sequence[int], after: Segment | None) -> list[int] | None:
    """The tokens at the beginning of left that spell text; after is the special segment that follows it."""
    end = len(left)
    if after is not None and after[1]:
        mark = tokenizer.encode(after[0], special=True)[0]
        end = next((n for n, token in enumerate(left) if token == mark), end)
    run = list(left[:end])
    spelled = tokenizer.decode(run)
    if spelled == text:
        return run
    if end == len(left) and run and text.startswith(spelled):  # the last token of an answer is not evaluated
        return run + tokenizer.encode(text[len(spelled) :])
    return None
