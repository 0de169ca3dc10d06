"""Local runtime for DeepSeek-V4 models.

Names are imported when they are first used: `import pyflash` alone reads no library, and a part of the package that the
others build on, such as pyflash.native, can be imported by itself.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as typing's, which would take a moment to import: Ctrl-C may come in it
if TYPE_CHECKING:
    from pyflash import chat as chat
    from pyflash import cluster as cluster
    from pyflash import demo as demo
    from pyflash.chat.reply import ChatPiece as ChatPiece
    from pyflash.chat.reply import Reply as Reply
    from pyflash.engine.generation import Generation as Generation
    from pyflash.engine.generation import Piece as Piece
    from pyflash.engine.grammar import Grammar as Grammar
    from pyflash.engine.model import Model as Model
    from pyflash.engine.model import ModelInfo as ModelInfo
    from pyflash.engine.options import DeviceOptions as DeviceOptions
    from pyflash.engine.sampling import SamplingOptions as SamplingOptions
    from pyflash.engine.sampling import TokenLogprob as TokenLogprob
    from pyflash.engine.session import Memory as Memory
    from pyflash.engine.session import Origin as Origin
    from pyflash.engine.session import PartsInfo as PartsInfo
    from pyflash.engine.session import Session as Session
    from pyflash.engine.stages import StagedModel as StagedModel
    from pyflash.engine.stages import StagedSession as StagedSession
    from pyflash.engine.steps import eval_many as eval_many
    from pyflash.engine.steps import eval_stage as eval_stage
    from pyflash.engine.tokenizer import Tokenizer as Tokenizer
    from pyflash.engine.worker import Worker as Worker
    from pyflash.machine.models import find_model as find_model
    from pyflash.native.errors import AnswerError as AnswerError
    from pyflash.native.errors import ArgumentError as ArgumentError
    from pyflash.native.errors import BusyError as BusyError
    from pyflash.native.errors import CancelledError as CancelledError
    from pyflash.native.errors import ClosedError as ClosedError
    from pyflash.native.errors import ContextFullError as ContextFullError
    from pyflash.native.errors import DeviceError as DeviceError
    from pyflash.native.errors import Error as Error
    from pyflash.native.errors import FileError as FileError
    from pyflash.native.errors import FormatError as FormatError
    from pyflash.native.errors import InternalError as InternalError
    from pyflash.native.errors import MemoryLimitError as MemoryLimitError
    from pyflash.native.errors import RebuildError as RebuildError
    from pyflash.native.errors import UnsupportedError as UnsupportedError
    from pyflash.native.faults import catch_file_errors as catch_file_errors
    from pyflash.native.library import __version__ as __version__

_NAMES_OF = {
    "chat.reply": ("ChatPiece", "Reply"),
    "engine.generation": ("Generation", "Piece"),
    "engine.grammar": ("Grammar",),
    "engine.model": ("Model", "ModelInfo"),
    "engine.options": ("DeviceOptions",),
    "engine.sampling": ("SamplingOptions", "TokenLogprob"),
    "engine.session": ("Memory", "Origin", "PartsInfo", "Session"),
    "engine.stages": ("StagedModel", "StagedSession"),
    "engine.steps": ("eval_many", "eval_stage"),
    "engine.tokenizer": ("Tokenizer",),
    "engine.worker": ("Worker",),
    "machine.models": ("find_model",),
    "native.errors": (
        "AnswerError", "ArgumentError", "BusyError", "CancelledError", "ClosedError", "ContextFullError",
        "DeviceError", "Error", "FileError", "FormatError", "InternalError", "MemoryLimitError", "RebuildError",
        "UnsupportedError",
    ),
    "native.faults": ("catch_file_errors",),
    "native.library": ("__version__",),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _NAMES_OF.items() for name in names}
_MODULES = ("chat", "cluster", "demo")

__all__ = [*sorted(_HOME_OF), *_MODULES]  # noqa: PLE0604


def __getattr__(name: str) -> object:
    import importlib

    if name in _MODULES:
        return importlib.import_module(f"pyflash.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'pyflash' has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"pyflash.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
