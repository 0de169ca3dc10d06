"""What is checked before stages compute; and the command line. Without Ray where that is not needed."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyflash
import pytest
from pyflash.cluster.identity import FileDirectory, FileIdentity
from pyflash.cluster.layout import another_node, lay_out
from pyflash.cluster.messages import StageFacts
from pyflash.cluster.pipeline import check_alike, common_kernels
from pyflash.native.library import lib

pytestmark = pytest.mark.cluster


def facts(**changes: Any) -> StageFacts:
    usual: Any = {"info": None, "version": pyflash.__version__, "arithmetic": lib.PF_ARITHMETIC_VERSION, "kernels": ["avx2"],
                  "file": FileIdentity("a", "b"), "node": "n", "host": "beta", "process": 1}
    return StageFacts(**{**usual, **changes})


def test_what_differs_between_machines_is_refused() -> None:
    file = FileIdentity("a", "b")
    check_alike(facts(), file, True)
    check_alike(facts(file=FileIdentity("a", "other")), file, False)  # this machine has holes there
    for changes, message in (({"version": "9.9"}, "beta has another version of pyflash, 9.9"),
                             ({"arithmetic": 77}, "version of the arithmetic, 77"),
                             ({"file": FileIdentity("x", "b")}, "beta has another file"),
                             ({"file": FileIdentity("a", "x")}, "beta has another file")):  # fmt: skip
        with pytest.raises(pyflash.UnsupportedError, match=message) as error:
            check_alike(facts(**changes), file, True)
        assert "\n" not in str(error.value)


def test_a_changed_weight_is_noticed_in_its_layer(demo_model: Path, tmp_path: Path) -> None:
    directory = FileDirectory(demo_model)
    assert directory.is_whole
    assert directory.identity((0, 2)) == directory.identity((0, 2)) != directory.identity((2, 5))
    tensor = next(each for tensors in directory._tensors.values() for each in tensors if each.name == "blk.3.attn_norm.weight")
    copy = tmp_path / "copy.gguf"
    data = bytearray(demo_model.read_bytes())
    data[tensor.offset + tensor.nbytes // 2] ^= 1
    copy.write_bytes(data)
    assert FileDirectory(copy).identity((0, 3)) == directory.identity((0, 3))
    changed = FileDirectory(copy).identity((3, 4))
    assert changed.directory == directory.identity((3, 4)).directory and changed != directory.identity((3, 4))
    with open(tmp_path / "holes.gguf", "wb") as file:
        file.write(data[: 1 << 20])
        file.truncate(len(data))
    assert not FileDirectory(tmp_path / "holes.gguf").is_whole


def test_the_common_kernel_set() -> None:
    assert common_kernels([["avx512", "avx2", "scalar"], ["avxvnni", "avx2", "scalar"]]) == "avx2"
    with pytest.raises(pyflash.UnsupportedError, match="no kernel set in common"):
        common_kernels([["avx2"], ["neon"]])


def test_layers_over_machines() -> None:
    nodes = [{"NodeID": name} for name in "abc"]
    assert [(place.layers, place.node) for place in lay_out(6, "auto", nodes)] == [((0, 2), "a"), ((2, 4), "b"), ((4, 6), "c")]
    assert [place.node for place in lay_out(6, 5, nodes)] == ["a", "a", "b", "b", "c"]
    assert [place.node for place in lay_out(6, 2, nodes)] == ["a", "b"]
    assert len(lay_out(2, "auto", nodes)) == 2
    assert another_node("b", nodes, ["a"]) == "b"
    assert another_node("x", nodes, ["a", "b", "a"]) == "c"
    with pytest.raises(pyflash.DeviceError, match="no machine left"):
        another_node("x", [], [])


def test_sets_of_kernels_are_brought_together(ray_here: Any, demo_model: Path) -> None:
    """A stage that chose another set is opened again with the one that all have."""
    from pyflash.cluster import pipeline

    with pyflash.cluster.Model.open(demo_model, 2, threads=1, isa="scalar") as model:
        assert model.info.cpu_isa == "scalar"
    real, asked = pipeline.Pipeline._open_all, []

    def mixed(self: Any, actors: Any, places: Any, options: dict[str, Any]) -> Any:
        asked.append(options.get("isa"))
        found = real(self, actors, places, options)
        if options.get("isa") is None:
            found[0] = dataclasses.replace(found[0], info=dataclasses.replace(found[0].info, cpu_isa="other"),
                                           kernels=["other", "scalar"])  # fmt: skip
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.Pipeline, "_open_all", mixed)
        with pyflash.cluster.Model.open(demo_model, 2, threads=1) as model:
            assert model.info.cpu_isa == "scalar"
    assert asked == [None, "scalar"]


# -- the command line --


def pyflash_command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "pyflash", *arguments], env={**os.environ, **environment}, timeout=300,
                          capture_output=True, text=True, stdin=subprocess.DEVNULL)  # fmt: skip


def address_of(ray: Any) -> str:
    return str(ray.get_runtime_context().gcs_address)


def test_run_over_stages(ray_here: Any, demo_model: Path, tmp_path: Path) -> None:
    arguments = ("run", str(demo_model), "Hello", "--temp", "0", "-n", "12", "--json")
    alone = pyflash_command(*arguments)
    chat = tmp_path / "chat"
    done = pyflash_command(*arguments, "--stages", "2", "--ray", address_of(ray_here), "--session", str(chat))
    assert (done.returncode, done.stderr) == (0, "")
    pieces = [[json.loads(line).get("text") for line in each.stdout.splitlines()] for each in (alone, done)]
    assert pieces[0] == pieces[1] and len(pieces[0]) > 3
    assert chat.is_file() and (tmp_path / "chat.layers-2-5").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--ray", "127.0.0.1:1"), 2, "--ray belongs to --stages"),
        (("--stages", "2", "--ray", "127.0.0.1:1"), 1, "no Ray cluster answers at 127.0.0.1:1"),
        (("--stages", "none"), 2, "neither"),
        (("--stages", "2", "--device", "cuda"), 1, "cuda"),
    ],
)
def test_what_the_command_line_refuses(demo_model: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    done = pyflash_command("run", str(demo_model), "Hello", *arguments)
    assert done.returncode == code and message in done.stderr and done.stdout == ""
    assert code == 2 or done.stderr.count("\n") == 1


def test_a_missing_ray_is_told(demo_model: Path, tmp_path: Path) -> None:
    (tmp_path / "ray.py").write_text("raise ImportError('none')\n")
    done = pyflash_command("run", str(demo_model), "Hello", "--stages", "2", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "pip install 'pyflash-llm[cluster]'" in done.stderr


def test_other_systems_are_told(monkeypatch: pytest.MonkeyPatch, demo_model: Path) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(pyflash.UnsupportedError, match="need Linux"):
        pyflash.cluster.Model.open(demo_model, 2)


def test_a_token_in_the_home_folder(tmp_path: Path) -> None:
    """Ray reads whether to ask for one when it is imported; the processes that it starts read it then. So whichever is imported
    first."""
    pytest.importorskip("ray")
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("0" * 64, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {"HOME": str(tmp_path)}
    running = []
    for first in ("import ray", "import pyflash.cluster"):
        program = f"""
{first}
from pyflash.cluster.ray_runtime import Connection
connection = Connection(None)
print(len(connection.nodes()))
connection.close()
"""
        running.append(subprocess.Popen([sys.executable, "-c", program], env=environment, text=True, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE))  # fmt: skip
    for process in running:
        out, err = process.communicate(timeout=200)
        assert process.returncode == 0 and out.splitlines()[-1] == "1", err
