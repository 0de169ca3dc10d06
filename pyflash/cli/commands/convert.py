"""`pyflash convert`: a checkpoint becomes a GGUF file."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from pyflash.cli.advice import in_options
from pyflash.cli.options import converter_errors, parse_size, print_written
from pyflash.cli.output import print_done
from pyflash.cli.paths import FilePath
from pyflash.cli.progress import Progress
from pyflash.cli.signals import leaving_on_signals
from pyflash.cli.streams import say, show

if TYPE_CHECKING:
    from gguf_export.checkpoint import Checkpoint


@click.command()
@click.argument("checkpoint", type=FilePath())
@click.argument("out", type=FilePath(), metavar="OUT.gguf")
@click.option("--profile", type=click.Choice(["compat", "native"]), default="compat", show_default=True,
              help="compat: for llama.cpp, Ollama and LM Studio too. native: FP8 kept bit for bit, for pyflash only.")
@click.option("--dense", type=click.Choice(["q8_0", "bf16", "f32"]), default="q8_0", show_default=True,
              help="Type of the FP8 tensors in the compat profile; bf16 is lossless.")
@click.option("--experts", type=click.Choice(["keep", "q8_0", "bf16", "f32"]), default="keep", show_default=True,
              help="Type of the routed experts; keep: FP4 as MXFP4, without loss.")
@click.option("--mtp", is_flag=True, help="Write the MTP block too; compat: as a file of its own, mtp-OUT.gguf.")
@click.option("--name", help="The model's name.  [default: that of the checkpoint's folder or of its repository]")
@click.option("--split-max-size", metavar="SIZE", help="Write shards of at most SIZE, such as 40G.")
@click.option("--verify", is_flag=True,
              help="First compare the files with their published checksums, where the hub's client left those: reads "
              "every file once more.")
@click.option("--dry-run", is_flag=True, help="Print the plan and the sizes; read no weights and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan, or what was written, as one JSON object.")
def convert(
    checkpoint: str, out: str, verify: bool, dry_run: bool, split_max_size: str | None, as_json: bool, **options: Any
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


def _verify(checkpoint: Checkpoint) -> dict[str, Any]:
    """What --verify found, for JSON; for people a line on stderr."""
    from gguf_export.published import verify_files

    with Progress("verifying", sys.stderr) as progress:
        found = verify_files(checkpoint, progress.update)
    say(f"pyflash: {found.summary()}")
    return {"verified_files": found.verified, "unverified_files": found.unknown}
