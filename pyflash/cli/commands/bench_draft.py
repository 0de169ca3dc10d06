"""`pyflash bench --draft`: how often drafts are right in an answer, what they cost and what they gain."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from pyflash.chat.encoding import encode
from pyflash.cli.options import open_model
from pyflash.cli.output import Status, print_done, print_json
from pyflash.cli.streams import say, show
from pyflash.cli.text import read_text
from pyflash.engine.model import Model
from pyflash.engine.speculation import MOST_DRAFTED

if TYPE_CHECKING:  # imported where they are used: every other command starts without them
    from pyflash.bench.drafting import DraftSpeed

_TOKENS = 128  # of an answer, where --gen is not given
_OTHERS = ("prompt", "depth", "batch", "profile", "session_cache", "as_csv", "plot")


def bench_draft(file: str, kind: str, files: Sequence[Path], as_json: bool, options: dict[str, Any]) -> None:
    """Measures and prints. options: those of `bench`."""
    from pyflash.bench import drafting, output

    _check(options)
    n_tokens = options["gen"] if _typed("gen") else _TOKENS
    texts = [(path.name, read_text(os.fspath(path), say)) for path in files]
    model, _ = open_model(file, {**options, "device_context": None})
    status = Status()
    with model:
        plan = drafting.DraftPlan(_prompts(model, texts), kind, options["draft_max"] or MOST_DRAFTED, n_tokens,
                                  options["repeat"])
        setting = output.describe_setting(os.fspath(file), model.info, options["cache_type"], options["chunk"])
        with model.session(context=plan.context, chunk=options["chunk"], cache=options["cache_type"]) as session:
            results = drafting.measure(session, plan, status.show)
            if not as_json:
                show(f"{setting.title}, {setting.kernels}, cache {setting.cache}\n{setting.place}")
            n = 0
            try:
                for found in results:
                    status.clear()
                    n += 1
                    if as_json:
                        print_json(_record(found, kind))
                    else:
                        show(_table(found, kind))
            finally:
                status.clear()
    if as_json:
        print_done({**asdict(setting), "draft": kind, "texts": n})


def _check(options: dict[str, Any]) -> None:
    for name in _OTHERS:
        if _typed(name):
            raise click.UsageError(f"--draft measures by itself: leave --{name.removeprefix('as_').replace('_', '-')} out")
    if _typed("gen") and options["gen"] < 16:
        raise click.UsageError("--draft needs answers of 16 tokens and more: --gen 128")


def _typed(name: str) -> bool:
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def _prompts(model: Model, texts: Sequence[tuple[str, str]]) -> list[tuple[str, list[int]]]:
    """Names of texts, and the tokens that ask for an answer to each."""
    from pyflash.bench.draft_texts import TEXTS

    return [(name, model.tokenizer.encode(encode([{"role": "user", "content": said}], release=model.release), special=True))
            for name, said in texts or TEXTS.items()]


def _record(found: DraftSpeed, kind: str) -> dict[str, Any]:
    return {
        "test": "draft", "draft": kind, "text": found.text, "prompt_tokens": found.n_prompt, "tokens": found.n_tokens,
        "plain_tok_s": found.n_tokens / statistics.median(found.plain),
        "tok_s": found.n_tokens / statistics.median(found.drafted), "gain": found.gain, "steps": found.n_steps,
        "tokens_per_step": found.tokens_per_step, "drafted": found.n_drafted, "kept": found.n_kept,
        "plain_seconds": list(found.plain), "seconds": list(found.drafted),
        "v": {str(size): v for size, v in found.v.items()}, "step_seconds": {str(n): s for n, s in found.steps.items()},
        "drafters": [{**asdict(each), "acceptance": each.acceptance, "seconds": each.typical} for each in found.drafters],
    }


def _table(found: DraftSpeed, kind: str) -> str:
    lines = ["", f"{found.text}: an answer of {found.n_tokens + 1} tokens to a prompt of {found.n_prompt}"]
    for each in found.drafters:
        share = each.n_proposed / each.n_asked if each.n_asked else 0.0
        by_place = " ".join(f"{rate:.2f}" for rate in each.acceptance)
        right = f"; right by place: {by_place}" if by_place else ""
        took = f"; a draft {1e3 * each.typical:.3g} ms" if each.n_proposed else ""
        lines.append(f"  {each.name:8} has a draft behind {share:.0%} of tokens{right}{took}")
    lines.append("  V(T)     " + ", ".join(f"{size}: {v:.2f}" for size, v in found.v.items())
                 + f"; one token {1e3 * found.steps[1]:.3g} ms")
    plain, drafted = (found.n_tokens / statistics.median(each) for each in (found.plain, found.drafted))
    kept = f", {found.n_kept / found.n_drafted:.0%} of {found.n_drafted} drafted tokens kept" if found.n_drafted else ""
    lines.append(f"  {kind:8} {found.gain:.2f} times plain ({drafted:.4g} for {plain:.4g} tokens a second), "
                 f"{found.tokens_per_step:.2f} tokens a step{kept}")
    return "\n".join(lines)
