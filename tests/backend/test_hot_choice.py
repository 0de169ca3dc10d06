"""csrc/offload/hot_choice.c: which experts are worth a place in a device's spare memory."""

from __future__ import annotations

import ctypes
from typing import Any

import native_build
import pytest

pytestmark = pytest.mark.quick

FADING = 512


class Choice(ctypes.Structure):
    """pf_hot_choice."""

    _fields_ = [("n", ctypes.c_int32), ("uses", ctypes.POINTER(ctypes.c_float)), ("unit", ctypes.c_double)]


@pytest.fixture(scope="module")
def library() -> Any:
    loaded = ctypes.CDLL(str(native_build.build("native", "choices") / "choices.so"))
    loaded.pf_hot_choice_of.restype = Choice
    loaded.pf_hot_replaces.restype = ctypes.c_bool
    return loaded


class Counted:
    """Experts by index, and their uses."""

    def __init__(self, library: Any, n: int) -> None:
        self._library, self._uses = library, (ctypes.c_float * n)()
        self._choice = library.pf_hot_choice_of(self._uses, n)

    def use(self, index: int, times: int = 1) -> None:
        for _ in range(times):
            self._library.pf_hot_use(ctypes.byref(self._choice), index)

    def fade(self, tokens: int) -> None:
        self._library.pf_hot_fade(ctypes.byref(self._choice), ctypes.c_int64(tokens))

    def replaces(self, newcomer: int, old: int) -> bool:
        return bool(self._library.pf_hot_replaces(ctypes.byref(self._choice), newcomer, old))

    def least(self, *owners: int) -> int:
        return int(self._library.pf_hot_least_used(ctypes.byref(self._choice), (ctypes.c_int32 * len(owners))(*owners),
                                                   len(owners)))  # fmt: skip


@pytest.mark.parametrize("old", [0, 1, 10, 100])
def test_a_lead_is_needed(library: Any, old: int) -> None:
    counted = Counted(library, 2)
    counted.use(0, old)
    for uses in range(1, 200):
        counted.use(1)
        assert counted.replaces(1, 0) == (uses > 1.5 * old + 2)


@pytest.mark.parametrize("before", [0, 27 * FADING + FADING // 2], ids=["at-first", "scaled-down-meanwhile"])
def test_uses_fade(library: Any, before: int) -> None:
    """100 uses are 37 after 512 tokens, and less than one after 2,560; what is used then counts fully."""
    counted = Counted(library, 2)
    counted.fade(before)
    counted.use(0, 100)
    counted.fade(FADING)
    counted.use(1, 57)
    assert not counted.replaces(1, 0)
    counted.use(1)
    assert counted.replaces(1, 0)
    counted.fade(4 * FADING)
    counted.use(0, 5)
    assert counted.replaces(0, 1), "1.1 are left of 58"


@pytest.mark.parametrize("step", [1, 31, 512, 65536])
def test_counts_stay_in_order_for_ever(library: Any, step: int) -> None:
    """Of two that are used again and again, one twice as often, it stays the more used, whatever the number of tokens."""
    counted = Counted(library, 3)
    for _ in range(max(4, 40 * FADING // step)):
        counted.fade(step)
        counted.use(0, 3)
        counted.use(1, 12)
        assert counted.replaces(1, 0) and not counted.replaces(0, 1) and not counted.replaces(2, 0)


def test_the_least_used_goes(library: Any) -> None:
    counted = Counted(library, 4)
    for index, times in enumerate((5, 3, 9, 1)):
        counted.use(index, times)
    assert counted.least(0, 1, 2, 3) == 3 and counted.least(2, 1, 0) == 1
    assert counted.least(-1, 2, -2, 0) == 3, "slots without an owner are passed over"
    assert counted.least(-1, -2) == -1
