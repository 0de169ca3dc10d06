"""Every page's blocks are run, in their order, in a folder that has what they name; then it is looked at what came of them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyflash as pyflash_package
import pytest

from hub_stand_in import Hub, serve

from .blocks import ROOT, Block, blocks, pages
from .shell import Place, make_place, run_page

OWN = ("docs/python.md", "docs/stages.md")  # tests/pyflash/test_docs_python.py
LONG = ("docs/accuracy.md", "docs/kernels.md", "docs/bits.md", "docs/quantisers.md", "docs/eval.md")
TEXT = "The floor is grey now. The secret word of Nick is hammer. A garden has a wall and a gate.\n"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the blocks are for a POSIX shell")

Fixture = Callable[[str], Path]


def of_pages() -> list[object]:
    runs = [page for page in pages() if page not in OWN and any(block.runs for block in blocks(page))]
    return [pytest.param(page, marks=pytest.mark.long if page in LONG else ()) for page in runs]


# -- what the pages name --


def _models(place: Place, fixture: Fixture) -> None:
    """What most pages speak of: model.gguf, and the checkpoint that it could be of."""
    shutil.copy(fixture("demo_model"), place.path("model.gguf"))
    place.path("DeepSeek-V4-Flash").symlink_to(fixture("tiny_checkpoint"))
    for name in ("report.txt", "question.txt", "q.txt", "text.txt"):
        place.path(name).write_text(TEXT, encoding="utf-8")
    for name in ("book.txt", "calibration.txt"):
        place.path(name).write_text(TEXT * 200, encoding="utf-8")


def _readme(place: Place, fixture: Fixture) -> None:
    place.path("model.gguf").unlink()
    place.path("path/to/DeepSeek-V4-Flash").symlink_to(fixture("tiny_checkpoint"))


def _convert(place: Place, fixture: Fixture) -> None:
    """A checkpoint whose rows are wide enough, also in Hugging Face's cache; an importance matrix; a native file."""
    wide = fixture("wide_checkpoint")
    place.path("DeepSeek-V4-Flash").unlink()
    place.path("DeepSeek-V4-Flash").symlink_to(wide)
    repository = place.path("home/.cache/huggingface/hub/models--ORG--NAME/refs/main").parent.parent
    (repository / "refs" / "main").write_text("5e" * 20)
    shutil.copytree(wide, repository / "snapshots" / ("5e" * 20))
    _wide_files(place, wide)
    pyflash(place, "convert", wide, "flash-native.gguf", "--profile", "native", "--mtp")
    place.path("flash.gguf").unlink()


def _quantize(place: Place, fixture: Fixture) -> None:
    _wide_files(place, fixture("wide_checkpoint"))


def _quantisers(place: Place, fixture: Fixture) -> None:
    pyflash(place, "convert", fixture("wide_checkpoint"), "slice.gguf")


def _wide_files(place: Place, checkpoint: Path) -> None:
    pyflash(place, "convert", checkpoint, "flash.gguf")
    pyflash(place, "imatrix", "flash.gguf", "--text", "calibration.txt", "--chunks", 2, "-o", "flash.imatrix.gguf")


def _eval(place: Place, fixture: Fixture) -> None:
    pyflash(place, "convert", fixture("demo_checkpoint"), "float32.gguf", "--dense", "f32", "--experts", "f32")


def _run(place: Place, fixture: Fixture) -> None:
    """A repository in a stand-in of Hugging Face's hub."""
    server = serve(hub := Hub("ORG/REPO", {"flash-Q8_0.gguf": fixture("demo_model").read_bytes()}))
    place.ending.callback(server.server_close)
    place.ending.callback(server.shutdown)
    place.environment["HF_ENDPOINT"] = hub.url


def _kernels(place: Place, _fixture: Fixture) -> None:
    for name in ("CMakeLists.txt", "cmake", "pyflash"):
        place.path(name).symlink_to(ROOT / name)


PREPARE: dict[str, Callable[[Place, Fixture], None]] = {
    "README.md": _readme, "docs/convert.md": _convert, "docs/quantize.md": _quantize, "docs/quantisers.md": _quantisers,
    "docs/eval.md": _eval, "docs/run.md": _run, "docs/kernels.md": _kernels,
}  # fmt: skip


def pyflash(place: Place, *arguments: object) -> None:
    done = subprocess.run([sys.executable, "-m", "pyflash", *map(str, arguments)], cwd=place.folder, env=place.environment,
                          capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr


# -- what came of them --


def _of_readme(place: Place) -> None:
    assert "178 tensors" in place.of("pyflash convert") and "kernels" in place.of("pyflash convert")
    assert place.path("model.gguf").is_file() and place.path("chat.session").is_file()
    assert place.names["reply"].n_generated > 0 and place.names["logits"].ndim == 1
    assert "an answer to: Why is the sky blue?\n" in place.of("ollama create")
    assert list(place.path("home/.lmstudio/models").glob("*/*/model.gguf"))


def _of_embed(place: Place) -> None:
    if not place.left_out:
        assert re.search(r"^.+: 5 layers$", place.of("build-program/program"), flags=re.MULTILINE)
        assert "embed" not in place.of("build-embed/embed").splitlines()[-1]  # the build's last line; the answer comes after


def _of_import(place: Place) -> None:
    assert place.of("export ollama flash.gguf") in [block.text for block in blocks("docs/import.md")]  # the commands to run next
    assert place.path("ollama/Modelfile").is_file()
    lines = place.path("ollama-split/Modelfile").read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith("FROM ") for line in lines) == len(list(place.folder.glob("split-*.gguf"))) > 1
    models = place.path("home/.lmstudio/models")
    model = models / "deepseek-ai" / "DeepSeek-V4-Flash" / "flash.gguf"
    assert model.is_file() and str(model.relative_to(models)) in (ROOT / "docs" / "import.md").read_text(encoding="utf-8")


def _of_convert(place: Place) -> None:
    assert place.path("flash.gguf").is_file() and place.path("small.gguf").stat().st_size < place.path("flash.gguf").stat().st_size
    assert place.path("demo.gguf").is_file()


def _of_quantize(place: Place) -> None:
    assert place.names["report"].errors["blk.0.ffn_up_exps.weight"].plain > 0
    assert place.path("flash.sensitivity.json").is_file() and place.path("fitted.gguf").is_file()


def _of_run(place: Place) -> None:
    assert "ORG/REPO" in place.of("pyflash list")


def _of_serve(place: Place) -> None:
    assert "model_provider" in place.of("--print-config codex") and "an agent: " in place.of("pyflash launch codex")
    assert "run fix the tests" in place.of("pyflash launch opencode")


def _of_performance(place: Place) -> None:
    assert place.path("speed.svg").read_text(encoding="utf-8").startswith("<svg")


CHECK: dict[str, Callable[[Place], None]] = {
    "README.md": _of_readme, "docs/embed.md": _of_embed, "docs/import.md": _of_import, "docs/convert.md": _of_convert,
    "docs/quantize.md": _of_quantize, "docs/run.md": _of_run, "docs/serve.md": _of_serve, "docs/performance.md": _of_performance,
}  # fmt: skip


@pytest.mark.parametrize("page", of_pages())
def test_page(page: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    place = make_place(tmp_path)
    _models(place, request.getfixturevalue)
    if page in PREPARE:
        PREPARE[page](place, request.getfixturevalue)
    with place.ending:
        run_page(page, place)
    if page in CHECK:
        CHECK[page](place)
    if place.left_out:
        pytest.skip("all but what needs other programs: " + ", ".join(dict.fromkeys(place.left_out)))


def compiled_only() -> list[Block]:
    return [block for page in pages() for block in blocks(page) if block.mark == "compiled"]


@pytest.mark.parametrize("block", compiled_only(), ids=lambda block: block.place)
def test_parts_of_programs_compile(block: Block, tmp_path: Path) -> None:
    """As a function's body, whose parameters the mark declares."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    head = "#include <pyflash.h>\n#include <stdbool.h>\nint64_t agreed(const float *logits, const int32_t *drafted);\n"
    part = f"void part({block.said});\nvoid part({block.said}) {{\n{block.text}}}\n"
    (tmp_path / "part.c").write_text(head + part, encoding="utf-8")
    include = Path(pyflash_package.__file__).parent / "include"
    done = subprocess.run([compiler, "-std=c11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-I{include}", tmp_path / "part.c"],
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
