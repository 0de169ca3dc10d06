"""How the questions of a conversation are to be answered."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class AnswerSettings:
    """Keyword arguments of Session.chat() for every answer of a conversation. sampling: what was chosen of
    SamplingOptions; the rest is as the model's file recommends."""

    sampling: dict[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None
    think: str = "off"
    stop: tuple[str, ...] = ()
    draft: str = "auto"
    draft_max: int | None = None

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of Session.chat()."""
        return {**self.sampling, "max_tokens": self.max_tokens, "think": self.think, "stop": self.stop,
                "draft": self.draft, "draft_max": self.draft_max}  # fmt: skip
