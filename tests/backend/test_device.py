"""Models with layers on a device, over the emulation of CUDA: on_device.py in a process whose libpyflash has the plugin
beside it, and the command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import native_build
import pytest
from gguf import GGMLQuantizationType, quants
from gguf_copy import copy_gguf
from gguf_export.convert import ConvertOptions, convert
from gguf_export.synthetic import make_config, write_checkpoint

from . import cuda_build

pytestmark = pytest.mark.device

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def device(cuda_objects: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that has an emulated device of 512 MiB."""
    from pyflash.native import library

    folder = tmp_path_factory.mktemp("device")
    library = library._library_path()
    if library.suffix != ".so":
        pytest.skip("plugins are tried out on Linux")
    shutil.copy(library, folder / library.name)
    cuda_build.plugin(folder, cuda_objects)
    emulation = {"PF_EMULATED_STRICT": "1", "PF_EMULATED_MB": "512"}
    return {**os.environ, **emulation, "PYFLASH_LIBRARY": str(folder / library.name)}


@pytest.mark.parametrize("tests", ["on_device.py", "on_device_sending.py", "on_device_hot.py"])
def test_on_device(device: dict[str, str], tmp_path: Path, tests: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--basetemp", tmp_path / "t",
               HERE / tests]  # fmt: skip
    done = subprocess.run(command, env=device, capture_output=True, text=True, timeout=1500)
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def pyflash(device: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pyflash", *map(str, arguments)]
    return subprocess.run(command, env=device, capture_output=True, text=True, timeout=300)


def test_run(device: dict[str, str], tiny_model: Path) -> None:
    question = ("run", tiny_model, "Hi", "-n", 2, "--temp", 0)
    done = pyflash(device, *question, "--device", "cuda", "--cpu-moe", "-c", 64, "--verbose")
    assert done.returncode == 0, done.stderr
    assert "on emulation: 6 of 6 layers and the output, the routed experts of 0" in done.stderr
    for nothing_there in (["-ngl", 0], ["--device", "cpu"]):
        on_cpu = pyflash(device, *question, *nothing_there, "--verbose")
        assert on_cpu.stdout == done.stdout and "emulation" not in on_cpu.stderr


def test_info(device: dict[str, str], tiny_model: Path) -> None:
    done = pyflash(device, "info", tiny_model, "-ngl", 3, "--n-cpu-moe", 5, "-c", 512, "--json")
    assert done.returncode == 0, done.stderr
    placed = json.loads(done.stdout)["placement"]
    assert (placed["n_layer"], placed["n_expert_layer"], placed["head"]) == (2, 1, True)
    assert 0 < placed["weight_bytes"] < placed["free_bytes"]
    for by_name in (["--device", "cuda"], []):
        text = pyflash(device, "info", tiny_model, *by_name).stdout
        assert "6 of 6 layers and the output, routed experts of 6" in text
    assert '"placement": null' in pyflash(device, "info", tiny_model, "--device", "cpu", "--json").stdout
    for hot in ([], ["--hot-experts", "off"]):
        held = pyflash(device, "info", tiny_model, "--cpu-moe", *hot, "--json").stdout
        assert (json.loads(held)["placement"]["hot_bytes"] > 0) == (hot == [])
    assert "for often used experts" in pyflash(device, "info", tiny_model, "--cpu-moe").stdout


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--device", "cuda:7"], 1, "there are 1"),
        (["--device", "abacus"], 1, "use cpu or cuda"),
        (["--device", "cuda:x"], 1, "a number"),
        (["--cpu-moe", "--device", "cpu"], 2, "--device cuda"),
        (["--hot-experts", "many"], 2, "is no size"),
        (["-ngl", 2, "--device", "cpu"], 2, "--device cuda"),
        (["-ngl", 2, "--cpu-moe", "--n-cpu-moe", 1], 2, "choose one"),
    ],
)
def test_refusals(device: dict[str, str], tiny_model: Path, arguments: list[object], status: int, said: str) -> None:
    done = pyflash(device, "run", tiny_model, "Hi", *arguments)
    assert done.returncode == status and said in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == (1 if status == 1 else 4)


def test_the_check_for_a_gpu_machine(device: dict[str, str], tmp_path: Path) -> None:
    """device_model.c, which scripts/cuda_check.sh runs on a device, finds nothing wrong here."""
    shape = {"num_hidden_layers": 3, "compress_ratios": [4, 128, 4, 0], "num_hash_layers": 1, "hidden_size": 64,
             "num_attention_heads": 2, "o_groups": 1, "n_routed_experts": 8, "num_experts_per_tok": 2,
             "moe_intermediate_size": 32, "vocab_size": 256, "sliding_window": 24, "index_n_heads": 2,
             "index_topk": 8}  # fmt: skip
    checkpoint = write_checkpoint(tmp_path / "checkpoint", make_config("tiny", **shape), seed=61)
    (model,) = convert(checkpoint, tmp_path / "model.gguf", ConvertOptions()).files
    library = Path(device["PYFLASH_LIBRARY"])
    program = tmp_path / "device_model"
    native_build.run(native_build.compiler(), "-std=c11", "-O1", "-Wall", "-Wextra", "-Werror",
                     f"-I{cuda_build.CSRC / 'include'}", HERE / "device_model.c", library, f"-Wl,-rpath,{library.parent}", "-lm",
                     "-o", program)  # fmt: skip
    done = subprocess.run([program, model, "48"], env=device, capture_output=True, text=True, timeout=600)
    print(done.stdout)
    assert done.returncode == 0 and "FAILED" not in done.stdout, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 7


def test_doctor(device: dict[str, str]) -> None:
    assert "emulation, 0 GiB, self-test passed" in pyflash(device, "doctor").stdout


# ---- A device that lacks a type ----


def test_types_without_kernels(device: dict[str, str], cuda_objects: list[Path], tiny_model: Path, tmp_path: Path) -> None:
    """What a device has no kernels for is refused where the caller's numbers place it there, and else stays with the
    processor, which is told. Experts that stay for their type are not sent for long prompts either."""
    source = (cuda_build.CUDA / "plugin.cu").read_text()
    assert source.count("= PF_CUDA_WEIGHT_KINDS;") == 1
    (tmp_path / "plugin.cu").write_text(source.replace(
        "= PF_CUDA_WEIGHT_KINDS;", "= PF_CUDA_WEIGHT_KINDS & ~(UINT64_C(1) << PF_W_MXFP4);"))
    cuda_build.run(cuda_build.cxx(), *cuda_build.FLAGS, "-x", "c++", "-c", tmp_path / "plugin.cu", "-o", tmp_path / "plugin.o")
    cuda_build.plugin(tmp_path, [path for path in cuda_objects if path.name != "plugin.cu.o"] + [tmp_path / "plugin.o"])
    library = tmp_path / Path(device["PYFLASH_LIBRARY"]).name
    shutil.copy(device["PYFLASH_LIBRARY"], library)
    lacking = {**device, "PYFLASH_LIBRARY": str(library)}

    told = pyflash(lacking, "doctor").stdout
    assert "self-test passed, weights of F32 F16 BF16 Q8_0" in told and "Q8_0 MXFP4" in told.split("weight types")[1]
    question = ("run", tiny_model, "Hi", "-n", 1, "--temp", 0, "-c", 64)
    on_cpu = pyflash(lacking, *question, "--device", "cpu")
    assert on_cpu.returncode == 0, on_cpu.stderr
    refused = pyflash(lacking, *question, "--device", "cuda", "-ngl", 3, "--n-cpu-moe", 0)
    assert refused.returncode == 1, refused.stderr
    assert "cuda has no kernels for weights of type MXFP4, which blk.4.ffn_gate_exps.weight has" in refused.stderr
    kept = "the routed experts of 6: no kernels for MXFP4"
    for by_itself in (["--device", "cuda"], []):
        done = pyflash(lacking, *question, *by_itself, "--verbose")
        assert done.returncode == 0 and done.stdout == on_cpu.stdout, done.stderr
        assert "6 of 6 layers and the output, the routed experts of 0" in done.stderr
        assert f"not on emulation: {kept}" in done.stderr
    assert kept in pyflash(lacking, "info", tiny_model).stdout
    apart = pyflash(lacking, *question, "--device", "cuda", "--cpu-moe", "--hot-experts", "1M", "--verbose")
    assert apart.returncode == 0 and apart.stdout == on_cpu.stdout, apart.stderr
    assert "6 of 6 layers and the output, the routed experts of 0" in apart.stderr


def test_layers_and_output_without_kernels(device: dict[str, str], tiny_model: Path, tmp_path: Path) -> None:
    """They stay with the processor by themselves: the output, and all layers up to the last one with such a type."""
    others = {"output.weight": GGMLQuantizationType.Q5_0, "blk.1.attn_q_a.weight": GGMLQuantizationType.Q4_0}
    path = copy_gguf(tiny_model, tmp_path / "others.gguf", lambda name, values: None if name not in others else (
        others[name], quants.quantize(values, others[name])))
    question = ("run", path, "Hi", "-n", 2, "--temp", 0, "-c", 64)
    on_cpu = pyflash(device, *question, "--device", "cpu")
    done = pyflash(device, *question, "--verbose")
    assert done.returncode == 0 and done.stdout == on_cpu.stdout, done.stderr
    assert "on emulation: 4 of 6 layers, the routed experts of 4" in done.stderr
    kept = "the output, 2 layers: no kernels for Q4_0 Q5_0"
    assert f"not on emulation: {kept}" in done.stderr and kept in pyflash(device, "info", path).stdout
    refused = pyflash(device, *question, "-ngl", 3)
    assert refused.returncode == 1 and "of type Q5_0, which output.weight has" in refused.stderr


# ---- A device that computes something else ----

WRONG = {  # file: (what stands there, what stands there then, what says so)
    "elementwise.cu": ("y[i] += x[i]", "y[i] -= x[i]", "swiglu and add 1"),
    "topk.cu": ("= (int32_t)i;", "= (int32_t)(i ^ 1);", "topk 0"),
    "experts.cu": ("held_at ? held_at[e] : e - held_first", "e - held_first", "experts 0"),
}


@pytest.mark.parametrize("file", WRONG)
def test_a_device_with_a_wrong_operation(
    device: dict[str, str], cuda_objects: list[Path], tiny_model: Path, tmp_path: Path, file: str
) -> None:
    """By itself pyflash leaves it alone and says why, in one line; whoever asks for it is refused."""
    old, new, said = WRONG[file]
    source = (cuda_build.CUDA / file).read_text()
    assert source.count(old) == 1
    (tmp_path / file).write_text(source.replace(old, new))
    cuda_build.plugin(tmp_path, cuda_build.instead(cuda_objects, "cuda_emulated", file, tmp_path / file))
    library = Path(device["PYFLASH_LIBRARY"])
    shutil.copy(library, tmp_path / library.name)
    broken = {**device, "PYFLASH_LIBRARY": str(tmp_path / library.name)}

    told = pyflash(broken, "doctor")
    assert told.returncode == 0 and f"not to be used: self-test: {said} differs" in told.stdout, told.stdout
    question = ("run", tiny_model, "Hi", "-n", 2, "--temp", 0)
    by_itself = pyflash(broken, *question)
    assert by_itself.stdout == pyflash(broken, *question, "--device", "cpu").stdout
    assert by_itself.stderr.count("the processor computes everything") == 1 and said in by_itself.stderr
    assert pyflash(broken, *question, "--device", "cpu").stderr == ""
    for asked in (["--device", "cuda"], ["-ngl", 1]):
        refused = pyflash(broken, *question, *asked)
        assert refused.returncode == 1 and said in refused.stderr and "do without it" in refused.stderr
    with_less = pyflash(broken, *question, "-ngl", 0)
    assert with_less.returncode == 0 and with_less.stderr == ""


def test_a_device_that_fails_by_itself(device: dict[str, str], tiny_model: Path) -> None:
    """One that is lost from the start, and one with no room for anything."""
    question = ("run", tiny_model, "Hi", "-n", 2, "--temp", 0)
    expected = pyflash(device, *question, "--device", "cpu").stdout
    lost = pyflash({**device, "PF_EMULATED_LOST": "1"}, *question)
    assert lost.returncode == 0 and lost.stdout == expected
    assert lost.stderr.count("the processor computes everything") == 1
    small = pyflash({**device, "PF_EMULATED_MB": "257"}, *question)
    assert small.returncode == 0 and small.stdout == expected and "nothing of the model fits" in small.stderr
