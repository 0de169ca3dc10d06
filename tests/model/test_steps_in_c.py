"""tests/model/steps.c: the same steps by the C interface, which says what is wrong with a share and harms no other."""

from __future__ import annotations

import subprocess
from pathlib import Path

import native_build
import pyflash
import pytest
from tiny_models import make_tiny_model

SOURCE = Path(__file__).with_name("steps.c")


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(
        tmp_path_factory.mktemp("steps_in_c"), seed=71, dense="q8_0", hidden_size=64, num_attention_heads=2, o_groups=1,
        o_lora_rank=32, q_lora_rank=32, n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=32,
        vocab_size=512, sliding_window=48, index_topk=20, index_n_heads=2,
    ).path  # fmt: skip


def run(program: Path, model_file: Path, part: str) -> None:
    done = subprocess.run([program, model_file, part], capture_output=True, text=True, timeout=300)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("ThreadSanitizer does not run on this kernel's address layout")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Against the installed library."""
    package, out = Path(pyflash.__file__).parent, tmp_path_factory.mktemp("program") / "steps"
    native_build.run(
        native_build.compiler(), "-std=c11", "-D_POSIX_C_SOURCE=200809L", "-Wall", "-Wextra", "-Wshadow", "-Wconversion",
        "-Werror", f"-I{package / 'include'}", SOURCE, "-o", out, f"-L{package / 'lib'}", "-lpyflash",
        f"-Wl,-rpath,{package / 'lib'}", "-pthread",
    )  # fmt: skip
    return out


@pytest.mark.parametrize("part", ["use", "misuse", "later", "race"])
def test_steps(program: Path, model_file: Path, part: str) -> None:
    run(program, model_file, part)


@pytest.mark.long
@pytest.mark.parametrize("part", ["use", "misuse", "later", "memory"])
def test_steps_under_sanitizers(model_file: Path, part: str) -> None:
    run(native_build.build("sanitized", "steps") / "steps", model_file, part)


@pytest.mark.long
def test_steps_without_races(model_file: Path) -> None:
    run(native_build.build("races", "steps") / "steps", model_file, "race")
