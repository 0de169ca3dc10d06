"""The demo model: a small trained checkpoint in the official layout, bundled with the package.

The first use converts it to GGUF in the user's cache folder, as `pyflash convert --mtp` would: the model, and what drafts for
it as files of their own. That is its MTP block, and stages of DSpark, which lie beside it in the layout of release 0731.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gguf_export.errors import reason
from gguf_export.outputs import write_output
from pyflash.machine.places import cache_dir
from pyflash.machine.units import format_bytes
from pyflash.native.errors import Error, FileError
from pyflash.native.library import __version__, installed_file

if TYPE_CHECKING:
    from gguf_export.convert import ConversionPlan

NAME = "pyflash demo"
DRAFTERS = ("dspark", "mtp")  # by what they gain with it


def checkpoint() -> Path:
    """The folder of the bundled checkpoint, for `pyflash convert` too. Raises Error where there is none."""
    override = os.environ.get("PYFLASH_DEMO")  # for developers: another one, such as one just trained
    folder = Path(os.path.expanduser(override)) if override else installed_file("demo", "model")
    if folder is not None and (folder / "config.json").is_file():
        return folder
    if override:
        raise Error(f"PYFLASH_DEMO names {override!r}, which is no checkpoint folder: change or unset it")
    raise Error("this installation has no demo model: install pyflash again, or give a model file")


def stages() -> Path | None:
    """The folder of the DSpark stages for the bundled checkpoint; None for another one."""
    return None if "PYFLASH_DEMO" in os.environ else installed_file("demo", "dspark")


def file() -> Path:
    """The GGUF's place, whether it is there yet or not. Another checkpoint or version has another one."""
    return cache_dir() / f"demo-{__version__}-{_digest(checkpoint(), stages())}.gguf"


def _digest(*folders: Path | None) -> str:
    """Of what a conversion may read."""
    digest = hashlib.blake2b(digest_size=6)
    for folder in filter(None, folders):
        try:
            for path in sorted(folder.iterdir()):
                if path.is_file() and path.suffix != ".md":
                    data = path.read_bytes()
                    digest.update(f"{path.name} {len(data)}\n".encode())
                    digest.update(data)
        except OSError as error:
            raise FileError(f"cannot read the demo model in {folder}: {reason(error)}; install pyflash again") from error
    return digest.hexdigest()


def _draft_files(target: Path) -> dict[str, Path]:
    """Beside the GGUF: of each drafter there is, the preferred one first."""
    places = {drafter: target.with_name(f"{drafter}-{target.name}") for drafter in DRAFTERS}
    return {drafter: place for drafter, place in places.items() if place.is_file()}


def draft_path(drafter: str = "auto") -> Path | None:
    """A GGUF that drafts for the model, for `Model.open(mtp=)` beside path(), which makes it: of "mtp", of "dspark", or for any
    other word of the one that gains more. None where the checkpoint has nothing that drafts. Raises as path() does."""
    files = _draft_files(path())
    return files.get(drafter) or next(iter(files.values()), None)


def path(progress: Callable[[int, int], None] | None = None, say: Callable[[str], None] | None = None) -> Path:
    """The demo model's GGUF, converted when it is not there yet or not as it was made. Safe against other processes
    doing the same.

    progress(done, total) gets bytes; say gets lines about what was converted. Neither is called when nothing is.
    Raises Error or FileError with what to do.
    """
    target = file()
    if _is_whole(target):
        return target
    from gguf_export.checkpoint import open_checkpoint
    from gguf_export.convert import ConvertOptions, convert, plan_conversion
    from gguf_export.errors import ConvertError

    source = checkpoint()
    is_damaged = target.is_file() and _note(target).is_file()
    try:
        os.makedirs(os.path.realpath(target.parent), exist_ok=True)
        options = ConvertOptions(name=NAME, mtp=open_checkpoint(source).drafts == "mtp")
        made = convert(source, target, options, progress=progress)
        if (more := stages()) is not None:
            convert(source, target, ConvertOptions(name=NAME, mtp=True, drafts=more))
        write_output(_note(target), _sums(target), streams=False)
        lines = _description(plan_conversion(source, options), is_damaged) if say is not None else []
    except OSError as error:
        raise FileError(f"cannot make the demo model in {target.parent}: {reason(error)}; "
                        "set PYFLASH_CACHE to a folder that can be written") from error
    except ConvertError as error:
        if _is_whole(target):  # Windows replaces no file that is open: another process was faster
            return target
        raise Error(f"cannot make the demo model in {target.parent}, which PYFLASH_CACHE can change: {error}"
                    ) from error
    if say is not None:
        for line in [*lines, f"  wrote {target}: {format_bytes(made.total_bytes)} in {made.seconds:.1f} s"]:
            say(line)
    return target


def _note(target: Path) -> Path:
    """Beside the GGUF: its size and checksum when it was made, and those of what drafts for it."""
    return target.with_suffix(".sum")


def _sums(target: Path) -> bytes:
    files = [target, *_draft_files(target).values()]
    lines = (f"{len(data)} {hashlib.blake2b(data, digest_size=16).hexdigest()}\n" for data in map(Path.read_bytes, files))
    return "".join(lines).encode("ascii")


def _is_whole(target: Path) -> bool:
    """Whether the files are as their note says."""
    try:
        return target.is_file() and _note(target).is_file() and _note(target).read_bytes() == _sums(target)
    except OSError:
        return False


def _description(plan: ConversionPlan, is_damaged: bool) -> list[str]:
    """What was converted, why, from where, and into which types; two lines."""
    source, config = plan.checkpoint, plan.checkpoint.config
    size = format_bytes(sum(tensor.nbytes for tensor in source.tensors.values()))
    steps = (f"{count} {old} → {new}" if old != new else f"{count} {old} kept"
             for (old, new), count in plan.conversions().most_common())
    why = "damaged in the cache" if is_damaged else "first use"
    return [
        f"Demo model, {why}: converted {source.path} ({config.n_layers} layers, {config.n_experts} experts, "
        f"{len(source.tensors):,} tensors, {size})",
        f"  weights: {', '.join(steps)}",
    ]
