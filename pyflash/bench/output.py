"""How results are written: a table for people, JSON lines, CSV."""

from __future__ import annotations

import csv
import io
import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pyflash.bench.measure import MemoryUse, Speed
from pyflash.bench.steps import StepSpeed
from pyflash.engine.model import ModelInfo
from pyflash.engine.options import cache_in_use
from pyflash.machine import processor
from pyflash.machine.units import format_bytes
from pyflash.native.text import json_text, visible_line


@dataclass(frozen=True)
class Setting:
    """What was measured, on what and when. load: programs that wanted to run, this one apart, as measuring began; None
    where the system does not tell."""

    file: str
    model: str
    file_bytes: int
    profile: str
    precision: str
    cache: str
    kernels: str
    threads: int
    chunk: int
    machine: str
    system: str
    date: str
    load: float | None

    @property
    def title(self) -> str:
        return f"{visible_line(self.model)}, {format_bytes(self.file_bytes)}, {self.precision}, {self.threads} threads"

    @property
    def place(self) -> str:
        return f"{self.machine}, {self.system}, {self.date}"


def describe_setting(file: str, info: ModelInfo, cache: str, chunk: int) -> Setting:
    cpu = processor.processor()
    cores = f", {cpu.physical} cores" if cpu.physical else ""
    return Setting(
        file=file, model=info.name or os.path.basename(file), file_bytes=info.file_bytes, profile=info.profile,
        precision=info.precision, cache=cache_in_use(info.precision, cache), kernels=info.cpu_isa,
        threads=info.n_threads, chunk=chunk, machine=cpu.name + cores,
        system=f"{platform.system()} {platform.machine()}", date=time.strftime("%Y-%m-%d %H:%M"),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    )


# -- table --

_COLUMNS = (("depth", 8), ("test", 14), ("tok/s", 9), ("lowest", 9), ("highest", 9), ("read/token", 11),
            ("read/s", 10), ("of bandwidth", 14))  # fmt: skip


def _line(cells: Sequence[str]) -> str:
    return " ".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, _COLUMNS, strict=True)).rstrip()


def table_head(setting: Setting) -> str:
    load = "" if setting.load is None else f"; load {setting.load:.1f} when it began"
    return "\n".join((
        f"{setting.title}, {setting.kernels}, cache {setting.cache}, chunks of {setting.chunk}",
        setting.place + load, "", _line([name for name, _ in _COLUMNS]),
    ))


def rate(value: float) -> str:
    """Three digits that count, no exponent."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def table_row(speed: Speed) -> str:
    cells = [str(speed.depth), f"{speed.test} {speed.n_tokens}", rate(speed.tok_s), rate(min(speed.rates)),
             rate(max(speed.rates))]
    if speed.token_bytes is None or speed.bytes_s is None or speed.bandwidth_share is None:
        return _line([*cells, "", "", ""])
    return _line([*cells, format_bytes(speed.token_bytes), format_bytes(speed.bytes_s) + "/s",
                  f"{speed.bandwidth_share:.0%}"])


def table_foot(speeds: Sequence[Speed], memory: MemoryUse) -> str:
    lines = [""]
    rates = [each for speed in speeds for each in speed.bandwidth]
    if rates:
        lines.append(f"read bandwidth  {format_bytes(statistics.median(rates))}/s "
                     f"({format_bytes(min(rates))}/s to {format_bytes(max(rates))}/s)")
    resident = "" if memory.resident_bytes is None or memory.private_bytes is None else (
        f"{format_bytes(memory.resident_bytes)} at most, {format_bytes(memory.private_bytes)} of it beside the file; ")
    lines.append(f"memory          {resident}weights {format_bytes(memory.weight_bytes)}, "
                 f"cache {format_bytes(memory.cache_bytes)}, buffers {format_bytes(memory.buffer_bytes)}, "
                 f"checkpoints {format_bytes(memory.checkpoint_bytes)} when full")
    return "\n".join(lines)


_STEP_COLUMNS = (("depth", 8), ("tokens", 14), ("ms", 9), ("lowest", 9), ("V", 9), ("tok/s", 9), ("experts/layer", 14),
                 ("read/step", 11), ("of bandwidth", 14))  # fmt: skip


def step_line(cells: Sequence[str]) -> str:
    return " ".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, _STEP_COLUMNS, strict=True)).rstrip()


def step_head() -> str:
    return "\n" + step_line([name for name, _ in _STEP_COLUMNS])


def step_row(step: StepSpeed) -> str:
    share = step.bandwidth_share
    return step_line([
        str(step.depth), str(step.n_tokens), rate(1e3 * step.typical), rate(1e3 * min(step.seconds)), f"{step.v:.2f}",
        rate(step.n_tokens / step.typical), "" if step.experts is None else f"{step.experts:.1f}",
        "" if step.weight_bytes is None else format_bytes(step.weight_bytes), "" if share is None else f"{share:.0%}",
    ])


_OPERATION_COLUMNS = (("ms", 10), ("share", 7), ("calls", 8), ("Gmac/s", 9), ("read/s", 11))


def profile_text(speed: Speed | StepSpeed) -> str:
    """A table of where the time of one repetition, or step, went, the longest first; what is between operations last."""
    n, total = len(speed.profiled), sum(speed.profiled)
    rows = sorted(speed.operations, key=lambda each: -each.seconds)
    lines = ["", f"{speed.title}, by operation:",
             " ".join(f"{name:>{width}}" for name, width in _OPERATION_COLUMNS) + "  operation"]
    for each in rows:
        cells = [rate(1e3 * each.seconds / n), f"{each.seconds / total:.1%}", str(each.calls // n),
                 rate(each.products / each.seconds / 1e9) if each.products else "",
                 format_bytes(round(each.weight_bytes / each.seconds)) + "/s" if each.weight_bytes else ""]
        lines.append(" ".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, _OPERATION_COLUMNS, strict=True))
                     + f"  {each.name}{' ' if each.weight else ''}{each.weight}")
    rest = total - sum(each.seconds for each in rows)
    lines.append(f"{rate(1e3 * rest / n):>10} {rest / total:>7.1%} {'':>29}  between operations")
    return "\n".join(lines)


# -- for programs --


def as_record(speed: Speed) -> dict[str, Any]:
    """A result as one flat object; rates in tokens or bytes a second."""
    return {
        "test": speed.test, "depth": speed.depth, "tokens": speed.n_tokens, "tok_s": speed.tok_s,
        "tok_s_lowest": min(speed.rates), "tok_s_highest": max(speed.rates), "repetitions": len(speed.seconds),
        "seconds": list(speed.seconds), "ops_s": speed.ops * speed.tok_s, "bytes_per_token": speed.token_bytes,
        "cache_bytes_per_token": speed.cache_bytes, "bytes_s": speed.bytes_s,
        "bandwidth": statistics.median(speed.bandwidth), "bandwidth_share": speed.bandwidth_share,
    }


def json_line(speed: Speed | StepSpeed) -> str:
    operations = [asdict(each) for each in speed.operations]
    record = step_record(speed) if isinstance(speed, StepSpeed) else as_record(speed)
    return json_text(record | ({"operations": operations} if operations else {}))


def step_record(step: StepSpeed) -> dict[str, Any]:
    return {
        "test": "step", "depth": step.depth, "tokens": step.n_tokens, "tok_s": step.n_tokens / step.typical,
        "seconds": list(step.seconds), "v": step.v, "experts_per_layer": step.experts, "weight_bytes": step.weight_bytes,
        "bandwidth": step.bandwidth, "bandwidth_share": step.bandwidth_share,
    }


def json_end(setting: Setting, memory: MemoryUse, finished: bool) -> str:
    """The last line: "done" is false when the run was interrupted."""
    return json_text({**asdict(setting), "memory": asdict(memory), "done": finished})


def csv_text(setting: Setting, speeds: Sequence[Speed], memory: MemoryUse) -> str:
    """A line a result; what was measured and where stands in every line, so that files can be joined."""
    common = {**asdict(setting), **asdict(memory)}
    rows = [{name: value for name, value in as_record(speed).items() if name != "seconds"} | common
            for speed in speeds]
    out = io.StringIO()
    if rows:
        writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return out.getvalue()
