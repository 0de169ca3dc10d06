"""Local runtime for DeepSeek-V4 models."""

from __future__ import annotations

from typing import TYPE_CHECKING

try:
    from pyflash import chat
    from pyflash._native import __version__
    from pyflash.errors import (
        ArgumentError,
        BusyError,
        CancelledError,
        ClosedError,
        ContextFullError,
        DeviceError,
        Error,
        FileError,
        FormatError,
        InternalError,
        MemoryLimitError,
        RebuildError,
        UnsupportedError,
    )
    from pyflash.generation import Piece
    from pyflash.grammar import Grammar
    from pyflash.model import Model, ModelInfo
    from pyflash.reply import ChatPiece, Reply
    from pyflash.sampling import SamplingOptions, TokenLogprob
    from pyflash.session import Memory, Session
    from pyflash.tokenizer import Tokenizer
except ImportError as error:
    if not TYPE_CHECKING:
        # Told at the first use, so that the command can say it in one line: Python imports this module before that one.
        _problem = error

        def __getattr__(name: str) -> object:
            raise ImportError(str(_problem)) from _problem


__all__ = [
    "ArgumentError",
    "BusyError",
    "CancelledError",
    "ChatPiece",
    "ClosedError",
    "ContextFullError",
    "DeviceError",
    "Error",
    "FileError",
    "FormatError",
    "Grammar",
    "InternalError",
    "Memory",
    "MemoryLimitError",
    "Model",
    "ModelInfo",
    "Piece",
    "RebuildError",
    "Reply",
    "SamplingOptions",
    "Session",
    "TokenLogprob",
    "Tokenizer",
    "UnsupportedError",
    "__version__",
    "chat",
]
