"""The options of Model.open(): what they are called, and DeviceOptions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import pyflash
from pyflash.cli.main import cli
from pyflash.engine.options import CACHES, PRECISIONS, STREAMING, DeviceKeywords, cache_in_use


def test_device_options_are_keywords_too(tiny_model: Path) -> None:
    fields = {field.name for field in dataclasses.fields(pyflash.DeviceOptions)}
    assert fields == {"device", *DeviceKeywords.__annotations__}
    options = pyflash.DeviceOptions("cpu", gpu_chunk=64, hot_experts="off")
    for model in (pyflash.Model.open(tiny_model, options, threads=1),
                  pyflash.Model.open(tiny_model, device="cpu", gpu_chunk=64, hot_experts="off", threads=1)):  # fmt: skip
        with model:
            assert model.info.n_threads == 1 and model.placement.total_bytes == 0


@pytest.mark.parametrize("options, message", [
    ({"device": pyflash.DeviceOptions(), "gpu_layers": 1}, "gpu_layers is given beside"),
    ({"device": None}, "device must be a name"), ({"device": "tpu\udcff"}, "tpu"),
    ({"precision": "half"}, "unknown precision 'half'; use one of fast, exact, int8"),
    ({"precision": ["fast"]}, "unknown precision"), ({"gpu_cache": "f64"}, "unknown cache precision"),
    ({"stream_experts": "maybe"}, "auto, off, on"), ({"hot_experts": "some"}, "unknown hot_experts"),
    ({"hot_experts": 0}, "at least 1"), ({"gpu_layers": -1}, "at least 0"), ({"gpu_budget": 2**64}, "at most"),
    ({"gpu_context": 0}, "at least 1"), ({"gpu_chunk": 1.5}, "must be an integer"), ({"isa": "mmx"}, "mmx"),
])  # fmt: skip
def test_bad_options(tiny_model: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(pyflash.Error, match=message) as raised:
        pyflash.Model.open(tiny_model, **options)
    assert "\n" not in str(raised.value)


def test_unknown_option(tiny_model: Path) -> None:
    with pytest.raises(TypeError, match="gpu_layer"):
        pyflash.Model.open(tiny_model, gpu_layer=1)  # type: ignore[call-arg]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_cache_that_auto_stands_for(tiny_model: Path, precision: str) -> None:
    """One rule, the library's: a session with it takes as much memory as one of that type."""
    named = cache_in_use(precision, "auto")
    assert named == ("f32" if precision == "exact" else "reference")
    assert [cache_in_use(precision, cache) for cache in CACHES][1:] == list(CACHES)[1:]
    with pyflash.Model.open(tiny_model, precision=precision) as model:
        with model.session(100) as auto, model.session(100, cache=named) as same:
            assert auto.memory.cache_bytes == same.memory.cache_bytes
        with pytest.raises(pyflash.ArgumentError, match="cache precision"):
            model.session(cache="f8")


def test_the_command_line_offers_the_same_choices() -> None:
    run = cli.get_command(None, "run")  # type: ignore[arg-type]
    assert run is not None
    choices = {option.name: list(option.type.choices) for option in run.params if hasattr(option.type, "choices")}
    assert (choices["precision"], choices["cache_type"], choices["stream_experts"]) == (
        list(PRECISIONS), list(CACHES), list(STREAMING))  # fmt: skip
