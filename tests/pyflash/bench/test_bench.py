"""`pyflash bench`: what it prints and draws, and relations that hold on any machine. Never speed."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import pyflash
from gguf_export.reader import read_gguf
from pyflash.bench import measure
from pyflash.bench.measure import Bench, Plan, Speed
from pyflash.bench.output import Setting
from pyflash.bench.plot import depth_label, svg_text
from pyflash.bench.traffic import Traffic, read_traffic
from pyflash.cli.main import cli
from pyflash.machine import hardware

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(autouse=True)
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bandwidth over a few MB, within this process: what it is does not matter here."""
    monkeypatch.setattr(measure, "_LEAST_BANDWIDTH_BYTES", 1 << 22)
    monkeypatch.setattr(hardware, "outer_cache_bytes", lambda root=Path("/"): 0)


def bench(*arguments: object) -> str:
    done = CliRunner().invoke(cli, ["bench", *map(str, arguments)])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def failure(*arguments: object) -> tuple[int, str]:
    command = [sys.executable, "-m", "pyflash", "bench", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr


# -- what a token reads --


@pytest.fixture(scope="module")
def traffic(tiny_model: Path) -> Traffic:
    with pyflash.Model.open(tiny_model) as model:
        return read_traffic(tiny_model, model.info, "f16")


def test_weights_of_a_token(tiny_model: Path, traffic: Traffic) -> None:
    """All of the file, less the tables of which one row is read and the experts that are not chosen."""
    gguf = read_gguf(tiny_model)
    sizes = {name: tensor.nbytes for name, tensor in gguf.tensors.items()}
    experts = sum(size for name, size in sizes.items() if "_exps" in name)
    used, all_experts = gguf.keys["deepseek4.expert_used_count"], gguf.keys["deepseek4.expert_count"]
    vocab = gguf.keys["deepseek4.vocab_size"]
    tables = sum(size for name, size in sizes.items() if name.startswith("token_embd") or "tid2eid" in name)
    expected = sum(sizes.values()) - experts + experts * used / all_experts - tables + tables / vocab
    assert traffic.decode_bytes == pytest.approx(expected, abs=1)
    head = next(tensor for name, tensor in gguf.tensors.items() if name == "output.weight")
    assert traffic.decode_ops - traffic.prefill_ops >= 2 * head.shape[0] * head.shape[1]


def test_mtp_block_is_not_read(traffic: Traffic, tmp_path: Path) -> None:
    from gguf_export.convert import ConvertOptions, convert
    from gguf_export.synthetic import make_config, write_checkpoint

    checkpoint = write_checkpoint(tmp_path / "checkpoint", make_config("tiny"), seed=4)
    found = []
    for mtp in (False, True):
        convert(checkpoint, tmp_path / f"{mtp}.gguf", ConvertOptions(profile="native", mtp=mtp))
        with pyflash.Model.open(tmp_path / f"{mtp}.gguf") as model:
            assert model.info.has_mtp is mtp
            found.append(read_traffic(tmp_path / f"{mtp}.gguf", model.info, "f16").decode_bytes)
    assert found[0] == found[1]


@pytest.mark.parametrize("cache", ["auto", "f16"])
def test_row_sizes_are_the_library_s(tiny_model: Path, cache: str) -> None:
    """A session's cache grows with its context by the compressed layers' rows, 1/4 or 1/128 of one a token."""
    with pyflash.Model.open(tiny_model) as model:
        rows = read_traffic(tiny_model, model.info, cache).rows
        sizes = []
        for context in (8192, 16384):
            with model.session(context=context, cache=cache) as session:
                sizes.append(session.memory.cache_bytes)
        a_token = sum((rows.kv + (rows.index if ratio == 4 else 0)) / ratio
                      for ratio in model.info.layer_ratios if ratio) + 4  # its id
        assert sizes[1] - sizes[0] == pytest.approx(8192 * a_token, rel=1e-3)


def test_cache_rows_of_a_token(traffic: Traffic) -> None:
    kv, index = traffic.rows.kv, traffic.rows.index
    n_layer, n_csa = len(traffic.layer_ratios), traffic.layer_ratios.count(4)
    n_hca = traffic.layer_ratios.count(128)
    assert traffic.cache_bytes(0) == n_layer * kv
    far = 1 << 20
    assert traffic.cache_bytes(far - 1) == (
        n_layer * traffic.window * kv + n_csa * (far // 4 * index + traffic.topk * kv) + n_hca * far // 128 * kv
    )


# -- the command --


def test_json(tiny_model: Path) -> None:
    lines = [json.loads(line) for line in bench(
        tiny_model, "--prompt", "16,32", "--gen", 4, "--depth", "200,0,1K", "--repeat", 2, "--json").splitlines()]
    *results, end = lines
    assert [(each["test"], each["tokens"], each["depth"]) for each in results] == [
        (test, n, depth) for depth in (0, 200, 1024) for test, n in (("prefill", 16), ("prefill", 32), ("decode", 4))
    ]
    for each in results:
        assert len(each["seconds"]) == each["repetitions"] == 2
        assert each["tok_s_lowest"] == each["tokens"] / max(each["seconds"])
        assert each["tok_s_lowest"] <= each["tok_s"] <= each["tok_s_highest"]
        assert each["bandwidth"] > 1e6
        decode = each["test"] == "decode"
        assert (each["bytes_per_token"] is not None) == decode
        if decode:
            assert each["bytes_s"] == pytest.approx(each["bytes_per_token"] * each["tok_s"])
            assert 0 < each["cache_bytes_per_token"] < each["bytes_per_token"]
            assert each["bandwidth_share"] > 0
    decoded = [each["bytes_per_token"] for each in results if each["test"] == "decode"]
    assert decoded == sorted(set(decoded))  # more context, more rows
    assert end["done"] is True and end["precision"] == "fast" and end["cache"] == "reference" and end["chunk"] == 512
    memory = end["memory"]
    with pyflash.Model.open(tiny_model) as model:
        assert memory["weight_bytes"] == model.info.weight_bytes and end["threads"] == model.info.n_threads
    if hardware.process_memory() is not None:
        assert memory["private_bytes"] <= memory["resident_bytes"]


def test_table_and_plot(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "speed.svg"
    text = bench(tiny_model, "--prompt", 8, "--gen", 2, "--depth", "0,300", "--repeat", 1, "--plot", out,
                 "--precision", "exact", "--threads", 1, "--chunk", 8)
    assert "exact, 1 threads" in text and "cache f32" in text and "chunks of 8" in text
    rows = re.findall(r"^ +(\d+) +(prefill|decode) (\d+) .*?(\d+%)?$", text, re.MULTILINE)
    assert [row[:3] for row in rows] == [
        ("0", "prefill", "8"), ("0", "decode", "2"), ("300", "prefill", "8"), ("300", "decode", "2")]
    assert [bool(row[3]) for row in rows] == [False, True, False, True]
    assert "read bandwidth" in text and "weights 2.8 MB" in text
    root = ElementTree.parse(out).getroot()
    assert root.tag == SVG + "svg"
    words = [element.text for element in root.iter(SVG + "text")]
    assert "Prefill, tokens/s" in words and "Decode, tokens/s" in words and "300" in words
    assert [path.name for path in tmp_path.iterdir()] == ["speed.svg"]


def test_csv(tiny_model: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(bench(tiny_model, "--prompt", 4, "--gen", 1, "--repeat", 1, "--csv"))))
    assert [row["test"] for row in rows] == ["prefill", "decode"]
    assert all(float(row["tok_s"]) > 0 and row["kernels"] and row["weight_bytes"] for row in rows)


def test_one_kind_of_test(tiny_model: Path) -> None:
    assert "decode" not in bench(tiny_model, "--gen", 0, "--prompt", 4, "--repeat", 1)
    assert "prefill" not in bench(tiny_model, "--gen", 1, "--prompt", 0, "--repeat", 1)


def test_errors_are_one_line(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "none" / "out.svg"
    for arguments, code, words in (
        (["absent.gguf"], 1, "no such file"),
        ([tiny_model, "--depth", "1G"], 2, "is no number of tokens"),
        ([tiny_model, "--depth", "8M"], 1, "this model takes"),
        ([tiny_model, "--prompt", "0", "--gen", "0"], 1, "nothing to measure"),
        ([tiny_model, "--plot", folder], 1, "there is no folder"),
        ([tiny_model, "--json", "--csv"], 2, "choose one"),
    ):
        status, stderr = failure(*arguments)
        assert (status, words in stderr) == (code, True), stderr
        assert "Traceback" not in stderr and (code == 2 or len(stderr.splitlines()) == 1)


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_interrupted_run_keeps_what_is_measured(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "speed.svg"
    command = [sys.executable, "-m", "pyflash", "bench", str(tiny_model), "--prompt", "8", "--gen", "4", "--depth",
               "0,32K", "--repeat", "3", "--json", "--chunk", "8", "--plot", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    first = [process.stdout.readline(), process.stdout.readline()]  # both tests at depth 0; then it fills for long
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    rest, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert [json.loads(line)["test"] for line in first] == ["prefill", "decode"]
    end = json.loads(rest.splitlines()[-1])
    assert end["done"] is False and end["memory"]["weight_bytes"] > 0
    assert ElementTree.parse(out).getroot().tag == SVG + "svg" and "Traceback" not in stderr


# -- sessions at a depth --


def _run(model: pyflash.Model, traffic: Traffic, plan: Plan) -> tuple[list[int], list[Speed]]:
    """The numbers of tokens that were evaluated on the way to the depths, and the results."""
    filled: list[int] = []

    def note(what: str, done: int, total: int) -> None:
        if what.startswith("filling") and done == total:
            filled.append(total)

    with Bench(model, traffic, plan, note) as run:
        return filled, list(run.run())


def test_kept_sessions(tiny_model: Path, traffic: Traffic, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    with pyflash.Model.open(tiny_model) as model:
        def run(*depths: int, seed: int = 1) -> list[int]:
            filled, speeds = _run(model, traffic, Plan((4,), 2, depths, 1, session_cache=kept, seed=seed))
            assert [speed.depth for speed in speeds[::2]] == sorted(depths)
            return filled

        assert run(0, 300) == [300]
        assert run(300) == []                # as it was kept
        assert run(200) == [200]             # a session cannot be cut short
        assert run(300, 700) == [700]        # 300 kept, and 700 from there
        assert run(300, seed=2) == [300]     # other tokens
        for path in kept.iterdir():
            path.write_bytes(b"rubbish")
        assert run(200, 300) == [200, 300]   # damaged ones are made again
        assert run(300) == []


def test_depth_is_the_context(tiny_model: Path, traffic: Traffic, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each repetition of each test begins at the depth itself."""
    seen: list[tuple[str, int]] = []
    for name in ("_prefill", "_decode"):
        original = getattr(Bench, name)

        def spy(self: Any, n: int, original: Any = original, name: str = name) -> Any:
            seen.append((name, self._session.position))
            return original(self, n)

        monkeypatch.setattr(Bench, name, spy)
    with pyflash.Model.open(tiny_model) as model:
        _run(model, traffic, Plan((600,), 300, (0, 1000), 2))
    assert seen == [(name, depth) for depth in (0, 1000) for name in ("_prefill", "_decode") for _ in range(2)]


# -- the drawing --

SETTING = Setting("m.gguf", "A & B <model>", 10**9, "compat", "fast", "f16", "avx2", 8, 512, "CPU", "Linux",
                  "2026-01-01", None)


def _speed(test: str, depth: int, *rates: float, n: int = 10) -> Speed:
    decode = test == "decode"
    return Speed(test, depth, n, tuple(n / rate for rate in rates), (1e9,) * len(rates), 10**7 if decode else None,
                 100 if decode else None, 10**6)


def _axis(root: Any) -> dict[str, float]:
    return {element.text: float(element.get("x")) for element in root.iter(SVG + "text")
            if element.get("text-anchor") == "middle" and re.fullmatch(r"\d+[KM]?", element.text or "")}


def test_drawing() -> None:
    depths = (0, 4096, 16384, 65536, 262144)
    speeds = [_speed("decode", depth, 50 - index, 60 - index, 55) for index, depth in enumerate(depths)]
    text = svg_text(SETTING, speeds)
    root = ElementTree.fromstring(text)
    assert "A &amp; B &lt;model&gt;" in text
    x = _axis(root)
    assert list(x) == ["0", "4K", "16K", "64K", "256K"]
    steps = [x["16K"] - x["4K"], x["64K"] - x["16K"], x["256K"] - x["64K"]]
    assert max(steps) - min(steps) < 0.2 and x["0"] < x["4K"]  # equal factors, equal distances
    limit = next(line for line in root.iter(SVG + "polyline") if line.get("stroke-dasharray") and
                 len((line.get("points") or "").split()) == len(depths))
    heights = [float(point.split(",")[1]) for point in (limit.get("points") or "").split()]
    assert max(heights) - min(heights) < 0.2  # 1e9 bytes/s over 1e7 bytes a token: 100 tokens/s everywhere


@pytest.mark.parametrize("speeds", [
    [_speed("prefill", 0, 5)],
    [_speed("decode", 0, 5)],
    [_speed("decode", 100, 5)],
    [_speed("prefill", depth, 1e-3, 2e-3, n=n) for depth in (0, 1) for n in (1, 2, 3)],
    [_speed("prefill", 1 << 20, 123456.0)],
])  # fmt: skip
def test_odd_drawings_stay_inside(speeds: list[Speed]) -> None:
    root = ElementTree.fromstring(svg_text(SETTING, speeds))
    width, height = float(root.get("width") or 0), float(root.get("height") or 0)
    for element in root.iter():
        for name, most in (("x", width), ("x1", width), ("cx", width), ("y", height), ("y1", height), ("cy", height)):
            if element.get(name) is not None:
                assert 0 <= float(element.get(name) or -1) <= most
    assert depth_label(1 << 20) == "1M" and depth_label(1000) == "1000"


# -- the machine --


def test_read_bandwidth_and_prefault(tiny_model: Path) -> None:
    seen: list[tuple[int, int]] = []
    def note(done: int, total: int) -> None:
        seen.append((done, total))

    with pyflash.Model.open(tiny_model, prefault=True, progress=note) as model:
        assert seen[-1] == (model.info.weight_bytes, model.info.weight_bytes)
        assert [done for done, _ in seen] == sorted({done for done, _ in seen})
        assert model.read_bandwidth(1 << 22) > 1e6
        with pytest.raises(pyflash.ArgumentError):
            model.read_bandwidth(10)


def test_progress_may_end_the_prefault(tiny_model: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pyflash.Model.open(tiny_model, prefault=True, progress=stop)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_mlock_and_pin(tiny_model: Path) -> None:
    code = f"""
import pyflash, re, os
model = pyflash.Model.open({str(tiny_model)!r}, mlock=True, pin=True, threads=2)
print(re.search(r"VmLck:\\s+(\\d+)", open("/proc/self/status").read())[1])
pinned = [t for t in os.listdir("/proc/self/task") if len(os.sched_getaffinity(int(t))) == 1]
print(len(pinned))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    locked, pinned = map(int, done.stdout.split())
    assert locked * 1024 >= 2_800_000
    assert pinned >= 1 and (len(os.sched_getaffinity(0)) < 2 or pinned == 1)


@pytest.mark.skipif(not sys.platform.startswith("linux") or os.geteuid() != 0, reason="root can become another user")
def test_mlock_without_permission(tiny_model: Path) -> None:
    code = f"""
import os, resource, pyflash
model = pyflash.Model.open({str(tiny_model)!r})  # first: its folder may be closed to others
resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
os.setuid(65534)
try:
    model._read_weights(True, None)
except pyflash.MemoryLimitError as error:
    print("refused:", error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "refused:" in done.stdout and "ulimit -l" in done.stdout, done.stderr


def test_outer_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert hardware.outer_cache_bytes(tmp_path) == 0
    for cpu, shared in ((0, "0-1"), (1, "0-1"), (2, "2")):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/cache/index3"
        folder.mkdir(parents=True)
        (folder / "size").write_text("32768K\n")
        (folder / "shared_cpu_list").write_text(shared + "\n")
    assert hardware.outer_cache_bytes(tmp_path) == 2 * 32768 * 1024
