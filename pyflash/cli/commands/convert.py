"""`pyflash convert`: a checkpoint becomes a GGUF file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyflash.cli.advice import in_options
from pyflash.cli.commands.quantize import OBJECTIVES, TensorType, quantize
from pyflash.cli.options import converter_errors, parse_size, print_written
from pyflash.cli.output import print_done
from pyflash.cli.paths import FilePath
from pyflash.cli.progress import Progress
from pyflash.cli.signals import leaving_on_signals
from pyflash.cli.streams import say, show

if TYPE_CHECKING:
    from gguf_export.checkpoint import Checkpoint

_CONVERTED = {"experts": ("keep", "q8_0", "bf16", "f32"), "dense": ("q8_0", "bf16", "f32")}


@click.command()
@click.argument("checkpoint", type=FilePath())
@click.argument("out", type=FilePath(), metavar="OUT.gguf")
@click.option("--profile", type=click.Choice(["compat", "native"]), default="compat", show_default=True,
              help="compat: for llama.cpp, Ollama and LM Studio too. native: FP8 kept bit for bit, for pyflash only.")
@click.option("--dense", metavar="TYPE", default="q8_0", show_default=True,
              help="Type of the FP8 tensors in the compat profile: q8_0, bf16 (lossless) or f32; or, quantised, a type of "
              "`pyflash quantize --dense`.")
@click.option("--experts", metavar="TYPE", default="keep", show_default=True,
              help="Type of the routed experts: keep (FP4 as MXFP4, without loss), q8_0, bf16 or f32; or, quantised, a type "
              "of `pyflash quantize --experts`.")
@click.option("--head", metavar="TYPE", help="Quantise head and embedding: BF16, Q8_0 or Q6_K.")
@click.option("--tensor-type", "tensor_types", type=TensorType(), multiple=True, metavar="REGEX=TYPE",
              help="Quantise the tensors in whose name REGEX is found to TYPE; may be repeated.")
@click.option("--imatrix", type=FilePath(), help="Importance matrix for what is quantised.")
@click.option("--objective", type=click.Choice(OBJECTIVES),
              help="What quantising makes least, as of `pyflash quantize`.")
@click.option("--threads", "-t", type=click.IntRange(1, 256), metavar="N", help="Threads for quantising.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run that quantised.")
@click.option("--restart", is_flag=True, help="Throw away what an interrupted run that quantised left.")
@click.option("--mtp", is_flag=True, help="Write the MTP block or DSpark stages too; compat: as a file of its own, "
              "mtp-OUT.gguf or dspark-OUT.gguf.")
@click.option("--drafts", type=FilePath(), metavar="FOLDER",
              help="Write what drafts in FOLDER for CHECKPOINT's model, and not the model: mtp-OUT.gguf or dspark-OUT.gguf. "
              "FOLDER holds config.json and mtp.* tensors, such as stages that were trained alone.")
@click.option("--name", help="The model's name.  [default: that of the checkpoint's folder or of its repository]")
@click.option("--split-max-size", metavar="SIZE", help="Write shards of at most SIZE, such as 40G.")
@click.option("--verify", is_flag=True,
              help="First compare the files with their published checksums, where the hub's client left those: reads "
              "every file once more.")
@click.option("--dry-run", is_flag=True, help="Print the plan and the sizes; read no weights and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan, or what was written, as one JSON object.")
def convert(
    checkpoint: str, out: str, profile: str, dense: str, experts: str, mtp: bool, drafts: str | None, name: str | None,
    split_max_size: str | None, verify: bool, dry_run: bool, as_json: bool, **quantising: Any
) -> None:
    """Turn a DeepSeek-V4 checkpoint folder into a GGUF file.

    CHECKPOINT holds config.json, the safetensors files and tokenizer.json as published. It may also be a model in the
    local cache of Hugging Face: ORG/NAME, its folder there, or the cache where it holds one such model. Files named
    OUT.gguf are replaced when the new ones are complete; an interrupted conversion leaves nothing.

    With a type or an option of `pyflash quantize` the weights are quantised on their way: the file is the one that
    quantising the checkpoint's native GGUF would give, and an interrupted run can --resume.
    """
    if _is_quantising(experts, dense, quantising):
        if drafts is not None:
            raise click.UsageError("--drafts writes what drafts without quantising it: leave out what is of "
                                   "`pyflash quantize`")
        _quantise(checkpoint, out, verify, {
            **{key: value for key, value in quantising.items() if value is not None}, "profile": profile, "dense": dense,
            "experts": experts, "mtp": mtp, "name": name, "split_max_size": split_max_size, "dry_run": dry_run,
            "as_json": as_json,
        })
        return
    if drafts is not None and profile == "native":
        raise click.UsageError("--drafts writes a file of its own, as --profile compat does; a native file holds what drafts")
    with converter_errors(), leaving_on_signals():
        from gguf_export import convert as converter

        shard_bytes = None if split_max_size is None else parse_size(split_max_size)
        settings = converter.ConvertOptions(profile, dense.lower(), experts.lower(), mtp or drafts is not None, shard_bytes, name,
                                            None if drafts is None else Path(drafts))
        checked: dict[str, Any] = {}
        if dry_run:
            plan = converter.plan_conversion(checkpoint, settings)
            if verify:
                checked = _verify(plan.checkpoint)
            print_done({**plan.as_json(), **checked}) if as_json else show(in_options(plan.summary()))
            return
        with Progress("converting", sys.stderr) as progress:
            written = converter.convert(
                checkpoint, out, settings, progress=progress.update,
                warn=lambda warning: progress.say(f"pyflash: warning: {in_options(warning)}"),
                ready=(lambda found: checked.update(_verify(found))) if verify else None,
            )
    if as_json:
        print_done({
            "files": [str(path) for path in written.files], "total_bytes": written.total_bytes,
            "seconds": round(written.seconds, 3), "warnings": written.warnings, **checked,
        })
    else:
        print_written(written.files, written.total_bytes)


def _is_quantising(experts: str, dense: str, quantising: dict[str, Any]) -> bool:
    """Whether any type or option is one of `pyflash quantize` alone."""
    if experts.lower() not in _CONVERTED["experts"] or dense.lower() not in _CONVERTED["dense"]:
        return True
    asked = [key for key in ("head", "tensor_types", "imatrix", "objective") if quantising[key]]
    if not asked:
        for key in ("threads", "resume", "restart"):
            if quantising[key]:
                raise click.UsageError(f"--{key} is for quantising: give --experts, --dense or another type of "
                                       "`pyflash quantize`")
    return bool(asked)


def _quantise(checkpoint: str, out: str, verify: bool, options: dict[str, Any]) -> None:
    """As `pyflash quantize` does, whose types these are."""
    if options.pop("profile") == "native":
        raise click.UsageError("--profile native keeps FP8 and FP4 as they are: leave it out to quantise")
    for group, converted in _CONVERTED.items():
        if (given := options[group].lower()) in ("bf16", "f32"):
            if group == "dense" and given == "bf16":
                options[group] = "keep"  # FP8 as BF16
                continue
            raise click.UsageError(f"--{group} {given} is for converting without quantising: leave one of them out")
        if given in converted:
            options[group] = "keep" if given == "keep" else given.upper()
    with converter_errors(), leaving_on_signals():
        from gguf_export import quantize_source
        from gguf_export.errors import ConvertError

        source = quantize_source.open_source(checkpoint, options["mtp"], options["name"])
        if source.checkpoint is None:
            raise ConvertError(f"{checkpoint} is a GGUF file: `pyflash quantize` takes it")
        if verify:
            _verify(source.checkpoint)
    click.get_current_context().invoke(quantize, source=checkpoint, out=out, **options)


def _verify(checkpoint: Checkpoint) -> dict[str, Any]:
    """What --verify found, for JSON; for people a line on stderr."""
    from gguf_export.published import verify_files

    with Progress("verifying", sys.stderr) as progress:
        found = verify_files(checkpoint, progress.update)
    say(f"pyflash: {found.summary()}")
    return {"verified_files": found.verified, "unverified_files": found.unknown}
