"""Local runtime for DeepSeek-V4 models."""

from __future__ import annotations

from typing import TYPE_CHECKING

try:
    from pyflash import chat
    from pyflash.api import ChatPiece, Memory, Model, ModelInfo, Piece, Session, Tokenizer, __version__
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
    "InternalError",
    "Memory",
    "MemoryLimitError",
    "Model",
    "ModelInfo",
    "Piece",
    "RebuildError",
    "Session",
    "Tokenizer",
    "UnsupportedError",
    "__version__",
    "chat",
]
