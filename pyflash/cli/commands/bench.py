"""`pyflash bench`: speed at several depths of context."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gguf_export.outputs import find_place, write_output
from pyflash.cli.commands.bench_draft import bench_draft
from pyflash.cli.commands.completion import GGUFFile
from pyflash.cli.options import converter_errors, model_options, open_model, option
from pyflash.cli.output import Status
from pyflash.cli.paths import FilePath
from pyflash.cli.streams import say, show, show_for_programs
from pyflash.engine.model import DRAFT_HEAD
from pyflash.engine.speculation import DRAFTERS, MOST_DRAFTED

if TYPE_CHECKING:  # imported where they are used: every other command starts without them
    from pyflash.bench.measure import Bench, Speed
    from pyflash.bench.steps import StepSpeed
    from pyflash.bench.output import Setting

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20}


class Counts(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Numbers of tokens with commas between them: "0,512,16K"."""

    name = "N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        found = []
        for part in str(value).split(",") if value else ():
            match = re.fullmatch(r"(\d{1,9})([KM]?)", part.strip(), re.IGNORECASE)
            if match is None:
                self.fail(f"{part.strip()!r} is no number of tokens; write 512, 16K or 0,4K,64K", param, ctx)
            found.append(int(match[1]) * _UNITS[match[2].upper()])
        return tuple(dict.fromkeys(found))


@click.command()
@click.argument("file", type=GGUFFile())
@option("--prompt", command="bench", type=Counts(), default="512", show_default=True, help="Tokens to prefill; 0: none.")
@option("--gen", type=click.IntRange(0), default=32, show_default=True, help="Tokens to decode; 0: none.")
@option("--depth", type=Counts(), default="0", show_default=True, help="Tokens in the context before each test.")
@option("--repeat", type=click.IntRange(1), default=3, show_default=True, help="Repetitions; medians are shown.")
@option("--batch", type=Counts(), metavar="N,...", default="",
        help="Also steps of so many tokens, all logits: 1,2,4,8.")
@option("--profile", is_flag=True, help="Show where the time goes, by operation.")
@option("--chunk", type=click.IntRange(1, 1 << 16), default=512, show_default=True,
        help="Tokens evaluated at once; more need more memory.")
@option("--session-cache", type=FilePath(file_okay=False, path_type=Path), metavar="FOLDER",
        help="Keep filled contexts here, and take them from here.")
@option("--draft", command="bench", is_flag=False, flag_value="auto", type=click.Choice(DRAFTERS[:1] + DRAFTERS[2:]),
        help="Measure drafts instead, on an answer of --gen tokens (128): how often they are right by place, V(T), what they "
        "cost and gain. Alone: auto.")
@option("--draft-max", command="bench", type=click.IntRange(1, MOST_DRAFTED), metavar="N",
        help=f"Most tokens that are proposed at once.  [default: {MOST_DRAFTED}]")
@click.option("--text", multiple=True, type=FilePath(dir_okay=False, path_type=Path), metavar="FILE",
              help="UTF-8 text that --draft asks for an answer to; may be given several times.  [default: four of different "
              "kinds]")
@option("--draft-head", type=click.IntRange(0, 1 << 20), metavar="N", default=DRAFT_HEAD, show_default=True,
        help="Rows of the small copy of the output head that an MTP block drafts with; 0: the head itself.")
@option("--mtp", type=click.Path(exists=True, dir_okay=False), metavar="FILE",
        help="GGUF file of the model's MTP block, where it has one of its own.")
@option("--json", "as_json", is_flag=True, help='Print JSON objects, one a line, the last with "done": true.')
@option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@option("--plot", type=FilePath(dir_okay=False, path_type=Path), metavar="OUT.svg",
        help="Draw speed over context as an SVG, too.")
@model_options
def bench(file: str, as_json: bool, as_csv: bool, plot: Path | None, draft: str | None, text: tuple[Path, ...],
          **options: Any) -> None:
    """Measure prefill and decode speed of FILE at depths of context, or what drafts gain in answers.

    A depth is reached by evaluating that many random tokens, each once: the context grows from one depth to the next.
    That takes minutes to hours at great depths; --session-cache keeps what was reached for the next run. K and M are
    1,024 and 1,048,576 tokens.

    "of bandwidth" holds what decoding reads, weights and cache, against the speed at which the same threads read plain
    memory, measured before each repetition. --batch measures steps that verify drafts or serve several chats: V is the time
    over that of one token, "experts/layer" how many different ones the tokens of a step chose.

    --draft asks each drafter behind each token of an answer, which shows how often its first, second, ... token is right; times
    steps of the answer's tokens, and whole answers without drafts and with them in turns. Answers are greedy.

    Ctrl-C ends the run and keeps what is measured.
    """
    from pyflash.bench import output
    from pyflash.bench.measure import Bench, Plan, Speed, check_plan
    from pyflash.bench.traffic import read_traffic

    if draft is not None:
        return bench_draft(file, draft, text, as_json, options)
    if text or options["draft_max"] is not None:
        raise click.UsageError("--text and --draft-max are for --draft")
    if as_json and as_csv:
        raise click.UsageError("choose one of --json and --csv")
    if as_csv and (options["batch"] or options["profile"]):
        raise click.UsageError("--batch and --profile have columns of their own: use --json")
    if 0 in options["batch"]:
        raise click.UsageError("--batch takes steps of one token and more: 1,2,4,8")
    if plot is not None:
        with converter_errors():
            find_place(plot, streams=True, inputs=[file])
    plan = Plan(options["prompt"], options["gen"], options["depth"], options["repeat"], options["chunk"],
                options["cache_type"], options["session_cache"], batches=options["batch"], profile=options["profile"])
    model, _ = open_model(file, {**options, "device_context": plan.context})
    with model:
        check_plan(plan, model.info.n_ctx_train)
        with converter_errors():
            traffic = read_traffic(file, model.info, plan.cache)
        status = Status()
        with Bench(model, traffic, plan, status.show) as run:
            setting = output.describe_setting(os.fspath(file), model.info, plan.cache, run.chunk)
            results, interrupted = _measure(run, setting, status, "json" if as_json else "csv" if as_csv else "table")
        speeds = [each for each in results if isinstance(each, Speed)]
        if as_json:
            click.echo(output.json_end(setting, run.memory, not interrupted))
        elif as_csv and speeds:
            show_for_programs(output.csv_text(setting, speeds, run.memory).rstrip("\n"))
        elif results:
            if speeds:
                show(output.table_foot(speeds, run.memory))
            for result in results:
                if result.operations:
                    show(output.profile_text(result))
    if plot is not None and speeds:
        _write_plot(plot, file, setting, speeds)
    if interrupted:
        raise KeyboardInterrupt


def _measure(run: Bench, setting: Setting, status: Status, form: str) -> tuple[list[Speed | StepSpeed], bool]:
    """Prints results as they come. (results, whether Ctrl-C ended it)."""
    from pyflash.bench import output
    from pyflash.bench.measure import Speed
    from pyflash.bench.steps import StepSpeed

    results: list[Speed | StepSpeed] = []
    if form == "table":
        show(output.table_head(setting))
    try:
        for speed in run.run():
            status.clear()
            if form == "json":
                click.echo(output.json_line(speed))
            elif form == "table" and isinstance(speed, StepSpeed):
                if not results or not isinstance(results[-1], StepSpeed):
                    show(output.step_head())
                show(output.step_row(speed))
            elif form == "table" and isinstance(speed, Speed):
                click.echo(output.table_row(speed))
            results.append(speed)
    except KeyboardInterrupt:
        status.clear()
        return results, True
    return results, False


def _write_plot(path: Path, file: str, setting: Setting, speeds: list[Speed]) -> None:
    from pyflash.bench.plot import svg_text

    with converter_errors():
        write_output(path, svg_text(setting, speeds).encode("utf-8"), inputs=[file])
    say(f"wrote {path}")
