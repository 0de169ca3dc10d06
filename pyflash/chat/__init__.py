"""DeepSeek-V4's chat encoding as published: conversations to prompts, and generated text back to messages.

Messages are as in OpenAI's chat API, with "role" and "content": mappings, or objects such as its Python package has.
The roles:

- "system": also "tools" and "response_format".
- "user", and "tool" with "tool_call_id": neighbours become one user turn, tool results in the order of the calls.
- "assistant": also "reasoning_content", "tool_calls", "prefix" for a last message that the model is to go on with, and
  "wo_eos" for a turn left open anywhere.
- "developer" (as "system", at a user's place) and "latest_reminder": used by the model's own services.

Any message may have a "task", such as "action" or "title", which asks for a short classification instead of a reply.
"""

from __future__ import annotations

from pyflash.chat.encoding import encode, segments, with_response_format, with_tools
from pyflash.chat.format import (
    ASSISTANT,
    BOS,
    DSML,
    EOS,
    LATEST_REMINDER,
    THINK_BEGIN,
    THINK_END,
    USER,
    Segment,
    thinking_modes,
)
from pyflash.chat.messages import Message
from pyflash.chat.parsing import parse
from pyflash.chat.streaming import Event, StreamParser, TextKind

__all__ = [
    "ASSISTANT",
    "BOS",
    "DSML",
    "EOS",
    "LATEST_REMINDER",
    "THINK_BEGIN",
    "THINK_END",
    "USER",
    "Event",
    "Message",
    "Segment",
    "StreamParser",
    "TextKind",
    "encode",
    "parse",
    "segments",
    "thinking_modes",
    "with_response_format",
    "with_tools",
]
