"""Where the routed experts of a chunk are computed (csrc/offload/upload_choice.h), by measurements that are made up."""

from __future__ import annotations

from typing import Any

import cffi
import native_build
import pytest

pytestmark = pytest.mark.quick

HOST, DEVICE = 0, 1
LEAST, TRY, TRIES, RETRY = 32, 256, 2, 50
LAYER = 1000  # bytes of weights
TYPES = """
    typedef int pf_upload_side;
    typedef struct pf_upload_choice {
        bool always;
        int64_t n_noted[2];
        double weight, n, nn, t, nt, seconds_per_byte;
        pf_upload_side last;
        double since_other;
    } pf_upload_choice;
"""
FUNCTIONS = """
    pf_upload_side pf_upload_choose(const pf_upload_choice *choice, int64_t n, uint64_t bytes);
    void pf_upload_note_host(pf_upload_choice *choice, int64_t n, double seconds);
    void pf_upload_note_device(pf_upload_choice *choice, uint64_t bytes, double seconds);
    double pf_upload_host_seconds(const pf_upload_choice *choice, int64_t n);
    double pf_upload_device_seconds(const pf_upload_choice *choice, uint64_t bytes);
"""


@pytest.fixture(scope="module")
def native() -> tuple[Any, Any]:
    """(ffi, lib) of the one source file."""
    ffi = cffi.FFI()
    ffi.cdef(TYPES + FUNCTIONS + "size_t upload_choice_size(void);")
    lib = ffi.dlopen(str(native_build.build("native", "choices") / "choices.so"))
    assert lib.upload_choice_size() == ffi.sizeof("pf_upload_choice")
    return ffi, lib


class Choice:
    """A choice, with layers of LAYER bytes."""

    def __init__(self, native: tuple[Any, Any], always: bool = False) -> None:
        ffi, self.lib = native
        self.state = ffi.new("pf_upload_choice *")
        self.state.always = always

    def side(self, n: int, size: int = LAYER) -> int:
        return int(self.lib.pf_upload_choose(self.state, n, size))

    def host(self, n: int, seconds: float) -> None:
        self.lib.pf_upload_note_host(self.state, n, seconds)

    def device(self, seconds: float, size: int = LAYER) -> None:
        self.lib.pf_upload_note_device(self.state, size, seconds)

    def run(self, n: int, host: float, device: float, layers: int) -> list[int]:
        """Layers of chunks of n tokens, which take these seconds; the sides that were chosen."""
        sides = []
        for _ in range(layers):
            sides.append(self.side(n))
            if sides[-1] == HOST:
                self.host(n, host)
            else:
                self.device(device)
        return sides


def test_always(native: tuple[Any, Any]) -> None:
    choice = Choice(native, always=True)
    assert [choice.side(n) for n in (1, LEAST - 1, LEAST, 5000)] == [HOST, HOST, DEVICE, DEVICE]
    choice.host(512, 1e-9)
    choice.host(512, 1e-9)
    choice.device(1e9)
    choice.device(1e9)
    assert choice.side(LEAST) == DEVICE


def test_nothing_is_tried_for_short_chunks(native: tuple[Any, Any]) -> None:
    choice = Choice(native)
    assert set(choice.run(TRY - 1, 1.0, 0.1, 20)) == {HOST}
    assert choice.run(LEAST - 1, 1.0, 0.1, 1) == [HOST]


@pytest.mark.parametrize(("host", "device"), [(1.0, 0.5), (0.5, 1.0)])
def test_both_sides_are_tried_and_the_quicker_one_stays(native: tuple[Any, Any], host: float, device: float) -> None:
    sides = Choice(native).run(TRY, host, device, 40)
    assert sides[: 2 * TRIES] == [HOST] * TRIES + [DEVICE] * TRIES
    assert set(sides[2 * TRIES :]) == {DEVICE if device < host else HOST}


def test_the_first_measurement_is_forgotten(native: tuple[Any, Any]) -> None:
    """Kernels were loaded and pages read."""
    choice = Choice(native)
    choice.host(512, 100.0)
    choice.host(512, 1.0)
    choice.device(100.0)
    choice.device(0.5)
    assert choice.lib.pf_upload_host_seconds(choice.state, 512) == pytest.approx(1.0)
    assert choice.lib.pf_upload_device_seconds(choice.state, LAYER) == pytest.approx(0.5)
    assert choice.side(512) == DEVICE


def test_the_host_takes_a_line(native: tuple[Any, Any]) -> None:
    """Its time is a + b n; the device's is that of the bytes, so that a shorter chunk is the host's."""
    choice = Choice(native)
    for n in (512, 512, 128, 512, 64, 256):
        choice.host(n, 0.25 + n / 256)
    for n in (40, 100, 512, 4096):
        assert choice.lib.pf_upload_host_seconds(choice.state, n) == pytest.approx(0.25 + n / 256)
    choice.device(1.0)
    choice.device(1.0)
    assert [choice.side(n) for n in (64, 128, 191, 193, 512)] == [HOST, HOST, HOST, DEVICE, DEVICE]
    assert choice.side(191, LAYER // 2) == DEVICE, "few experts were chosen"


def test_one_length_only(native: tuple[Any, Any]) -> None:
    choice = Choice(native)
    for _ in range(3):
        choice.host(512, 2.0)
    for n in (64, 512, 1024):
        assert choice.lib.pf_upload_host_seconds(choice.state, n) == pytest.approx(2.0 * n / 512)


@pytest.mark.parametrize("times", [(1.0, 3.0), (3.0, 1.0), (1.0, 0.01)])
def test_no_length_takes_less_than_nothing(native: tuple[Any, Any], times: tuple[float, float]) -> None:
    """A line through measurements that disturb each other neither falls nor begins below zero."""
    choice = Choice(native)
    choice.host(100, 1.0)
    for _ in range(4):
        choice.host(100, times[0])
        choice.host(512, times[1])
    seconds = [choice.lib.pf_upload_host_seconds(choice.state, n) for n in (32, 100, 512, 4096)]
    assert seconds == sorted(seconds) and seconds[0] > 0


def test_it_changes_its_mind(native: tuple[Any, Any]) -> None:
    """The host is slowed down by something else."""
    choice = Choice(native)
    assert set(choice.run(512, 0.5, 1.0, 40)[4:]) == {HOST}
    assert choice.run(512, 3.0, 1.0, 20)[-1] == DEVICE


@pytest.mark.parametrize("slower", [2.0, 30.0])
def test_the_slower_side_is_tried_again(native: tuple[Any, Any], slower: float) -> None:
    """But takes little of the time; when it has become the quicker one that is found."""
    choice = Choice(native)
    choice.run(512, 1.0, slower, 4)
    sides = choice.run(512, 1.0, slower, 4000)
    again = sides.count(DEVICE)
    assert 0 < again * slower <= 1.1 * 4000 / RETRY
    assert DEVICE in choice.run(512, 1.0, 0.1, int(slower * RETRY) + 2)
    choice.run(512, 1.0, 0.1, 4000)
    assert choice.run(512, 1.0, 0.1, 100).count(DEVICE) > 95


def test_old_measurements_fade(native: tuple[Any, Any]) -> None:
    choice = Choice(native)
    for _ in range(10):
        choice.device(1.0)
    for _ in range(43):
        choice.device(2.0)
    assert choice.lib.pf_upload_device_seconds(choice.state, LAYER) == pytest.approx(2.0, rel=0.02)
