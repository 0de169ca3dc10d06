"""`pyflash pull`: a model from Hugging Face's hub."""

from __future__ import annotations

import sys

import click

from pyflash.cli.options import converter_errors
from pyflash.cli.output import print_done
from pyflash.cli.progress import Progress
from pyflash.cli.signals import leaving_on_signals
from pyflash.cli.streams import say, show, show_for_programs
from pyflash.machine.units import format_bytes


@click.command()
@click.argument("name", metavar="ORG/REPO[:QUANT]")
@click.option("--dry-run", is_flag=True, help="Tell what would be downloaded, and download nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def pull(name: str, dry_run: bool, as_json: bool) -> None:
    """Download a GGUF model from Hugging Face's hub into its local cache, with all its shards.

    QUANT is what publishers write into the names of files or folders: Q4_K_M, UD-IQ2_XXS, or the whole name of a file.
    Without it the repository must hold one model. Needs `pip install huggingface_hub`; the cache, the token and another
    endpoint are chosen by its variables (HF_HOME, HF_TOKEN, HF_ENDPOINT), and HF_HUB_OFFLINE forbids it.

    Space is checked first, and each file is compared with its published checksum. What an interrupted download has
    fetched is kept, and the same command goes on from there. The path of the file is printed; `pyflash run` takes the
    name as well. No other command uses the network.
    """
    with converter_errors(), leaving_on_signals():
        from gguf_export import pull as downloads

        plan = downloads.plan_pull(name)
        fields = {"name": plan.name, "commit": plan.commit, "total_bytes": plan.n_bytes,
                  "download_bytes": plan.left_bytes, "files": [str(plan.place(file)) for file in plan.files]}
        count = f"{len(plan.files)} file{'s' if len(plan.files) > 1 else ''}"
        left = f"{format_bytes(plan.left_bytes)} to download"
        what = f"{plan.name}: {format_bytes(plan.n_bytes)} in {count}, {left}"
        if dry_run:
            print_done(fields) if as_json else show(what)
            return
        say(what if plan.left_bytes else f"{plan.name} is here already")
        with Progress("downloading", sys.stderr) as progress:
            path = downloads.pull(plan, progress.update, lambda line: progress.say(f"pyflash: {line}"))
    print_done(fields) if as_json else show_for_programs(str(path))
