"""Local runtime for DeepSeek-V4 models."""

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
