"""examples/notebook: its cells run in order and print what the file shows; Jupyter itself is the reader's."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "notebook" / "logits.ipynb"

pytestmark = pytest.mark.page


def without_numbers(text: str) -> list[str]:
    """Its words: the numbers may differ in their last digits from one kernel set to another."""
    return re.sub(r"-?\d+\.\d+", "#", text).split()


def test_the_cells(demo_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib", reason="pip install matplotlib")
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    pictures: list[bytes] = []

    def show() -> None:
        picture = io.BytesIO()
        plt.gcf().savefig(picture, format="png")
        pictures.append(picture.getvalue())
        plt.close()

    monkeypatch.setattr(plt, "show", show)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "notebook"}
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile("".join(cell["source"]), str(NOTEBOOK), "exec"), names)
        shown = "".join(line for output in cell["outputs"] if output["output_type"] == "stream" for line in output["text"])
        assert without_numbers(printed.getvalue()) == without_numbers(shown)
    assert len(pictures) == 1 and len(set(pictures[0])) > 200


def test_the_file() -> None:
    """Small, run from top to bottom without an error, with its plot, and nothing of the machine that ran it."""
    assert NOTEBOOK.stat().st_size < 100_000
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not any(output["output_type"] == "error" for output in outputs)
    pictures = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 1 and base64.b64decode("".join(pictures[0])).startswith(b"\x89PNG")
    assert "/home/" not in NOTEBOOK.read_text(encoding="utf-8") and "/root/" not in NOTEBOOK.read_text(encoding="utf-8")
