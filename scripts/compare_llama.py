"""Runs pyflash and its rivals on one file in turn and prints the speeds and their ratios.

    python scripts/compare_llama.py build FOLDER [--isa avx2|avx512|native] [--engine llama|ik --source CHECKOUT]
    python scripts/compare_llama.py run FILE.gguf FOLDER [--isa avx2] [--engine llama ik] [--rounds 3]
                                        [--depth 0,16384] [--update docs/performance.md]

`build` compiles llama-bench twice, with the copies of weights in another layout that llama.cpp makes as it loads
("repack") and without: once for each set of instructions, 15 to 30 minutes on two cores. The source of llama.cpp is the
bundle inside npm's node-llama-cpp; that of ik_llama.cpp is a checkout of its public repository, which --source names.
`run` lets all take turns, so that they meet the same machine, and takes medians over the rounds. Each round is a process
of each; what comes first in it warms it up and does not count. A rival counts with the better of its two medians, for
each test by itself. At a depth above 0, where filling the context takes longest, all rounds are in one process of each;
--keep FILE adds the rounds of several calls to one table. All evaluate random tokens, a prompt at once, on the same
number of threads, each with its own default cache: F16 in llama.cpp, the reference's FP8 and FP4 rows in pyflash.

--isa also sets PYFLASH_CPU, unless it is `native`: that is the best set that this processor has. --repack on or off tries
one of the two only: a slice of 16 GB needs 13 GB more with it. --nice below 0 needs root; on a machine with other work to
do it gives all engines the same, better share, which matters because llama.cpp's threads wait for each other by spinning.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PACKAGE = "node-llama-cpp@3.22.1"
VERSION = "2026-09-28"  # of the source inside
WARM_UP = 128  # tokens of the test that does not count
BEGIN, END = "<!-- compare_llama.py writes from here", "to here -->"
NAMES = {"llama": "llama.cpp", "ik": "ik_llama.cpp"}
_OPTIONS = ("-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_CURL=OFF", "-DLLAMA_OPENSSL=OFF",
            "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_SERVER=OFF",
            "-DLLAMA_BUILD_UI=OFF")  # fmt: skip
_AVX2 = ("-DGGML_NATIVE=OFF", *(f"-DGGML_{name}=ON" for name in ("AVX", "AVX2", "FMA", "F16C", "BMI2")))
ISA_OPTIONS = {
    "native": ("-DGGML_NATIVE=ON",),
    "avx2": _AVX2,
    "avx512": (*_AVX2, *(f"-DGGML_{name}=ON" for name in ("AVX512", "AVX512_VBMI", "AVX512_VNNI"))),
}
# ik's attention takes most of an hour to compile
_ENGINE_OPTIONS = {"llama": (), "ik": ("-DGGML_IQK_FLASH_ATTENTION=OFF", "-DLLAMA_BUILD_EXAMPLES=ON")}

# ik_llama.cpp asks for all of these before it takes its kernels for VNNI, and its options name only some of them.
_AVX512 = "-mavx512vl -mavx512dq -mavx512cd"

# With AMX, that llama.cpp's repacking ends its process on every deepseek4 file: attn_output_a, which is used reshaped, goes
# into buffers that nothing reads ("GGML_ASSERT(*cur_backend_id != -1)").
_NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"

Key = tuple[str, int, int]  # (test, tokens, depth)


@dataclass
class Results:
    """Tokens/s of every round, by engine (a rival's way of loading is part of its name) and test."""

    rates: dict[str, dict[Key, list[float]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    shares: dict[Key, list[float]] = field(default_factory=lambda: defaultdict(list))
    loads: list[float] = field(default_factory=list)

    def save(self, path: Path) -> None:
        from gguf_export.outputs import write_output

        rows = [{"engine": engine, "key": key, "rates": rates, "shares": self.shares.get(key, [])}
                for engine, found in self.rates.items() for key, rates in found.items()]
        write_output(path, json.dumps({"loads": self.loads, "rows": rows}).encode("utf-8"))

    @classmethod
    def load(cls, path: Path) -> Results:
        results, kept = cls(), json.loads(path.read_text(encoding="utf-8"))
        results.loads = kept["loads"]
        for row in kept["rows"]:
            test, tokens, depth = row["key"]
            results.rates[row["engine"]][test, tokens, depth] = row["rates"]
            if row["shares"]:
                results.shares[test, tokens, depth] = row["shares"]
        return results

    def best(self, rival: str, key: Key) -> list[float]:
        """The rates of the rival's better way of loading; empty where it did not run."""
        ways = [found[key] for engine, found in self.rates.items() if engine.split(",")[0] == rival and key in found]
        return max(ways, key=statistics.median, default=[])

    def table(self) -> str:
        rivals = [name for name in NAMES.values() if any(engine.split(",")[0] == name for engine in self.rates)]
        lines = [f"| depth | test | {' | '.join([*rivals, 'pyflash', *(f'to {name}' for name in rivals)])} | pyflash of bandwidth |"]
        lines.append("|---" * (4 + 2 * len(rivals)) + "|")
        ours = self.rates["pyflash"]
        for key in sorted(ours, key=lambda key: (key[2], key[0] == "decode", key[1])):
            test, tokens, depth = key
            theirs = [self.best(name, key) for name in rivals]
            ratios = [f"**{statistics.median(ours[key]) / statistics.median(each):.2f}**" if each else "" for each in theirs]
            share = f"{statistics.median(self.shares[key]):.0%}" if self.shares.get(key) else ""
            cells = [f"{depth:,}", f"{test} {tokens:,}", *map(_shown, [*theirs, ours[key]]), *ratios, share]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)


def _shown(rates: list[float]) -> str:
    if not rates:
        return ""
    return f"{statistics.median(rates):.2f} ({min(rates):.2f} to {max(rates):.2f})"


# -- Rivals --


# What ik_llama.cpp's own attention would define: no, and no memory for it.
_IK_WITHOUT_ATTENTION = """
#include <stdbool.h>
#include <stddef.h>
bool iqk_flash_attn_noalibi(void) { return false; }
size_t iqk_fa_work_buffer_size(void) { return 0; }
"""


def stand_ins(place: Path) -> list[str]:
    """The option that links what ik_llama.cpp lacks when it is compiled without its attention."""
    place.mkdir(exist_ok=True)
    source, made = place / "without_attention.c", place / "without_attention.o"
    source.write_text(_IK_WITHOUT_ATTENTION)
    subprocess.run([os.environ.get("CC", "cc"), "-c", str(source), "-o", str(made)], check=True)
    return [f"-DCMAKE_EXE_LINKER_FLAGS={made}"]


def build(folder: Path, engine: str, isa: str, source: Path | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if source is None:
        if engine != "llama":
            sys.exit(f"--source names the checkout of {NAMES[engine]}")
        source = llama_source(folder)
    place = folder / f"{engine}-{isa}"
    more = stand_ins(place) if engine == "ik" else []
    for repack in (False, True):
        own = [f"-DGGML_CPU_REPACK={'ON' if repack else 'OFF'}"] if engine == "llama" else []
        compile_target("llama-bench", source, place, isa, [*_ENGINE_OPTIONS[engine], *own, *more])
        program = next((place / "bin").rglob("llama-bench*"))
        if engine == "llama" and not repack:
            shutil.copy2(program, place / "bin" / "no-repack-bench")
    print(f"built {place}")


def compile_target(target: str, source: Path, place: Path, isa: str, options: Sequence[str]) -> None:
    """Builds a program of a rival's source in the folder place, for a set of instructions."""
    x86 = platform.machine().lower() in ("x86_64", "amd64") and sys.platform == "linux"
    own = [_NO_AMX] if x86 else []
    if isa == "avx512":
        own.append(_AVX512)
    flags = [f"-DCMAKE_{language}_FLAGS={' '.join(own)}" for language in ("C", "CXX") if own]
    subprocess.run(["cmake", "-S", str(source), "-B", str(place), *_OPTIONS, *ISA_OPTIONS[isa], *options, *flags], check=True)
    subprocess.run(["cmake", "--build", str(place), "--target", target, "-j", str(os.cpu_count())], check=True)


def llama_source(folder: Path) -> Path:
    """The source of llama.cpp: its repository, bundled in an npm package."""
    source = folder / "llama.cpp"
    if not source.exists():
        npm = shutil.which("npm") or sys.exit("there is no npm: install it, or name a checkout of llama.cpp by --source")
        name = subprocess.run([npm, "pack", "--silent", PACKAGE], cwd=folder, check=True, capture_output=True,
                              text=True).stdout.split()[-1]  # fmt: skip
        with tarfile.open(folder / name) as packed:
            packed.extract("package/llama/gitRelease.bundle", folder, filter="data")
        bundle = folder / "package" / "llama" / "gitRelease.bundle"
        subprocess.run(["git", "clone", "--quiet", str(bundle), str(source)], check=True)
    return source


def bench_program(folder: Path, engine: str, isa: str, repack: bool = True) -> Path:
    place = folder / f"{engine}-{isa}" / "bin"
    names = ("no-repack-bench",) if engine == "llama" and not repack else ("llama-bench", "llama-bench.exe")
    for name in names:
        for path in sorted(place.rglob(name)):
            return path
    sys.exit(f"there is no {names[0]} in {place}: run `{sys.argv[0]} build {folder} --engine {engine} --isa {isa}` first")


def all_of(command: list[str], niceness: int) -> list[dict[str, object]]:
    """The JSON objects that a command prints as one list."""
    if niceness:
        command = ["nice", "-n", str(niceness), *command]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{command[0]} failed: {(done.stderr.strip().splitlines() or [str(done.returncode)])[-1]}")
    found: list[dict[str, object]] = json.loads(done.stdout)
    return found


def lines_of(command: list[str], niceness: int, isa: str = "native") -> Iterator[dict[str, object]]:
    """The JSON objects that a command prints, one a line, as they come. isa: pyflash's kernel set."""
    if niceness:
        command = ["nice", "-n", str(niceness), *command]
    env = os.environ if isa == "native" else {**os.environ, "PYFLASH_CPU": isa}
    with (
        tempfile.TemporaryFile("w+") as errors_file,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors_file, text=True, env=env) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                yield json.loads(line)
        except BaseException:
            process.terminate()
            raise
        process.wait()
        errors_file.seek(0)
        errors = errors_file.read()
    if process.returncode != 0:
        sys.exit(f"{command[0]} failed: {errors.strip().splitlines()[-1] if errors.strip() else process.returncode}")


def run_rival(args: argparse.Namespace, engine: str, repack: bool, depth: int, repeat: int, results: Results) -> None:
    prompts = ",".join(map(str, (WARM_UP, *args.prompt)))
    command = [str(bench_program(args.folder, engine, args.isa, repack)), "-m", str(args.file), "-t", str(args.threads),
               "-p", prompts, "-n", str(args.gen), "-r", str(repeat), "-b", str(max(args.prompt)), "-ub",
               str(max(args.prompt))]  # fmt: skip
    if engine == "llama":
        command += ["-d", str(depth), "--no-warmup", "-o", "jsonl"]
        lines = lines_of(command, args.nice)
    else:
        lines = iter(all_of([*command, "-rtr", str(int(repack)), "-w", "0", "-o", "json"], args.nice))
    name = f"{NAMES[engine]}, {'repacked' if repack else 'as in the file'}"
    for found in lines:
        test, tokens = ("decode", found["n_gen"]) if found["n_gen"] else ("prefill", found["n_prompt"])
        if (test, tokens) != ("prefill", WARM_UP):
            results.rates[name][(test, int(str(tokens)), depth)] += found["samples_ts"]  # type: ignore[operator]


# -- pyflash --


def run_pyflash(args: argparse.Namespace, depth: int, repeat: int, results: Results) -> None:
    command = [sys.executable, "-m", "pyflash", "bench", str(args.file), "--threads", str(args.threads),
               "--prompt", ",".join(map(str, args.prompt)), "--gen", str(args.gen), "--depth", str(depth),
               "--repeat", str(repeat), "--chunk", str(max(args.prompt)), "--json"]
    for found in lines_of(command, args.nice, args.isa):
        if "done" in found:
            continue
        tokens, seconds = int(str(found["tokens"])), found["seconds"]
        key = (str(found["test"]), tokens, depth)
        assert isinstance(seconds, list)
        results.rates["pyflash"][key] += [tokens / each for each in seconds]
        if found["bandwidth_share"] is not None:
            results.shares[key].append(float(str(found["bandwidth_share"])))


# -- the comparison --


def warm_file(path: Path) -> None:
    """Reads the file, so that it comes from the page cache for whoever is next."""
    block = bytearray(1 << 24)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(block):
            pass


Runner = Callable[[argparse.Namespace, int, int, Results], None]


def engines_of(args: argparse.Namespace) -> dict[str, Runner]:
    def rival(engine: str, repack: bool) -> Runner:
        return lambda args, depth, repeat, results: run_rival(args, engine, repack, depth, repeat, results)

    ways = {"off": [False], "on": [True], "both": [False, True]}[args.repack]
    engines: dict[str, Runner] = {f"{NAMES[engine]}{', repacked' if repack else ''}": rival(engine, repack)
                                  for engine in args.engine for repack in ways}
    return {**engines, "pyflash": run_pyflash}


def compare(args: argparse.Namespace, results: Results) -> None:
    plan = [(0, 1, turn) for turn in range(args.rounds)] if 0 in args.depth else []
    plan += [(depth, args.rounds, 0) for depth in args.depth if depth]
    for depth, repeat, turn in plan:
        engines = list(engines_of(args).items())
        for name, run in engines if turn % 2 == 0 else reversed(engines):
            if depth and name.startswith(NAMES["ik"]):
                continue  # its llama-bench evaluates at depth 0 only
            warm_file(args.file)
            if hasattr(os, "getloadavg"):
                results.loads.append(os.getloadavg()[0])
            started = time.monotonic()
            run(args, depth, repeat, results)
            print(f"{name} at depth {depth}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def report(args: argparse.Namespace, results: Results) -> str:
    # The paths are this machine's; the names are enough to do it again.
    words = [Path(word).name if os.sep in word else word for word in sys.argv[2:]]
    load = f", load {min(results.loads):.1f} to {max(results.loads):.1f}" if results.loads else ""
    ways = {"off": "as they are in the file", "on": "repacked", "both": "repacked or as in the file, whichever is quicker"}
    isa = "" if args.isa == "native" else f", all held to {args.isa.upper().replace('AVX512', 'AVX-512')}"
    return "\n".join((
        f"{time.strftime('%Y-%m-%d')}, {processor()}, {args.threads} threads{load}{isa}; llama.cpp of {VERSION}; the rivals' "
        f"weights {ways[args.repack]}. Tokens/s, medians (lowest to highest):", "",
        results.table(), "", f"`python scripts/compare_llama.py run {' '.join(words)}`",
    ))


def processor() -> str:
    from pyflash.machine.processor import processor as find

    found = find()
    vector = "AVX-512" if "avx512f" in found.flags else "AVX2, no AVX-512" if "avx2" in found.flags else "no AVX2"
    return f"{found.name} ({platform.machine()}, {vector})"


def update(path: Path, text: str) -> None:
    """Puts the text between the marks of a document."""
    from gguf_export.outputs import write_output

    document = path.read_text(encoding="utf-8")
    begin, end = document.find(BEGIN), document.find(END)
    if begin < 0 or end < begin:
        sys.exit(f"{path} has no lines '{BEGIN} -->' and '<!-- {END}'")
    begin = document.index("\n", begin) + 1
    end = document.rindex("\n", 0, end) + 1
    write_output(path, f"{document[:begin]}{text}\n{document[end:]}".encode(), streams=False)


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    from pyflash.machine import processor as cpu

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    asked = commands.add_parser("build")
    asked.add_argument("folder", type=Path)
    asked.add_argument("--engine", choices=NAMES, default="llama")
    asked.add_argument("--isa", choices=ISA_OPTIONS, default="native")
    asked.add_argument("--source", type=Path, metavar="CHECKOUT", help="the engine's source, in place of the package's")
    run = commands.add_parser("run")
    run.add_argument("file", type=Path)
    run.add_argument("folder", type=Path, help="where `build` put the rivals")
    run.add_argument("--engine", choices=NAMES, nargs="+", default=["llama"])
    run.add_argument("--isa", choices=ISA_OPTIONS, default="native")
    run.add_argument("--prompt", type=numbers, default=[512, 2048])
    run.add_argument("--gen", type=int, default=32)
    run.add_argument("--depth", type=numbers, default=[0])
    run.add_argument("--rounds", type=int, default=3)
    run.add_argument("--threads", type=int, default=cpu.processor().physical or os.cpu_count())
    run.add_argument("--repack", choices=("both", "off", "on"), default="both", help="rivals' own layout of the weights")
    run.add_argument("--nice", type=int, default=0, help="priority of all engines")
    run.add_argument("--keep", type=Path, metavar="FILE.json", help="add to the results there")
    run.add_argument("--update", type=Path, metavar="FILE.md", help="write the table there, between its marks")
    args = parser.parse_args()
    if args.command == "build":
        build(args.folder, args.engine, args.isa, args.source)
        return
    for engine in args.engine:
        bench_program(args.folder, engine, args.isa)
    results = Results.load(args.keep) if args.keep and args.keep.exists() else Results()
    with contextlib.suppress(KeyboardInterrupt):  # what there is, is shown
        compare(args, results)
    if args.keep:
        results.save(args.keep)
    text = report(args, results)
    print(text)
    if args.update:
        update(args.update, text)


if __name__ == "__main__":
    main()
