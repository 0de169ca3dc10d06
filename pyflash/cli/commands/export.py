"""`pyflash export`: a GGUF file in another program's layout, or back in the checkpoint's."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from pyflash.cli.advice import in_options
from pyflash.cli.commands.completion import GGUFFile
from pyflash.cli.options import converter_errors, print_written
from pyflash.cli.output import print_done
from pyflash.cli.paths import FilePath
from pyflash.cli.progress import Progress
from pyflash.cli.signals import leaving_on_signals
from pyflash.cli.streams import say, show, show_for_programs

_F = TypeVar("_F", bound=Callable[..., Any])


def _as_json(command: _F) -> _F:
    return click.option("--json", "as_json", is_flag=True, help="Print what was written as one JSON object.")(command)


def _force(command: _F) -> _F:
    return click.option("--force", is_flag=True, help="Replace files that are there already.")(command)


@click.group()
def export() -> None:
    """Give a GGUF file to Ollama or LM Studio, or turn it back into a checkpoint."""


@export.command("ollama")
@click.argument("file", type=GGUFFile())
@click.argument("dest", type=FilePath())
@click.option("--name", help="The model's name in Ollama.  [default: from the file]")
@click.option("--link", "place", flag_value="link", help="Link the file beside the Modelfile, which can then move.")
@click.option("--copy", "place", flag_value="copy", help="Copy the file beside the Modelfile.")
@_force
@_as_json
def export_ollama(file: str, dest: str, name: str | None, place: str | None, force: bool, as_json: bool) -> None:
    """Write a Modelfile into the folder DEST, for `ollama create`.

    It names FILE where it is, unless --link or --copy put it beside. The commands to run next are printed.
    """
    with converter_errors(), leaving_on_signals():
        from gguf_export.ollama import export_ollama as write

        with Progress("copying", sys.stderr) as progress:
            done = write(
                Path(file), Path(dest), name=name, place=place or "stay", force=force, progress=progress.update
            )
    if as_json:
        print_done({
            "modelfile": str(done.modelfile), "model_files": [str(path) for path in done.model_files],
            "placed": done.how, "name": done.name, "commands": done.commands(),
        })
        return
    say(f"wrote {done.modelfile}")
    show_for_programs("\n".join(done.commands()))


@export.command("lmstudio")
@click.argument("file", type=GGUFFile())
@click.argument("dest", type=FilePath())
@click.option("--publisher", help="Folder below DEST.  [default: from the file, else deepseek-ai]")
@click.option("--model", help="Folder below that.  [default: from the file]")
@click.option("--copy", is_flag=True, help="Copy the file instead of linking it.")
@_force
@_as_json
def export_lmstudio(
    file: str, dest: str, publisher: str | None, model: str | None, copy: bool, force: bool, as_json: bool
) -> None:
    """Put FILE where LM Studio finds it: DEST/PUBLISHER/MODEL/FILE.

    DEST is LM Studio's folder of models, such as ~/.lmstudio/models. All shards of a split file go there. They are hard
    links where that is possible, else symlinks, else copies.
    """
    with converter_errors(), leaving_on_signals():
        from gguf_export.lmstudio import export_lmstudio as write

        with Progress("copying", sys.stderr) as progress:
            done = write(
                Path(file), Path(dest), publisher=publisher, model=model, copy=copy, force=force,
                progress=progress.update,
            )
    for path in done.left_out:
        say(f"pyflash: note: {path.name} stays out: LM Studio would take the MTP file for a model")
    if as_json:
        print_done({
            "files": [str(path) for path in done.files], "placed": done.how, "publisher": done.publisher,
            "model": done.model, "left_out": [str(path) for path in done.left_out],
        })
        return
    say(f"{done.how} of {len(done.files)} file{'s' if len(done.files) > 1 else ''}")
    show_for_programs("\n".join(str(path) for path in done.files))


@export.command("hf")
@click.argument("file", type=GGUFFile())
@click.argument("dest", type=FilePath())
@click.option("--dry-run", is_flag=True, help="Print the files and their sizes; read no weights and write nothing.")
@_as_json
def export_hf(file: str, dest: str, dry_run: bool, as_json: bool) -> None:
    """Turn a native-profile GGUF back into the checkpoint it came from, in the new folder DEST.

    DEST is what vLLM, SGLang and transformers load: safetensors files, config.json and the tokenizer's files, with every
    tensor byte for byte. Where FILE was made with --mtp, or there was nothing more to convert, the files themselves are
    the checkpoint's. Weights are compared with the checksums in FILE on their way. An interrupted export leaves nothing.
    """
    with converter_errors(), leaving_on_signals():
        from gguf_export import convert as converter

        if dry_run:
            plan = converter.plan_export_hf(Path(file))
            print_done(plan.as_json()) if as_json else show(in_options(plan.summary()))
            return
        with Progress("exporting", sys.stderr) as progress:
            files = converter.export_hf(
                Path(file), Path(dest), progress=progress.update,
                warn=lambda note: progress.say(f"pyflash: note: {in_options(note)}"),
            )
    total = sum(path.stat().st_size for path in files)
    if as_json:
        print_done({"files": [str(path) for path in files], "total_bytes": total})
    else:
        print_written(files, total)
