"""Runs `pyflash eval` and llama.cpp's perplexity tool on the same files and text, and prints their figures in tables.

    cmake --build LLAMA/llama-native --target llama-perplexity   # LLAMA: where compare_llama.py's `build` put llama.cpp
    python scripts/compare_perplexity.py LLAMA/llama-native/bin/llama-perplexity [--text FILE] [--chunks N]
    python scripts/compare_perplexity.py PROGRAM --base F32.gguf --model Q8_0.gguf --text FILE

Without --base and --model a random model is made: once with all weights in float32, where both programs compute the
same but for rounding, and once in the converter's default types. Without --text it is this repository's documents.
llama.cpp runs with caches in float32 and without flash attention, pyflash in exact precision, so that the definitions
are what is compared; with --defaults both run as they come.

A last table takes both log-probability files from llama.cpp and computes the divergence from these alone, by pyflash's
statistics: what differs there is not the models' arithmetic.

llama-perplexity may lose its last lines as it exits, more so on a busy machine; it is then run again. Where other
programs want the cores too, --threads 1 is quickest, because its threads wait for each other by spinning.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pyflash.eval.logits_file import LogitsFile
from pyflash.eval.output import divergence_fields
from pyflash.eval.statistics import DivergenceStatistics, blocks

ROOT = Path(__file__).resolve().parent.parent
# Shapes that llama.cpp takes, 6 layers of all kinds.
CONFIG = {"vocab_size": 1024, "hidden_size": 256, "sliding_window": 64, "compress_ratios": [0, 0, 4, 128, 4, 128, 0],
          "index_n_heads": 32, "index_topk": 32, "n_routed_experts": 16, "num_experts_per_tok": 4,
          "moe_intermediate_size": 128}  # fmt: skip
FLOAT = r"(-?[\d.]+)"
# Our name, how many of ours one of theirs is, and what they print before it.
DIVERGENCE = (
    ("ppl", 1, r"Mean PPL\(Q\) +"),
    ("base_ppl", 1, r"Mean PPL\(base\) +"),
    ("log_ratio", 1, r"Mean ln\(PPL\(Q\)/PPL\(base\)\) +"),
    ("ratio", 1, r"Mean PPL\(Q\)/PPL\(base\) +"),
    ("difference", 1, r"Mean PPL\(Q\)-PPL\(base\) +"),
    ("correlation", 100, r"Cor\(ln\(PPL\(Q\)\), ln\(PPL\(base\)\)\)"),
    ("kld", 1, r"Mean +KLD"),
    ("kld 99.9", 1, r"99.9% +KLD"),
    ("kld 90", 1, r"90.0% +KLD"),
    ("kld 50", 1, r"Median +KLD"),
    ("kld 1", 1, r" 1.0% +KLD"),
    ("p_diff", 100, r"Mean +Δp"),
    ("p_diff 99", 100, r"99.0% +Δp"),
    ("rms_p_diff", 100, r"RMS Δp +"),
    ("same_top", 100, r"Same top p"),
)
_ATTEMPTS = 5
Figures = dict[str, tuple[float, float | None]]  # value and error


@dataclass(frozen=True)
class Programs:
    llama: Path
    threads: int
    defaults: bool

    def run_llama(self, wanted: str, *arguments: object) -> list[str]:
        """What llama-perplexity printed, as the groups of the pattern's last match."""
        floats = [] if self.defaults else ["-ctk", "f32", "-ctv", "f32", "-fa", "off"]
        command = [str(self.llama), "-t", str(self.threads), *floats, *map(str, arguments)]
        for _ in range(_ATTEMPTS):
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8",
                                  errors="replace")
            found = [match.groups() for match in re.finditer(wanted, done.stdout, re.DOTALL)]
            if done.returncode == 0 and found:
                return list(found[-1])
        sys.exit(f"{' '.join(command)} printed no {wanted!r}:\n{done.stdout[-2000:]}")

    def run_pyflash(self, *arguments: object) -> dict[str, object]:
        exact = [] if self.defaults else ["--precision", "exact"]
        command = [sys.executable, "-m", "pyflash", "eval", *map(str, arguments), *exact, "-t", str(self.threads),
                   "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8")
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)} failed")
        found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
        return found


def their_divergence(programs: Programs, model: Path, base: Path, n_ctx: int) -> Figures:
    (printed,) = programs.run_llama(r"(Mean PPL\(Q\).*Same top p: +[\d.]+ ± +[\d.]+)", "-m", model, "-c", n_ctx,
                                    "--kl-divergence", "--kl-divergence-base", base)
    figures: Figures = {}
    for name, factor, before in DIVERGENCE:
        match = re.search(rf"{before}: +{FLOAT}(?: ± +{FLOAT})?", printed)
        assert match is not None, before
        figures[name] = float(match[1]) / factor, float(match[2]) / factor if match[2] else None
    return figures


def our_divergence(end: dict[str, object]) -> Figures:
    figures: Figures = {}
    for name, _, _ in DIVERGENCE:
        kind, _, percentile = name.partition(" ")
        if percentile:
            spread = end[f"{kind}_spread"]
            assert isinstance(spread, dict)
            figures[name] = spread["percentiles"][percentile], None
        else:
            figures[name] = end[name], end.get(f"{name}_error")  # type: ignore[assignment]
    return figures


def from_kept(model: Path, base: Path) -> Figures:
    """The divergence between two files of log-probabilities."""
    found = DivergenceStatistics()
    with LogitsFile(model) as kept, LogitsFile(base) as kept_base:
        for window in range(kept.windows.count):
            targets = kept.windows.targets(window)
            for block in blocks(len(targets), kept.n_vocab):
                rows = kept.rows(window, block.start, block.stop).log_probabilities(slice(None)).astype(np.float32)
                found.add(rows, kept_base.rows(window, block.start, block.stop), targets[block])
    return our_divergence(divergence_fields(found.result()))


def shown(figure: tuple[float, float | None]) -> str:
    value, error = figure
    return f"{value:.7g}" if error is None else f"{value:.7g} ± {error:.3g}"


def table(title: str, columns: dict[str, Figures]) -> None:
    names = list(next(iter(columns.values())))
    print(f"\n{title}\n\n| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name in names:
        print(f"| {name} | {' | '.join(shown(figures[name]) for figures in columns.values())} |")


def compare_perplexity(programs: Programs, base: Path, text: Path, args: argparse.Namespace, folder: Path) -> None:
    common = ["--chunks", args.chunks]
    theirs, ours = Figures(), Figures()
    value, error = programs.run_llama(rf"PPL = {FLOAT} \+/- {FLOAT}", "-m", base, "-f", text, "-c", args.ctx, *common,
                                      "--save-all-logits", folder / "llama-base.kld")
    theirs["ppl"] = float(value), float(error)
    end = programs.run_pyflash("ppl", base, "--text", text, "--ctx", args.ctx, *common, "--logits",
                               folder / "pyflash-base.kld")
    ours["ppl"] = end["ppl"], end["ppl_error"]  # type: ignore[assignment]
    # With a stride llama.cpp makes the window larger by half of it, and a multiple of 256.
    stride = args.ctx // 4
    n_ctx = -(-(args.ctx + stride // 2) // 256) * 256
    (value,) = programs.run_llama(rf"\[{args.chunks}\]{FLOAT},", "-m", base, "-f", text, "-c", args.ctx, "-b", args.ctx,
                                  *common, "--ppl-stride", stride)
    theirs[f"ppl, stride {stride}"] = float(value), None
    end = programs.run_pyflash("ppl", base, "--text", text, "--ctx", n_ctx, *common, "--stride", stride)
    ours[f"ppl, stride {stride}"] = end["ppl"], None  # type: ignore[assignment]
    table(f"Perplexity of {base.name}", {"llama.cpp": theirs, "pyflash": ours})


def compare_divergence(programs: Programs, model: Path, base: Path, text: Path, args: argparse.Namespace, folder: Path
                       ) -> None:
    columns = {}
    for name in ("llama", "pyflash"):
        kept = folder / f"{name}-base.kld"
        columns[f"llama.cpp, base of {name}"] = their_divergence(programs, model, kept, args.ctx)
        columns[f"pyflash, base of {name}"] = our_divergence(programs.run_pyflash("kld", model, kept))
    columns["pyflash, side by side"] = our_divergence(programs.run_pyflash(
        "kld", model, base, "--text", text, "--ctx", args.ctx, "--chunks", args.chunks))
    table(f"Divergence of {model.name} from {base.name}", columns)


def compare_definitions(programs: Programs, model: Path, text: Path, args: argparse.Namespace, folder: Path) -> None:
    base, kept = folder / "llama-base.kld", folder / "llama-model.kld"
    programs.run_llama("PPL = ", "-m", model, "-f", text, "-c", args.ctx, "--chunks", args.chunks,
                       "--save-all-logits", kept)
    columns = {"llama.cpp prints": their_divergence(programs, model, base, args.ctx),
               "pyflash's statistics": from_kept(kept, base)}
    # The model's perplexity is not in its file, where likelihoods end 16 below the likeliest token's.
    kinds = ("base_ppl", "kld", "p_diff", "rms_p_diff", "same_top")
    table("The same log-probabilities, all from llama.cpp",
          {column: {name: figure for name, figure in figures.items() if name.split()[0] in kinds}
           for column, figures in columns.items()})


def make_models(folder: Path) -> tuple[Path, Path]:
    """(default types, float32) of one random checkpoint."""
    from gguf_export.convert import ConvertOptions, convert
    from gguf_export.synthetic import make_config, write_checkpoint

    checkpoint = write_checkpoint(folder / "checkpoint", make_config(**CONFIG), seed=5)
    options = {"default.gguf": ConvertOptions(), "float32.gguf": ConvertOptions(dense="f32", experts="f32")}
    model, base = (convert(checkpoint, folder / name, each).files[0] for name, each in options.items())
    return model, base


def documents(folder: Path) -> Path:
    path = folder / "documents.txt"
    texts = [each.read_text(encoding="utf-8") for each in sorted((ROOT / "docs").glob("*.md"))]
    path.write_bytes("\n".join(texts).encode())
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=Path, help="llama-perplexity")
    parser.add_argument("--model", type=Path, help="GGUF that is compared with the base")
    parser.add_argument("--base", type=Path, help="GGUF")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--defaults", action="store_true", help="both programs with their default numerics")
    args = parser.parse_args()
    if (args.model is None) != (args.base is None):
        parser.error("give both of --model and --base, or none")
    if args.ctx % 256:  # llama.cpp rounds the capacity up, and with a stride the window too
        parser.error("--ctx must be a multiple of 256")
    programs = Programs(args.program.absolute(), args.threads, args.defaults)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, base = (args.model, args.base) if args.model else make_models(folder)
        text = args.text or documents(folder)
        compare_perplexity(programs, base, text, args, folder)
        compare_divergence(programs, model, base, text, args, folder)
        compare_definitions(programs, model, text, args, folder)


if __name__ == "__main__":
    main()
