"""Reading the fields of a body: what is there has the right type, or a RequestError names it. null counts as absent."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from pyflash.serve.errors import RequestError


class Fields:
    """An object of the body. path: where it stands, "" for the body itself."""

    def __init__(self, value: Any, path: str = "") -> None:
        if not isinstance(value, Mapping):
            raise wrong(path, "an object", value)
        self._value = value
        self.path = path

    def at(self, key: str) -> str:
        """The path of a field."""
        return f"{self.path}.{key}" if self.path else key

    def __contains__(self, key: str) -> bool:
        return self._value.get(key) is not None

    def raw(self, key: str) -> Any:
        """A field as it is; None where it is absent."""
        return self._value.get(key)

    def plain(self) -> dict[str, Any]:
        """A copy of the object itself."""
        return dict(self._value)

    def require(self, key: str) -> Any:
        value = self._value.get(key)
        if value is None:
            raise RequestError(f"{self.at(key)} is missing: send it", param=self.at(key))
        return value

    def string(self, key: str, default: str = "", longest: int | None = None) -> str:
        value = self._value.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise wrong(self.at(key), "a string", value)
        if longest is not None and len(value) > longest:
            raise RequestError(f"{self.at(key)} is longer than {longest} characters: shorten it", param=self.at(key))
        return value

    def boolean(self, key: str, default: bool = False) -> bool:
        value = self._value.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise wrong(self.at(key), "true or false", value)
        return value

    def integer(self, key: str, low: int, high: int = 2**31 - 1) -> int | None:
        """A whole number from low to high, perhaps written as 1.0; None where it is absent."""
        value = self._value.get(key)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise wrong(self.at(key), "a whole number", value)
        if not low <= value <= high:
            raise RequestError(f"{self.at(key)} must be from {low} to {high}", param=self.at(key))
        return value

    def number(self, key: str, low: float, high: float) -> float | None:
        """A number from low to high; None where it is absent."""
        value = self._value.get(key)
        if value is None:
            return None
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise wrong(self.at(key), "a number", value)
        if not low <= value <= high or math.isnan(value):
            raise RequestError(f"{self.at(key)} must be from {low:g} to {high:g}", param=self.at(key))
        return float(value)

    def choice(self, key: str, *names: str) -> str | None:
        """One of some words; None where it is absent."""
        value = self._value.get(key)
        if value is None:
            return None
        if not isinstance(value, str):
            raise wrong(self.at(key), "a string", value)
        if value not in names:
            raise RequestError(f"{self.at(key)} must be one of {', '.join(names)}", param=self.at(key))
        return value

    def inner(self, key: str) -> Fields | None:
        """An object within this one; None where it is absent."""
        value = self._value.get(key)
        return None if value is None else Fields(value, self.at(key))

    def list(self, key: str, most: int) -> list[Any]:
        """A list of at most so many entries, [] where it is absent."""
        value = self._value.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise wrong(self.at(key), "a list", value)
        if len(value) > most:
            raise RequestError(f"{self.at(key)} has more than {most} entries: send fewer", param=self.at(key))
        return value

    def objects(self, key: str, most: int) -> Iterator[Fields]:
        """The objects of a list."""
        for n, value in enumerate(self.list(key, most)):
            yield Fields(value, f"{self.at(key)}[{n}]")


def wrong(path: str, wanted: str, value: Any) -> RequestError:
    """A field of another type than it must have."""
    kinds = {type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "a string",
             list: "a list", dict: "an object"}  # fmt: skip
    given = kinds.get(type(value), type(value).__name__)
    return RequestError(f"{path or 'the body'} must be {wanted}, not {given}", param=path or None)
