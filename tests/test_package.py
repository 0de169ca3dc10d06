"""What `pip install .` puts into an environment."""

from __future__ import annotations

import importlib.metadata
import json

import pytest

pytestmark = pytest.mark.quick


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
    assert {path.rpartition(".")[2] for path in page} == {"html", "js", "css"}
    files -= page
    rest = {path for path in files if not path.endswith((".py", ".cmake", ".pc", "/py.typed", ".h", "/build.json"))}
    assert len(rest) == 1 and "libpyflash" in rest.pop()
    assert not any("test" in path for path in files)


def test_metadata(distribution: importlib.metadata.Distribution) -> None:
    metadata = distribution.metadata
    needed = [line.split(";")[0] for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert {line.split(">")[0].strip() for line in needed} == {"numpy", "cffi", "click"}
    assert {"test", "oracle", "grammar"} <= set(metadata.get_all("Provides-Extra", []))
