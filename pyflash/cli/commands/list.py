"""`pyflash list`: the models in local stores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pyflash.cli.options import converter_errors
from pyflash.cli.output import columns, print_done
from pyflash.cli.streams import say, show
from pyflash.machine.units import format_bytes
from pyflash.native.text import visible_line

if TYPE_CHECKING:
    from gguf_export.stores.lookup import Listing


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_models(as_json: bool) -> None:
    """List the models of this architecture on this machine, by the names that `run` and others take.

    Looked for are GGUF files in Hugging Face's cache (HF_HUB_CACHE, HF_HOME; LLAMA_CACHE), in LM Studio's folder and in
    Ollama's store (OLLAMA_MODELS). Only their headers are read. The types are those that a tenth of the weights or more
    have. Other files are found by their paths.
    """
    from gguf_export.stores.lookup import list_models as look

    with converter_errors():
        listing = look()
    if as_json:
        print_done(_as_json(listing))
        return
    rows = [(each.stored.name, each.types, format_bytes(each.n_bytes), str(each.stored.path))
            for each in listing.models]
    if rows:
        show(columns([("name", "types", "size", "path"), *rows]))
    if listing.n_other:
        others = ", ".join(f"{name} {count}" for name, count in listing.n_other.most_common())
        say(f"{sum(listing.n_other.values())} files of other architectures: {others}")
    for line in listing.problems:
        say(f"pyflash: note: {visible_line(line)}")
    if not rows:
        say("no model of this architecture in the stores of Hugging Face, LM Studio and Ollama: pyflash pull "
            "ORG/REPO:QUANT downloads one")


def _as_json(listing: Listing) -> dict[str, object]:
    models = [
        {"name": each.stored.name, "store": each.stored.store, "path": str(each.stored.path),
         "files": [str(path) for path in each.stored.files], "bytes": each.n_bytes, "file_type": each.file_type or None,
         "bytes_by_type": each.bytes_by_type}
        for each in listing.models
    ]
    return {"models": models, "other_architectures": dict(listing.n_other.most_common()), "problems": listing.problems}
