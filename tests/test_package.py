"""What `pip install .` puts into an environment."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def distribution() -> importlib.metadata.Distribution:
    found = importlib.metadata.distribution("pyflash-llm")
    origin = json.loads(found.read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable"):
        pytest.skip("an editable install has no files of its own, and may be older than pyproject.toml")
    return found


def test_contents(distribution: importlib.metadata.Distribution) -> None:
    files = {path.as_posix() for path in distribution.files or ()}
    files -= {path for path in files if path.startswith("../") or "/__pycache__/" in path or ".dist-info/" in path}
    assert {path.split("/")[0] for path in files} == {"pyflash", "quantize", "gguf_export"}
    assert {"pyflash/py.typed", "pyflash/include/pyflash.h", "pyflash/include/pyflash_base.h",
            "pyflash/lib/cmake/pyflash/pyflashConfig.cmake", "pyflash/lib/pkgconfig/pyflash.pc",
            "pyflash/native/_pyflash_cffi.py", "pyflash/native/build.json", "pyflash/demo/__init__.py"} <= files  # fmt: skip
    demo = {path.removeprefix("pyflash/demo/model/") for path in files if path.startswith("pyflash/demo/model/")}
    assert demo >= {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "MODEL_CARD.md"}
    assert any(path.endswith(".safetensors") for path in demo)
    files -= {f"pyflash/demo/model/{path}" for path in demo}
    stages = {"pyflash/demo/dspark/config.json", "pyflash/demo/dspark/model.safetensors"}
    assert stages <= files
    files -= stages
    page = {path for path in files if path.startswith("pyflash/serve/page/built/")}
    assert {path.rpartition(".")[2] for path in page} == {"html", "js", "css", "txt"}
    files -= page
    rest = {path for path in files if not path.endswith((".py", ".cmake", ".pc", "/py.typed", ".h", "/build.json"))}
    assert len(rest) == 1 and "libpyflash" in rest.pop()
    assert not any("test" in path for path in files)


def test_licences_of_the_page() -> None:
    """Of every package that is built into the page: the notice, of the version that is in it."""
    text = (ROOT / "pyflash/serve/page/built/LICENSES.txt").read_text(encoding="utf-8")
    locked = json.loads((ROOT / "pyflash/serve/page/package-lock.json").read_text(encoding="utf-8"))["packages"]
    for name in locked[""]["dependencies"]:
        facts = locked[f"node_modules/{name}"]
        head, rule = f"{name} {facts['version']}, {facts['license']}", "=" * 78
        assert f"{rule}\n{head}\n{rule}\n\n" in text, f"no licence of {head}: `npm run build` in pyflash/serve/page"
    assert text.count("Permission is hereby granted, free of charge") == 5 and "Apache License" in text and "Ivan Sagalaev" in text


def test_metadata(distribution: importlib.metadata.Distribution) -> None:
    metadata = distribution.metadata
    needed = [line.split(";")[0] for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert {line.split(">")[0].strip() for line in needed} == {"numpy", "cffi", "click"}
    assert {"test", "oracle", "grammar"} <= set(metadata.get_all("Provides-Extra", []))
