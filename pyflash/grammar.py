"""Grammars that an answer must match, by llguidance (the extra "grammar")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pyflash.errors import UnsupportedError

if TYPE_CHECKING:
    from pyflash.generation import Constraint
    from pyflash.model import Model


class Grammar:
    """What a generated text must match. Threads and models may share one."""

    def __init__(self, source: str) -> None:
        """Not for callers: use json_schema(), json(), regex() or lark()."""
        self._source = source

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | str) -> Grammar:
        """JSON that a JSON schema allows."""
        raise UnsupportedError("grammars need another package: pip install 'pyflash[grammar]'")

    @classmethod
    def json(cls) -> Grammar:
        """A JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        """Text that a regular expression matches as a whole."""
        raise UnsupportedError("grammars need another package: pip install 'pyflash[grammar]'")

    @classmethod
    def lark(cls, text: str) -> Grammar:
        """Text of a context-free grammar in the Lark notation, beginning with its rule "start"."""
        raise UnsupportedError("grammars need another package: pip install 'pyflash[grammar]'")

    def matcher(self, model: Model) -> Constraint:
        """A new match of this grammar from its beginning."""
        raise UnsupportedError("grammars need another package: pip install 'pyflash[grammar]'")
