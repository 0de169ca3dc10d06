"""Logprobs of tokens as OpenAI's protocols write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyflash.serve.events import TokenChance


def logprobs_entries(tokens: Sequence[TokenChance]) -> list[dict[str, Any]]:
    """An entry for each token: its text, logprob and bytes, and the likeliest ones at its place."""
    return [
        {"token": token.text, "logprob": token.logprob, "bytes": list(token.data),
         "top_logprobs": [{"token": top.text, "logprob": top.logprob, "bytes": list(top.text.encode())}
                          for top in token.top]}
        for token in tokens
    ]  # fmt: skip


def logprobs_content(tokens: Sequence[TokenChance]) -> dict[str, Any] | None:
    """The entries as a chat's choice has them; None where there are none."""
    return {"content": logprobs_entries(tokens), "refusal": None} if tokens else None
