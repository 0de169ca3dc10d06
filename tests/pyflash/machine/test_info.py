"""`pyflash info`: what it tells besides the measured plan (test_info_memory.py), and how a machine's memory is read."""

from __future__ import annotations

import dataclasses
import json
import mmap
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pyflash
from pyflash.cli.memory_advice import advice, warning_of
from pyflash.machine import hardware, memory_plan
from pyflash.machine.units import format_bytes


def run(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "pyflash", *map(str, arguments)], cwd=cwd, capture_output=True,
                          encoding="utf-8", timeout=300)


def report_of(model: Path, *options: object, cwd: Path) -> dict[str, Any]:
    done = run("info", model, "--json", *options, cwd=cwd)
    assert done.returncode == 0 and done.stdout.count("\n") == 1, done
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["done"] is True
    return report


def test_json_is_what_a_session_says(tmp_path: Path, tiny_model: Path) -> None:
    report = report_of(tiny_model, "--ctx", 3000, "--cache-type", "reference", cwd=tmp_path)
    with pyflash.Model.open(tiny_model) as model, model.session(context=3000, cache="reference") as session:
        memory = session.memory
        assert [report[f"{name}_bytes"] for name in ("cache", "buffer", "checkpoint", "weight")] == [
            memory.cache_bytes, memory.buffer_bytes, memory.checkpoint_bytes, model.info.weight_bytes]
    assert report["needed_bytes"] == sum(
        report[f"{name}_bytes"] for name in ("weight", "cache", "buffer", "checkpoint", "program"))
    assert report["n_ctx"] == 3000
    assert [cost["n_ctx"] for cost in report["contexts"]] == [3000, 8192, 65536]
    assert 10e6 < report["program_bytes"] < 500e6
    assert report["machine_bytes"] == hardware.memory().total


def test_a_stage_is_planned_by_itself(tmp_path: Path, tiny_model: Path) -> None:
    whole = report_of(tiny_model, "--ctx", 3000, cwd=tmp_path)
    n_layer = whole["model"]["n_layer"]
    stages = [report_of(tiny_model, "--ctx", 3000, "--layers", layers, cwd=tmp_path)
              for layers in ("0-0", f"1-{n_layer - 2}", f"{n_layer - 1}-{n_layer - 1}")]  # fmt: skip
    for stage in (whole, *stages):
        assert sum(stage["part_bytes"].values()) == stage["model"]["weight_bytes"] == stage["weight_bytes"]
    for name in ("weight_bytes", "widened_bytes"):
        assert sum(stage[name] for stage in stages) == whole[name]
    assert [("embedding" in stage["part_bytes"], "output" in stage["part_bytes"]) for stage in stages] == [
        (True, False), (False, False), (False, True)]
    assert all(stage["cache_bytes"] < whole["cache_bytes"] and stage["program_bytes"] < 500e6 for stage in stages)
    assert f"1 to {n_layer - 2} of {n_layer} (" in run("info", tiny_model, "--layers", f"1-{n_layer - 2}", cwd=tmp_path).stdout


@pytest.mark.parametrize(("layers", "status", "message"), [
    ("5", 2, "no range of layers such as 0-20"), ("3-1", 2, "no range of layers"), ("a-b", 2, "no range of layers"),
    ("0-999", 1, "are no range of this model"),
])  # fmt: skip
def test_layers_that_are_none_are_one_line(tmp_path: Path, tiny_model: Path, layers: str, status: int, message: str) -> None:
    done = run("info", tiny_model, "--layers", layers, cwd=tmp_path)
    assert done.returncode == status and done.stdout == "" and message in done.stderr


def test_precision_and_cache_type_change_the_cache(tmp_path: Path, tiny_model: Path) -> None:
    sizes = [report_of(tiny_model, *options, cwd=tmp_path)["cache_bytes"] for options in (
        ("--precision", "exact"), ("--precision", "exact", "--cache-type", "f16"), ("--cache-type", "reference"))]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 3
    same = [("--cache-type", "f32"), ("--cache-type", "f16"), ("--precision", "exact", "--cache-type", "reference")]
    assert [report_of(tiny_model, *options, cwd=tmp_path)["cache_bytes"] for options in same] == sizes


def test_text_has_the_same_figures(tmp_path: Path, tiny_model: Path) -> None:
    report = report_of(tiny_model, "-c", 8192, cwd=tmp_path)
    text = run("info", tiny_model, "-c", 8192, cwd=tmp_path).stdout
    rows = {line[:18].strip(): line[18:].strip() for line in text.splitlines() if line[:1] != " "}
    assert rows["weights"] == format_bytes(report["weight_bytes"])
    assert rows["buffers"] == format_bytes(report["buffer_bytes"])
    assert rows["checkpoints"] == format_bytes(report["checkpoint_bytes"])
    assert rows["at once"].startswith(f"{report['n_contexts']:,} such contexts fit")
    assert format_bytes(report["cache_bytes"]) in rows["cache"] and "8K tokens" in rows and "64K tokens" in rows


# -- what fits --


@pytest.fixture(autouse=True)
def plain_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes to the byte."""
    for module in ("cli.memory_advice", "machine.memory_plan"):
        monkeypatch.setattr(f"pyflash.{module}.format_bytes", str)


def plan(tiny_model: Path, monkeypatch: pytest.MonkeyPatch, usable: int, available: int | None = None,
         n_ctx: int = 65536) -> memory_plan.Plan:
    """The tiny model's plan on a machine of so many bytes, with a program of 10 MB."""
    found = hardware.MachineMemory(10**12, usable if available is None else available, usable)
    monkeypatch.setattr(hardware, "memory", lambda: found)
    with pyflash.Model.open(tiny_model) as model:
        return memory_plan.make_plan(model, 10**7, n_ctx, "f16", 123_456)


def test_longest_context_that_fits(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enough = plan(tiny_model, monkeypatch, 10**9)
    assert enough.fits and enough.fits_now and enough.most_tokens == 65536
    assert advice(enough) == ["fits"]
    short = plan(tiny_model, monkeypatch, enough.cost.needed_bytes - 10**7)
    assert not short.fits and short.most_tokens is not None and short.most_tokens % 1024 == 0
    with pyflash.Model.open(tiny_model) as model:
        for n_ctx, fits in ((short.most_tokens, True), (short.most_tokens + 1024, False)):
            with model.session(context=n_ctx, cache="f16") as session:
                memory = session.memory
            needed = 10**7 + model.info.weight_bytes + sum(
                (memory.cache_bytes, memory.buffer_bytes, memory.checkpoint_bytes))
            assert (needed <= enough.cost.needed_bytes - 10**7) == fits
    again = plan(tiny_model, monkeypatch, enough.cost.needed_bytes - 10**7, n_ctx=short.most_tokens)
    assert again.fits


def test_ways_out(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enough = plan(tiny_model, monkeypatch, 10**9)
    needed = enough.cost.needed_bytes
    busy = advice(plan(tiny_model, monkeypatch, 10**9, available=10**7))
    assert "close other programs" in busy[0] and "10000000" in busy[0]
    tight = advice(plan(tiny_model, monkeypatch, needed - 1000))
    assert "1000 are missing" in tight[0] and "read from disk again and again" in tight[0] and "123456" in tight[0]
    assert "--ctx" in tight[1] and "--cache-type reference" in tight[1] and str(needed) in tight[1]
    nothing = plan(tiny_model, monkeypatch, 10**6)
    assert nothing.runs is False and nothing.most_tokens is None and nothing.reference_fits is False
    lines = advice(nothing)
    assert "cannot run" in lines[0] and "--ctx" not in lines[1] and "--cache-type" not in lines[1]
    large = 10**10  # weights: a shorter context would run, reading from disk
    costs = tuple(memory_plan.Cost(n_ctx, 0, 0, 0, large + own, False)
                  for n_ctx, own in ((8192, 10**5), (9000, 10**6), (65536, 10**7)))
    lines = advice(dataclasses.replace(nothing, weight_bytes=large, contexts=costs, cost=costs[2]))
    assert "cannot run: 10000000 beside" in lines[0] and "--ctx 9000, with experts read from disk" in lines[1]


def test_warning_of_a_run(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing to say, experts from disk, and a context that can never be filled."""
    sizes = {"usable": 10**12}
    monkeypatch.setattr(hardware, "memory", lambda: hardware.MachineMemory(10**12, 10**12, sizes["usable"]))
    monkeypatch.setattr(hardware, "process_memory", lambda: hardware.ProcessMemory(2 * 10**7, 10**7))
    with pyflash.Model.open(tiny_model) as model, model.session(context=4000) as session:
        assert warning_of(model, session, 0) is None
        memory = session.memory
        own = memory.cache_bytes + memory.buffer_bytes + memory.checkpoint_bytes + 10**7
        sizes["usable"] = own + model.info.weight_bytes - 1
        warning = warning_of(model, session, 0)
        assert warning is not None and str(own + model.info.weight_bytes) in warning and "from disk" in warning
        sizes["usable"] = own - 1
        with pytest.raises(pyflash.MemoryLimitError, match=f"4000 tokens takes {own} .*smaller --ctx$"):
            warning_of(model, session, 0)
        with pytest.raises(pyflash.MemoryLimitError, match="smaller context$"):
            memory_plan.check_room(model, session)


def test_several_sessions(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"usable": 0}
    monkeypatch.setattr(hardware, "memory", lambda: hardware.MachineMemory(10**12, 10**12, sizes["usable"]))
    monkeypatch.setattr(hardware, "process_memory", lambda: hardware.ProcessMemory(2 * 10**7, 10**7))
    with pyflash.Model.open(tiny_model) as model, model.session(context=4000) as session:
        memory = session.memory
        each = memory.cache_bytes + memory.buffer_bytes + memory.checkpoint_bytes
        for n in (1, 2, 3):
            sizes["usable"] = 10**7 + model.info.weight_bytes + n * each
            assert memory_plan.sessions_that_fit(model, session) == n
            assert memory_plan.sessions_that_fit(model, session, 1) == max(1, n - 1)
            assert memory_plan.check_room(model, session, n) is None
            enough = memory_plan.make_plan(model, 10**7 - model.info.widened_bytes, 4000, "auto", 0)
            assert enough.n_contexts == n
            sizes["usable"] -= 1
            assert memory_plan.check_room(model, session, n) is not None
        sizes["usable"] = 10**7 + 2 * each
        with pytest.raises(pyflash.MemoryLimitError, match=r"^3 contexts of 4000 tokens take "):
            memory_plan.check_room(model, session, 3)
        assert memory_plan.sessions_that_fit(model, session) == 1 or model.info.weight_bytes < each
        sizes["usable"] = 10**7 + each + model.info.weight_bytes - 1000
        budgets = [memory_plan.expert_budget(model, 4000, "auto", n) for n in (1, 2)]
        assert budgets[0] is not None and budgets[1] is not None and budgets[1] <= budgets[0]


def test_experts_that_stay_in_memory(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enough = plan(tiny_model, monkeypatch, 10**9)
    assert enough.expert_budget is None and enough.expert_bytes > 0
    needed = enough.cost.needed_bytes
    tight = plan(tiny_model, monkeypatch, needed - 1000)
    spare = (needed - 1000) * 0.05
    assert tight.expert_budget == pytest.approx(max(1, enough.expert_bytes - 1000 - spare), abs=1)
    monkeypatch.setattr(hardware, "process_memory", lambda: hardware.ProcessMemory(2 * 10**7, 10**7))
    with pyflash.Model.open(tiny_model) as model:
        assert memory_plan.expert_budget(model, 65536, "f16") == tight.expert_budget
        monkeypatch.setattr(hardware, "memory", lambda: hardware.MachineMemory(10**12, 10**12, None))
        assert memory_plan.expert_budget(model, 65536, "f16") is None


# -- the machine's memory, from files as Linux has them --

MEMINFO = "MemTotal:       1000000 kB\nMemFree:         100 kB\nMemAvailable:    800000 kB\nHugePages_Total:       0\n"


def linux(root: Path, **files: str) -> hardware.MachineMemory:
    files = {"proc__meminfo": MEMINFO, **files}
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return hardware._linux_memory(root)


def test_memory_without_groups(tmp_path: Path) -> None:
    assert linux(tmp_path) == hardware.MachineMemory(1024_000_000, 819_200_000, None)


def test_memory_of_a_container(tmp_path: Path) -> None:
    """Version 2: the group's own path is the host's, and only the root is mounted. Cached files give way."""
    found = linux(tmp_path, proc__self__cgroup="0::/docker/abc\n", **{
        "sys__fs__cgroup__memory.max": "200000000\n", "sys__fs__cgroup__memory.current": "150000000\n",
        "sys__fs__cgroup__memory.stat": "anon 50000000\nactive_file 60000000\ninactive_file 40000000\n"})
    assert found == hardware.MachineMemory(1024_000_000, 150_000_000, 200_000_000)


def test_the_tightest_group_above_counts(tmp_path: Path) -> None:
    found = linux(tmp_path, proc__self__cgroup="0::/a/b\n", **{
        "sys__fs__cgroup__a__b__memory.max": "max\n", "sys__fs__cgroup__a__b__memory.current": "1000\n",
        "sys__fs__cgroup__a__memory.max": "300000000\n", "sys__fs__cgroup__a__memory.current": "1000000\n"})
    assert found == hardware.MachineMemory(1024_000_000, 299_000_000, 300_000_000)


def test_memory_of_an_old_container(tmp_path: Path) -> None:
    """Version 1, whose "no limit" is a huge number."""
    group = "sys__fs__cgroup__memory__"
    found = linux(tmp_path, proc__self__cgroup="5:cpu:/x\n4:memory:/x\n", **{
        f"{group}memory.limit_in_bytes": "9223372036854771712\n", f"{group}memory.usage_in_bytes": "5\n",
        f"{group}x__memory.limit_in_bytes": "100000000\n", f"{group}x__memory.usage_in_bytes": "90000000\n",
        f"{group}x__memory.stat": "active_file 1\ntotal_active_file 20000000\ntotal_inactive_file 30000000\n"})
    assert found == hardware.MachineMemory(1024_000_000, 60_000_000, 100_000_000)


def test_memory_that_macos_calls_available() -> None:
    text = ("Mach Virtual Memory Statistics: (page size of 16384 bytes)\nPages free:                     1000.\n"
            "Pages active:                 5000.\nPages inactive:               2000.\nPages speculative:   30.\n")
    assert hardware._available_of_vm_stat(text) == 3030 * 16384
    assert hardware._available_of_vm_stat("") is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="compares with /proc")
def test_own_memory() -> None:
    memory = hardware.process_memory()
    assert memory is not None and 10e6 < memory.private < memory.resident
    size = 50_000_000
    ballast = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # malloc() might have it already
    for place in range(0, size, mmap.PAGESIZE):
        ballast[place] = 1
    after = hardware.process_memory()
    assert after is not None and 45e6 < after.private - memory.private < 60e6
    total = hardware.memory().total
    assert total == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
