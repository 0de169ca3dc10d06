"""`pyflash convert`: a checkpoint becomes a GGUF file."""

from __future__ import annotations

import sys
from typing import Any

import click

from pyflash.cli.options import converter_errors, parse_size, print_written
from pyflash.cli.output import print_done
from pyflash.cli.progress import Progress
from pyflash.cli.signals import leaving_on_signals


@click.command()
@click.argument("checkpoint", type=click.Path())
@click.argument("out", type=click.Path(), metavar="OUT.gguf")
@click.option("--profile", type=click.Choice(["compat", "native"]), default="compat", show_default=True,
              help="compat: for llama.cpp, Ollama and LM Studio too. native: FP8 kept bit for bit, for pyflash only.")
@click.option("--dense", type=click.Choice(["q8_0", "bf16", "f32"]), default="q8_0", show_default=True,
              help="Type of the FP8 tensors in the compat profile; bf16 is lossless.")
@click.option("--experts", type=click.Choice(["keep", "q8_0", "bf16", "f32"]), default="keep", show_default=True,
              help="Type of the routed experts; keep: FP4 as MXFP4, without loss.")
@click.option("--mtp", is_flag=True, help="Write the MTP block too; compat: as a file of its own, mtp-OUT.gguf.")
@click.option("--name", help="The model's name.  [default: that of the checkpoint's folder or of its repository]")
@click.option("--split-max-size", metavar="SIZE", help="Write shards of at most SIZE, such as 40G.")
@click.option("--dry-run", is_flag=True, help="Print the plan and the sizes; read no weights and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan, or what was written, as one JSON object.")
def convert(
    checkpoint: str, out: str, dry_run: bool, split_max_size: str | None, as_json: bool, **options: Any
) -> None:
    """Turn a DeepSeek-V4 checkpoint folder into a GGUF file.

    CHECKPOINT holds config.json, the safetensors files and tokenizer.json as published. It may also be a model in the
    local cache of Hugging Face: ORG/NAME, its folder there, or the cache where it holds one such model. Files named
    OUT.gguf are replaced when the new ones are complete; an interrupted conversion leaves nothing.
    """
    with converter_errors(), leaving_on_signals():
        from gguf_export import convert as converter

        shard_bytes = None if split_max_size is None else parse_size(split_max_size)
        settings = converter.ConvertOptions(shard_bytes=shard_bytes, **options)
        if dry_run:
            plan = converter.plan_conversion(checkpoint, settings)
            print_done(plan.as_json()) if as_json else click.echo(plan.summary())
            return
        with Progress("converting", sys.stderr) as progress:
            written = converter.convert(checkpoint, out, settings, progress=progress.update)
    for warning in written.warnings:
        click.echo(f"pyflash: warning: {warning}", err=True)
    if as_json:
        print_done({
            "files": [str(path) for path in written.files], "total_bytes": written.total_bytes,
            "seconds": round(written.seconds, 3), "warnings": written.warnings,
        })
    else:
        print_written(written.files, written.total_bytes)
