"""Runs pyflash and llama.cpp side by side on one file and prints both speeds and their ratio.

    python scripts/compare_llama.py build FOLDER        # once: 15 to 30 minutes on two cores, 1 GB of disk
    python scripts/compare_llama.py run FILE.gguf FOLDER [--depth 0,16384] [--rounds 3] [--update docs/performance.md]

`build` takes llama.cpp from the source distribution of llama-cpp-python (the newest whose llama.cpp knows deepseek4
when this was written) and compiles its llama-bench for this machine. `run` lets the two take turns, so that both meet
the same machine, and takes medians over the rounds. Each round is a process of each; what comes first in it warms it up
and does not count. At a depth above 0, where filling the context takes longest, all rounds are in one process of each;
--keep FILE adds the rounds of several calls to one table. Both evaluate random tokens, a prompt at once, on the same
number of threads, each with its own default cache: F16 in llama.cpp, the reference's FP8 and FP4 rows in pyflash.

llama.cpp copies weights into another layout as it loads ("repack"), 13 GB for a slice of 16 GB. Where both fit into
memory, --repack leaves that on, which is its default; the table says which it was. --nice below 0 needs root; on a
machine with other work to do it gives both engines the same, better share, which matters because llama.cpp's threads
wait for each other by spinning.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

PACKAGE, VERSION = "llama-cpp-python", "0.3.36"
WARM_UP = 128  # tokens of the test that does not count
BEGIN, END = "<!-- compare_llama.py writes from here", "to here -->"
_OPTIONS = ("-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF", "-DGGML_NATIVE=ON", "-DLLAMA_CURL=OFF",
            "-DLLAMA_OPENSSL=OFF", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF",
            "-DLLAMA_BUILD_SERVER=OFF")  # fmt: skip

# With AMX, that llama.cpp's repacking ends its process on every deepseek4 file: attn_output_a, which is used reshaped, goes
# into buffers that nothing reads ("GGML_ASSERT(*cur_backend_id != -1)").
_NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"

Key = tuple[str, int, int]  # (test, tokens, depth)


@dataclass
class Results:
    """Tokens/s of every round, by engine and test."""

    rates: dict[str, dict[Key, list[float]]] = field(
        default_factory=lambda: {"pyflash": defaultdict(list), "llama.cpp": defaultdict(list)})
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

    def table(self) -> str:
        lines = ["| depth | test | llama.cpp | pyflash | ratio | pyflash of bandwidth |", "|---|---|---|---|---|---|"]
        ours, theirs = self.rates["pyflash"], self.rates["llama.cpp"]
        for key in sorted(ours.keys() & theirs.keys(), key=lambda key: (key[2], key[0] == "decode", key[1])):
            test, tokens, depth = key
            ratio = statistics.median(ours[key]) / statistics.median(theirs[key])
            share = f"{statistics.median(self.shares[key]):.0%}" if self.shares.get(key) else ""
            lines.append(f"| {depth:,} | {test} {tokens:,} | {_shown(theirs[key])} | {_shown(ours[key])} | "
                         f"**{ratio:.2f}** | {share} |")
        return "\n".join(lines)


def _shown(rates: list[float]) -> str:
    return f"{statistics.median(rates):.2f} ({min(rates):.2f} to {max(rates):.2f})"


# -- llama.cpp --


def build(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", PACKAGE, "--dest", str(folder),
                    f"{PACKAGE}=={VERSION}"], check=True)
    archive = next(folder.glob("llama_cpp_python-*.tar.gz"))
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    source = folder / archive.name.removesuffix(".tar.gz") / "vendor" / "llama.cpp"
    x86 = platform.machine().lower() in ("x86_64", "amd64") and sys.platform == "linux"
    flags = [f"-DCMAKE_{language}_FLAGS={_NO_AMX}" for language in ("C", "CXX") if x86]
    subprocess.run(["cmake", "-S", str(source), "-B", str(folder / "build"), *_OPTIONS, *flags], check=True)
    subprocess.run(["cmake", "--build", str(folder / "build"), "--target", "llama-bench", "-j", str(os.cpu_count())],
                   check=True)
    print(f"built {bench_program(folder)}")


def bench_program(folder: Path) -> Path:
    for name in ("llama-bench", "llama-bench.exe"):
        for path in sorted((folder / "build" / "bin").rglob(name)):
            return path
    sys.exit(f"there is no llama-bench in {folder}: run `{sys.argv[0]} build {folder}` first")


def lines_of(command: list[str], niceness: int) -> Iterator[dict[str, object]]:
    """The JSON objects that a command prints, one a line, as they come."""
    if niceness:
        command = ["nice", "-n", str(niceness), *command]
    with (
        tempfile.TemporaryFile("w+") as errors_file,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors_file, text=True) as process,
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


def run_llama(args: argparse.Namespace, depth: int, repeat: int, results: Results) -> None:
    prompts = ",".join(map(str, (WARM_UP, *args.prompt)))
    command = [str(bench_program(args.folder)), "-m", str(args.file), "-t", str(args.threads), "-p", prompts,
               "-n", str(args.gen), "-d", str(depth), "-r", str(repeat), "-b", str(max(args.prompt)),
               "-ub", str(max(args.prompt)), "--repack", str(int(args.repack)), "--no-warmup", "-o", "jsonl"]
    for found in lines_of(command, args.nice):
        test, tokens = ("decode", found["n_gen"]) if found["n_gen"] else ("prefill", found["n_prompt"])
        if (test, tokens) != ("prefill", WARM_UP):
            results.rates["llama.cpp"][(test, int(str(tokens)), depth)] += found["samples_ts"]  # type: ignore[operator]


# -- pyflash --


def run_pyflash(args: argparse.Namespace, depth: int, repeat: int, results: Results) -> None:
    command = [sys.executable, "-m", "pyflash", "bench", str(args.file), "--threads", str(args.threads),
               "--prompt", ",".join(map(str, args.prompt)), "--gen", str(args.gen), "--depth", str(depth),
               "--repeat", str(repeat), "--chunk", str(max(args.prompt)), "--json"]
    for found in lines_of(command, args.nice):
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


def compare(args: argparse.Namespace, results: Results) -> None:
    plan = [(0, 1, turn) for turn in range(args.rounds)] if 0 in args.depth else []
    plan += [(depth, args.rounds, 0) for depth in args.depth if depth]
    for depth, repeat, turn in plan:
        engines = [run_llama, run_pyflash]
        for run in engines if turn % 2 == 0 else reversed(engines):
            warm_file(args.file)
            if hasattr(os, "getloadavg"):
                results.loads.append(os.getloadavg()[0])
            started = time.monotonic()
            run(args, depth, repeat, results)
            took = time.monotonic() - started
            print(f"{run.__name__[4:]} at depth {depth}: {took:.0f} s", file=sys.stderr, flush=True)


def report(args: argparse.Namespace, results: Results) -> str:
    # The paths are this machine's; the names are enough to do it again.
    words = [Path(word).name if os.sep in word else word for word in sys.argv[2:]]
    load = f", load {min(results.loads):.1f} to {max(results.loads):.1f}" if results.loads else ""
    repack = "with its repacked copies" if args.repack else "without repacking"
    return "\n".join((
        f"{time.strftime('%Y-%m-%d')}, {processor()}, {args.threads} threads{load}; llama.cpp of {PACKAGE} {VERSION} "
        f"{repack}. Tokens/s, medians (lowest to highest):", "",
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
    commands.add_parser("build").add_argument("folder", type=Path)
    run = commands.add_parser("run")
    run.add_argument("file", type=Path)
    run.add_argument("folder", type=Path, help="where `build` put llama.cpp")
    run.add_argument("--prompt", type=numbers, default=[512, 2048])
    run.add_argument("--gen", type=int, default=32)
    run.add_argument("--depth", type=numbers, default=[0])
    run.add_argument("--rounds", type=int, default=3)
    run.add_argument("--threads", type=int, default=cpu.processor().physical or os.cpu_count())
    run.add_argument("--repack", action="store_true", help="let llama.cpp copy weights into its own layout")
    run.add_argument("--nice", type=int, default=0, help="priority of both engines")
    run.add_argument("--keep", type=Path, metavar="FILE.json", help="add to the results there")
    run.add_argument("--update", type=Path, metavar="FILE.md", help="write the table there, between its marks")
    args = parser.parse_args()
    if args.command == "build":
        build(args.folder)
        return
    bench_program(args.folder)
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
