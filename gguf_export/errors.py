"""The one error of this package."""

from __future__ import annotations

from collections.abc import Sequence


class ConvertError(Exception):
    """Something about the input, the options or the disk that the user can act on; its text is one line."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


MOST_NAMED = 8


def several(what: str, problems: Sequence[str]) -> ConvertError:
    """One error that names the first few of many problems."""
    named = "; ".join(problems[:MOST_NAMED])
    more = f"; and {len(problems) - MOST_NAMED:,} more" if len(problems) > MOST_NAMED else ""
    return ConvertError(f"{what}: {named}{more}")
