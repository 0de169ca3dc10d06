"""A model in stages on several machines, over Ray: pyflash.cluster.Model has the API of pyflash.Model."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyflash.cluster.model import Model as Model
    from pyflash.cluster.session import Session as Session

_HOME_OF = {"Model": "model", "Session": "session"}

__all__ = ["Model", "Session"]  # noqa: F822


def __getattr__(name: str) -> object:
    import importlib

    if name not in _HOME_OF:
        raise AttributeError(f"module 'pyflash.cluster' has no attribute {name!r}")
    return getattr(importlib.import_module(f"pyflash.cluster.{_HOME_OF[name]}"), name)
