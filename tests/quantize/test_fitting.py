"""`pyflash quantize --size` and `--fit`: the bound holds, the types are the best, and everything is told."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from gguf_export import type_errors
from gguf_export.convert import ConvertOptions, convert
from gguf_export.errors import ConvertError
from gguf_export.fit_summary import summarize
from gguf_export.fitting import Fit, TooSmallError, fit
from gguf_export.groups import Sensitivity, group_name, guessed_sensitivity, read_sensitivity
from gguf_export.quantizing import QuantizeOptions, plan_quantization, quantize
from gguf_export.synthetic import make_config, write_checkpoint
from pyflash.cli.main import _exit_code
from pyflash.engine.model import DRAFT_HEAD
from pyflash.machine.fit_budget import FitBudget, make_budget

WIDE: dict[str, Any] = {
    "hidden_size": 256, "moe_intermediate_size": 256, "q_lora_rank": 256, "o_lora_rank": 128, "num_hidden_layers": 3,
    "num_hash_layers": 1, "compress_ratios": [0, 4, 128, 0], "n_routed_experts": 8, "vocab_size": 512,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def few_rows() -> Iterator[None]:
    """Of these small models a small sample is enough."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type_errors, "EXPERT_ROWS", 4)
        patch.setattr(type_errors, "ROWS", 8)
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("wide") / "wide", make_config("tiny", **WIDE))


@pytest.fixture(scope="module")
def source(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "wide.gguf"
    convert(checkpoint, path, ConvertOptions(name="Wide"))
    return path


def kinds(found: Fit) -> dict[str, str]:
    return {tensor.info.name: tensor.info.kind.name for file in found.plan.files for tensor in file.tensors}


def uniform(source: Path, experts: str, dense: str) -> Fit:
    """What is expected of one type for all experts and one for all others."""
    head = "Q6_K" if dense == "Q6_K" else "BF16"
    options = QuantizeOptions(experts=experts, dense=dense, head=head)
    return fit(source, plan_quantization(source, options).total_bytes, options, free=())


@pytest.mark.parametrize(("experts", "dense"), [
    ("IQ2_XS", "Q6_K"), ("IQ2_S", "Q8_0"), ("Q2_K", "Q6_K"), ("IQ3_XXS", "Q8_0"), ("IQ3_S", "Q8_0"),
])  # fmt: skip
def test_better_than_one_type_for_all(experts: str, dense: str, source: Path) -> None:
    plain = uniform(source, experts, dense)
    found = fit(source, plain.size, QuantizeOptions())
    assert found.plan.total_bytes <= plain.plan.total_bytes == plain.size
    assert 0 < found.damage < 0.98 * plain.damage
    assert {group.type for name, group in plain.groups.items() if name.endswith(("down", "up"))} == {experts}


def test_the_file_is_as_large_as_asked_for(source: Path, tmp_path: Path) -> None:
    whole = plan_quantization(source, QuantizeOptions(dense="keep", head="keep")).total_bytes
    smallest = plan_quantization(source, QuantizeOptions("IQ2_XXS", "Q4_K", "Q6_K")).total_bytes
    for number, share in enumerate((0.1, 0.6)):
        size = int(smallest + share * (whole - smallest))
        found = fit(source, size, QuantizeOptions(threads=2))
        out = tmp_path / f"{number}.gguf"
        report = quantize(source, out, found.options)
        assert 0.98 * size < out.stat().st_size <= size and report.total_bytes == found.plan.total_bytes
        for name, error in report.errors.items():  # all rows, where the fit looked at a sample
            group = found.groups[str(group_name(name))]
            if "exps" in name:
                assert error.plain == pytest.approx(group.error, rel=0.1), name
    shards = fit(source, size, QuantizeOptions(shard_bytes=300_000))
    files = quantize(source, tmp_path / "s.gguf", shards.options).files
    assert len(files) > 3 and 0.97 * size < sum(path.stat().st_size for path in files) <= size


def test_the_same_for_any_number_of_threads(source: Path) -> None:
    one, two = (fit(source, 3_600_000, QuantizeOptions(threads=threads)) for threads in (1, 2))
    assert one.groups == two.groups and one.options == replace(two.options, threads=1)


def test_what_is_named_holds(source: Path) -> None:
    size = uniform(source, "IQ2_S", "Q8_0").size
    options = QuantizeOptions(dense="Q8_0", tensor_types=((r"blk\.2\.ffn_down_exps", "keep"), ("token_embd", "BF16")))
    found = fit(source, size, options, free=("experts", "head"))
    types = kinds(found)
    assert {kind for name, kind in types.items() if "attn_q_b" in name or "_shexp" in name} == {"Q8_0"}
    assert types["blk.2.ffn_down_exps.weight"] == "MXFP4" and types["token_embd.weight"] == "BF16"
    assert found.options.tensor_types[-2:] == options.tensor_types and found.plan.total_bytes <= size
    with pytest.raises(ConvertError, match="can only lose"):
        fit(source, size, QuantizeOptions(tensor_types=(("ffn_down_exps", "Q4_K"),)))


def test_too_small_and_too_large(source: Path) -> None:
    with pytest.raises(TooSmallError, match=r"1.00 MB are too few: the smallest .* has [\d,]+ bytes, so give .*M$") as error:
        fit(source, 1_000_000, QuantizeOptions())
    least = error.value.least_bytes
    assert fit(source, least, QuantizeOptions()).plan.total_bytes == least
    with pytest.raises(TooSmallError):
        fit(source, least - 1, QuantizeOptions())
    large = fit(source, 10**9, QuantizeOptions())
    kept = plan_quantization(source, QuantizeOptions(dense="keep", head="keep"))
    assert large.is_lossless and large.damage == 0 and large.plan.total_bytes == kept.total_bytes
    assert "nothing is lost" in summarize(large)


def test_measured_sensitivities_decide(source: Path, tmp_path: Path) -> None:
    groups = fit(source, 10**9, QuantizeOptions()).groups
    table = {name: {"sensitivity": 10.0 if name == "blk.1.gate_up" else 0.1} for name in groups}
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"format": "pyflash.sensitivity", "version": 1, "groups": table}))
    size = uniform(source, "IQ2_XS", "Q8_0").size
    found = fit(source, size, QuantizeOptions(), sensitivity=read_sensitivity(path))
    guess = fit(source, size, QuantizeOptions())
    assert found.groups["blk.1.gate_up"].error == 0 < guess.groups["blk.1.gate_up"].error
    assert "is a guess" in summarize(guess) and "guess" not in summarize(found)


@pytest.mark.parametrize(("text", "words"), [
    ("{", "is no table of sensitivities"),
    ('{"format": "other"}', "is no table of sensitivities"),
    ('{"format": "pyflash.sensitivity", "version": 9, "groups": {}}', "is of version 9"),
    ('{"format": "pyflash.sensitivity", "version": 1, "groups": {"head": {"sensitivity": -1}}}', "no sensitivity of 'head'"),
    ('{"format": "pyflash.sensitivity", "version": 1, "groups": {"head": {"sensitivity": NaN}}}', "no sensitivity of 'head'"),
    ('{"format": "pyflash.sensitivity", "version": 1, "groups": {"head": {"sensitivity": 1}}}', "does not know blk.0.gate_up"),
])  # fmt: skip
def test_bad_tables(text: str, words: str, source: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text(text)
    with pytest.raises(ConvertError, match=words):
        fit(source, 10**9, QuantizeOptions(), sensitivity=read_sensitivity(path))


def test_the_guess() -> None:
    names = [f"blk.{layer}.{part}" for layer in range(44) for part in ("gate_up", "down")]
    guess = guessed_sensitivity([*names, "attention"], draft_layers=[43])
    assert isinstance(guess, Sensitivity) and guess.is_guess
    values = guess.values
    assert sum(values[name] for name in names[:86]) == pytest.approx(2.1)
    assert values["blk.5.down"] == pytest.approx(1.5 * values["blk.5.gate_up"])
    assert values["blk.37.down"] == values["blk.42.down"] == pytest.approx(2 * values["blk.36.down"])
    assert values["blk.43.down"] < values["blk.5.down"]


@pytest.mark.parametrize("with_mtp", [False, True])
def test_checkpoints_and_the_mtp_block(with_mtp: bool, checkpoint: Path, tmp_path: Path) -> None:
    size = 5_000_000
    found = fit(checkpoint, size, QuantizeOptions(mtp=with_mtp))
    report = quantize(checkpoint, tmp_path / "q.gguf", found.options)
    assert 0.97 * size < sum(path.stat().st_size for path in report.files) <= size
    assert len(report.files) == 1 + with_mtp and (found.draft_bytes > 0) == with_mtp
    assert ("blk.3.down" in found.groups) == with_mtp


def test_bytes_that_a_token_reads(source: Path) -> None:
    found = fit(source, 10**9, QuantizeOptions())
    stored = found.plan.stored
    experts = sum(info.nbytes for name, info in stored.items() if "_exps" in name)
    tables = stored["token_embd.weight"].nbytes, stored["blk.0.ffn_gate_tid2eid.weight"].nbytes
    others = sum(info.nbytes for info in stored.values()) - experts - sum(tables)
    assert found.token_bytes == experts * 2 // 8 + others + tables[0] // 512 + tables[1] // 512
    assert found.usual_token_bytes == found.token_bytes


def test_full_size_from_its_config(tmp_path: Path) -> None:
    """The published model's tensors: the sizes of every type are known without them."""
    (tmp_path / "config.json").write_text(json.dumps(make_config("slice")))
    found = fit(tmp_path, 90 * 10**9, QuantizeOptions())
    assert 90 * 10**9 - (40 << 20) < found.plan.total_bytes <= 90 * 10**9 and not found.is_measured
    assert 11.5e9 < found.usual_token_bytes < 11.8e9 and 7.3e9 < found.token_bytes < 8.3e9
    assert "random numbers" in summarize(found)


# -- memory --


def test_the_budget_of_a_machine(checkpoint: Path, source: Path) -> None:
    budget = make_budget(source, 96 * 10**9, 4096)
    assert (budget.reserve_bytes, budget.n_ctx) == (6 * 10**9, 4096)
    longer, large = make_budget(source, 96 * 10**9, 65536), make_budget(source, 128 * 10**9, 4096)
    assert longer.cache_bytes > budget.cache_bytes > 0 and longer.file_bytes < budget.file_bytes
    assert large.reserve_bytes == 8 * 10**9
    assert budget.memory_bytes == budget.file_bytes + budget.run_bytes + budget.reserve_bytes
    told = dict(budget.rows())
    assert told["memory"] == "96.0 GB" and told["system"] == "6.0 GB" and "4,096 tokens" in told["cache"]
    of_checkpoint = make_budget(checkpoint, 96 * 10**9, 4096)  # which the library cannot open
    assert of_checkpoint.cache_bytes == budget.cache_bytes and of_checkpoint.buffer_bytes == budget.buffer_bytes


def test_the_budget_counts_what_drafts(tmp_path: Path) -> None:
    """The copy of the head that an MTP block drafts with, where the vocabulary is large enough for one."""
    (tmp_path / "config.json").write_text(json.dumps(make_config("tiny", vocab_size=1 << 16)))
    without, with_block = (make_budget(tmp_path, 96 * 10**9, 4096, mtp) for mtp in (False, True))
    assert without.draft_bytes == 0 and "draft head" not in dict(without.rows())
    assert with_block.draft_bytes == DRAFT_HEAD * 128 // 32 * 17 and "draft head" in dict(with_block.rows())
    others = with_block.program_bytes + with_block.cache_bytes + with_block.buffer_bytes + with_block.checkpoint_bytes
    assert with_block.run_bytes == others + with_block.widened_bytes + with_block.draft_bytes


@pytest.mark.parametrize("file_bytes", [10**9, 89 * 10**9, 90 * 10**9, 91 * 10**9, 200 * 10**9])
def test_the_memory_that_a_file_needs(file_bytes: int) -> None:
    budget = FitBudget(64 * 10**9, 6 * 10**9, 4096, 10**8, 0, 0, 10**8, 10**8, 10**8)
    needed = budget.memory_for(file_bytes)
    reserve = 6 * 10**9 if needed <= 96 * 10**9 else 8 * 10**9
    assert replace(budget, memory_bytes=needed, reserve_bytes=reserve).file_bytes == file_bytes


# -- the command --


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    def quantizing(*arguments: object) -> Done:
        capsys.readouterr()
        code = _exit_code(["quantize", *map(str, arguments)])
        return Done(code, *capsys.readouterr())

    return quantizing


def test_the_command(run: Callable[..., Done], source: Path, tmp_path: Path) -> None:
    out, size = tmp_path / "q.gguf", uniform(source, "IQ2_S", "Q8_0").size
    dry = run(source, out, "--size", str(size), "--dry-run")
    assert dry.returncode == 0 and not list(tmp_path.iterdir()), dry.stderr
    assert "is a guess" in dry.stdout and re.search(r"expected: a KL divergence of 0\.\d+", dry.stdout)
    named = shlex.split(dry.stdout.split("the same by name: ")[1])
    by_name, by_size = (json.loads(run(source, out, *options, "--dry-run", "--json").stdout)
                        for options in (named, ["--size", str(size)]))  # fmt: skip
    assert by_name["groups"] == by_size["groups"] and by_name["total_bytes"] == by_size["total_bytes"] <= size
    made = run(source, out, "--size", str(size), "--experts", "IQ2_XS", "--json")
    written = json.loads(made.stdout)
    assert written["fit"]["options"]["experts"] == "IQ2_XS" and out.stat().st_size == written["total_bytes"] <= size
    assert {entry["type"] for name, entry in written["fit"]["types"].items() if "blk" in name} == {"IQ2_XS"}


def test_the_command_for_a_machine(run: Callable[..., Done], source: Path, tmp_path: Path) -> None:
    out = tmp_path / "q.gguf"
    found = json.loads(run(source, out, "--fit", "96G", "--ctx", "8192", "--dry-run", "--json").stdout)["fit"]
    budget = found["budget"]
    assert found["is_lossless"] and found["size"] == budget["file_bytes"] and budget["n_ctx"] == 8192
    told = run(source, out, "--fit", "96Gi", "--dry-run").stdout
    assert "103.1 GB" in told and "left for the file" in told and "nothing is lost" in told
    small = run(source, out, "--fit", "6G", "--ctx", "8192")
    assert small.returncode == 1 and small.stderr.count("\n") == 1
    assert re.search(r"6\.00 GB of memory leave 0\.0 kB for the file, .*: give at least [78]G", small.stderr)


@pytest.mark.parametrize(("options", "words"), [
    (["--size", "1G", "--fit", "1G"], "choose one of --size and --fit"),
    (["--size", "1G", "--ctx", "4096"], "--ctx is for --fit"),
    (["--sensitivity", "x.json"], "--sensitivity is for --size and --fit"),
    (["--size", "x"], "is no size"),
    (["--fit", "96G", "--ctx", "2000000"], "more than this model's 65,536"),
    (["--size", "1G", "--sensitivity", "none.json"], "cannot read none.json"),
])  # fmt: skip
def test_the_command_refuses(
    options: list[str], words: str, run: Callable[..., Done], source: Path, tmp_path: Path
) -> None:
    refused = run(source, tmp_path / "q.gguf", *options)
    assert refused.returncode in (1, 2) and words in refused.stderr and not list(tmp_path.iterdir())
