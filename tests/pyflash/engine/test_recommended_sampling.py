"""What a model's file recommends for sampling: in the library, the API, `pyflash run` and `pyflash info`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import pyflash
from pyflash.cli.chat.settings import SAMPLING
from pyflash.cli.main import cli
from pyflash.engine.sampling import RECOMMENDED, recommended_sampling
from pyflash.native.library import ffi, lib

pytestmark = pytest.mark.quick

PROMPT = list(range(20, 40))
QUESTION = [{"role": "user", "content": "Hello"}]


def pyflash_(command: str, *arguments: object, stdin: str = "", **env: str) -> Result:
    done = CliRunner().invoke(cli, [command, *map(str, arguments)], input=stdin, env=env)
    assert done.exit_code == 0, (done.output, done.exception)
    return done


# -- the library --


def test_numbers_of_a_file(recommending_model: Path) -> None:
    error, out, number = ffi.new("pf_error *"), ffi.new("pf_model **"), ffi.new("double *")
    assert lib.pf_model_open(str(recommending_model).encode(), ffi.NULL, out, error) == lib.PF_OK
    model = ffi.gc(out[0], lib.pf_model_release)
    for key, value in {
        "general.sampling.temp": 2.0, "general.sampling.top_k": 30, "deepseek4.block_count": 6,
        "general.sampling.top_p": float(np.float32(0.95)), "deepseek4.rope.scaling.factor": 16.0,
    }.items():  # fmt: skip
        assert lib.pf_model_meta_number(model, key.encode(), number) == 1 and number[0] == value, key
    number[0] = 7
    for key in ("general.name", "deepseek4.attention.compress_ratios", "tokenizer.ggml.add_bos_token", "absent", ""):
        assert lib.pf_model_meta_number(model, key.encode(), number) == 0 and number[0] == 7, key


# -- the API --


def test_model_tells_it(recommending_model: Path, tiny_model: Path, recommended: dict[str, Any]) -> None:
    with pyflash.Model.open(recommending_model) as model:
        assert model.sampling == recommended and isinstance(model.sampling["top_k"], int)
        model.sampling["temperature"] = 0  # of a copy
        assert model.sampling == recommended
    assert model.sampling == recommended
    with pyflash.Model.open(tiny_model) as model:
        assert model.sampling == {"temperature": 1.0, "top_p": 1.0}


@pytest.mark.parametrize("key, value", [
    ("temp", -1.0), ("temp", float("nan")), ("temp", float("inf")), ("temp", 1e200), ("top_k", -1), ("top_k", 2**31),
    ("top_k", 0.5), ("top_p", 1.01), ("top_p", -0.1), ("min_p", 2), ("penalty_repeat", 0), ("penalty_repeat", 1e-200),
    ("penalty_last_n", -2),
])  # fmt: skip
def test_what_makes_no_sense_is_left_out(key: str, value: float) -> None:
    values = {"general.sampling.temp": 0.5, f"general.sampling.{key}": value}
    found = recommended_sampling(values.get)
    assert found == ({} if key == "temp" else {"temperature": 0.5})


def test_callers_choice_goes_before_the_files(
    model: pyflash.Model, recommending_model: Path, recommended: dict[str, Any]
) -> None:
    def generated(of: pyflash.Model, **sampling: Any) -> list[int]:
        with of.session() as session:
            return [piece.token for piece in session.generate(PROMPT, max_tokens=30, seed=1, **sampling)]

    def answer(of: pyflash.Model, **sampling: Any) -> list[int]:
        with of.session() as session:
            return [piece.token for piece in session.chat(QUESTION, max_tokens=30, seed=1, **sampling)]

    with pyflash.Model.open(recommending_model, precision="exact", threads=1) as recommending:
        for tokens in (generated, answer):
            plain = tokens(model)
            assert tokens(recommending) == tokens(model, **recommended) != plain
            for name, value in (("temperature", 0), ("top_k", 5), ("top_p", 0.25), ("repetition_penalty", 9.0)):
                chosen = tokens(recommending, **{name: value})
                assert chosen == tokens(model, **{**recommended, name: value}) != tokens(recommending), name
            neutral = {"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0, "repetition_penalty": 1}
            assert tokens(recommending, **neutral) == plain


# -- the commands --


def test_run_takes_what_is_typed_then_the_environment_then_the_files(
    recommending_model: Path, tiny_model: Path, recommended: dict[str, Any]
) -> None:
    options = ("Hello", "-n", 30, "--seed", 1)
    flags = {"temperature": "--temp", "top_k": "--top-k", "top_p": "--top-p", "min_p": "--min-p",
             "repetition_penalty": "--repeat-penalty"}  # fmt: skip

    def plain(**changed: float) -> str:
        values = {**recommended, **changed}
        typed = [word for name, value in values.items() for word in (flags[name], value)]
        return pyflash_("run", tiny_model, *options, *typed).stdout

    def run(*more: object, **env: str) -> str:
        return pyflash_("run", recommending_model, *options, *more, **env).stdout

    assert run() == plain() != pyflash_("run", tiny_model, *options).stdout
    assert run(PYFLASH_TEMP="") == plain()
    assert run(PYFLASH_TEMP="9") == plain(temperature=9) != plain()
    assert run("--temp", 0, PYFLASH_TEMP="9") == plain(temperature=0) != plain(temperature=9)
    assert run("--temp", 1, "--top-k", 0) == plain(temperature=1, top_k=0) != plain()


def test_set_shows_the_models_and_goes_back_to_them(recommending_model: Path) -> None:
    script = "/set temp\n/set temp 0.5\n/set temp default\n/set top_k\n/set top_k default\n/set presence_penalty\n"
    said = pyflash_("run", recommending_model, "--top-k", 7, stdin=script).stderr.splitlines()
    assert said == ["temp is 2", "temp is 0.5", "temp is 2", "top_k is 7", "top_k is 30", "presence_penalty is 0"]


def test_help_says_where_defaults_come_from() -> None:
    text = " ".join(pyflash_("run", "--help").stdout.split())
    assert text.count("[default: the model's, else") == len(RECOMMENDED)
    assert "--temp X Temperature; 0: likeliest. [default: the model's, else 1]" in text
    assert RECOMMENDED <= {setting.keyword for setting in SAMPLING}


def test_info_prints_it(recommending_model: Path, recommended: dict[str, Any]) -> None:
    assert json.loads(pyflash_("info", recommending_model, "--json").stdout)["sampling"] == recommended
    (row,) = [line for line in pyflash_("info", recommending_model).stdout.splitlines() if line.startswith("sampling")]
    assert row.split(maxsplit=1)[1] == (
        "temperature 2.0, top_k 30, top_p 0.95, min_p 0.001, repetition_penalty 1.25")
