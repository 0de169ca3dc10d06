"""`pyflash pull` against a stand-in of the hub."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_stand_in import COMMIT, Hub, serve
from ran import Ran
from stores import at_home

from gguf_export.convert import ConvertOptions, convert
from pyflash import find_model

Run = Callable[..., Ran]

pytest.importorskip("huggingface_hub")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="looks at links")

# Small enough steps for a small file; what a killed run has noted lies at most a step behind.
STEPS = ("import gguf_export.pull as p, sys; p._CHUNK = 1 << 12; p._NOTE_BYTES = 1 << 14; p._REQUEST_BYTES = 1 << 19;"
         " p._PAUSE = 0.01; from pyflash.cli.main import main; main(sys.argv[1:])")
TOKEN = "a-token"


@pytest.fixture(scope="module")
def files(tiny_model: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("shards") / "Flash-UD-IQ2_XXS.gguf"
    shards = convert(tiny_checkpoint, out, ConvertOptions(shard_bytes=400_000)).files
    return {"Flash-Q8_0.gguf": tiny_model.read_bytes(), "README.md": b"hello", "mmproj-F16.gguf": b"GGUF",
            **{f"UD-IQ2_XXS/{path.name}": path.read_bytes() for path in shards}}


@pytest.fixture
def hub(files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    at_home(monkeypatch, tmp_path / "home")
    for variable in ("HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HF_HUB_DISABLE_SYMLINKS"):
        monkeypatch.delenv(variable, raising=False)
    made = Hub(files=dict(files))
    server = serve(made)
    monkeypatch.setenv("HF_ENDPOINT", made.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield made
    server.shutdown()
    server.server_close()


def cache(tmp_path: Path) -> Path:
    return tmp_path / "home" / ".cache" / "huggingface" / "hub" / "models--org--Flash-GGUF"


@pytest.fixture
def pull() -> Callable[..., Ran]:
    def call(*arguments: str) -> Ran:
        done = subprocess.run([sys.executable, "-c", STEPS, "pull", *arguments], capture_output=True, encoding="utf-8",
                              timeout=60)
        return Ran(done.returncode, done.stdout, done.stderr)

    return call


def refused(ran: Ran, *words: str) -> None:
    lines = ran.stderr.splitlines()
    assert ran.code == 1 and lines[-1].startswith("pyflash: error: "), ran
    assert all(word in lines[-1] for word in words), lines[-1]
    assert "Traceback" not in ran.stderr and not ran.stdout


def test_a_file(hub: Hub, run: Run, tmp_path: Path) -> None:
    told = run("pull", "ORG/flash-gguf:q8_0", "--dry-run", "--json").json()
    assert told["total_bytes"] == told["download_bytes"] == len(hub.files["Flash-Q8_0.gguf"])
    assert told["name"] == "org/Flash-GGUF:Q8_0" and not cache(tmp_path).exists()
    ran = run("pull", "org/Flash-GGUF:Q8_0")
    path = Path(ran.stdout.strip())
    assert ran.code == 0 and path.read_bytes() == hub.files["Flash-Q8_0.gguf"]
    assert path == find_model("org/Flash-GGUF") == find_model("org/Flash-GGUF:Q8_0")
    blobs = cache(tmp_path) / "blobs"
    assert os.listdir(blobs) == [hub.key("Flash-Q8_0.gguf")] and path.resolve().parent == blobs.resolve()
    assert (cache(tmp_path) / "refs" / "main").read_text() == COMMIT and path.parent.name == COMMIT
    assert run("info", "org/Flash-GGUF").code == 0
    # the token is for the hub alone, not for where it sends to
    assert dict(hub.authorizations) == {"127.0.0.1": f"Bearer {TOKEN}", "localhost": None}
    n = len(hub.ranges)
    again = run("pull", "org/Flash-GGUF:Q8_0")
    assert again.stdout == ran.stdout and "here already" in again.stderr and len(hub.ranges) == n
    (path.parent / path.name).unlink()
    assert run("pull", "hf:org/Flash-GGUF:Q8_0").stdout == ran.stdout and len(hub.ranges) == n


def test_what_the_library_takes_for_its_own(hub: Hub, run: Run) -> None:
    path = run("pull", "org/Flash-GGUF:Q8_0").stdout.strip()
    n = len(hub.ranges)
    code = "import huggingface_hub as h; print(h.hf_hub_download('org/Flash-GGUF', 'Flash-Q8_0.gguf', local_files_only=True))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", timeout=60)
    assert done.stdout.strip() == path and len(hub.ranges) == n, done.stderr


def test_shards(hub: Hub, run: Run) -> None:
    told = run("pull", "org/Flash-GGUF:ud-iq2_xxs", "--json").json()
    shards = [path for path in hub.files if "IQ2" in path]
    assert [Path(path).read_bytes() for path in told["files"]] == [hub.files[path] for path in shards]
    assert len(shards) > 1 and str(find_model("org/Flash-GGUF:UD-IQ2_XXS")) == told["files"][0]
    Path(told["files"][1]).resolve().unlink()
    told = run("pull", "org/Flash-GGUF:ud-iq2_xxs", "--dry-run", "--json").json()
    assert told["download_bytes"] == len(hub.files[shards[1]])
    assert run("pull", "org/Flash-GGUF:ud-iq2_xxs").code == 0 and Path(told["files"][1]).is_file()


def test_a_small_file_of_git(hub: Hub, run: Run) -> None:
    hub.in_git = frozenset(("Flash-Q8_0.gguf",))
    assert Path(run("pull", "org/Flash-GGUF:Q8_0").stdout.strip()).read_bytes() == hub.files["Flash-Q8_0.gguf"]


def test_broken_connections(hub: Hub, pull: Callable[..., Ran]) -> None:
    hub.cut = [50_000, 0, 0, 70_000, 1, 0, 0, 0]
    ran = pull("org/Flash-GGUF:Q8_0")
    assert ran.code == 0 and ran.stderr.count("trying again") == 8, ran
    assert Path(ran.stdout.strip()).read_bytes() == hub.files["Flash-Q8_0.gguf"]
    assert hub.ranges[1][1] > 40_000


def test_it_gives_up_and_goes_on_later(hub: Hub, pull: Callable[..., Ran], tmp_path: Path) -> None:
    hub.cut = [100_000, 0, 0, 0, 0]
    refused(pull("org/Flash-GGUF:Q8_0"), "cannot download from", "what is there is kept")
    hub.ranges.clear()
    told = Ran(*(lambda ran: (ran.code, ran.stdout, ran.stderr))(pull("org/Flash-GGUF:Q8_0", "--dry-run", "--json"))).json()
    assert told["download_bytes"] < told["total_bytes"] - 90_000
    ran = pull("org/Flash-GGUF:Q8_0")
    assert Path(ran.stdout.strip()).read_bytes() == hub.files["Flash-Q8_0.gguf"] and hub.ranges[0][1] > 90_000
    assert os.listdir(cache(tmp_path) / "blobs") == [hub.key("Flash-Q8_0.gguf")]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_resume_after_a_signal(hub: Hub, pull: Callable[..., Ran], number: signal.Signals) -> None:
    hub.stall_at = 300_000
    process = subprocess.Popen([sys.executable, "-c", STEPS, "pull", "org/Flash-GGUF:Q8_0"], stderr=subprocess.PIPE)
    assert hub.stalled.wait(30)
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=1)
    process.send_signal(number)
    process.communicate(timeout=30)
    hub.stall_at = None
    hub.ranges.clear()
    ran = pull("org/Flash-GGUF:Q8_0")
    assert Path(ran.stdout.strip()).read_bytes() == hub.files["Flash-Q8_0.gguf"]
    assert 300_000 - (1 << 15) < hub.ranges[0][1] <= 300_000


def test_two_at_once(hub: Hub, pull: Callable[..., Ran]) -> None:
    hub.stall_at = 300_000
    process = subprocess.Popen([sys.executable, "-c", STEPS, "pull", "org/Flash-GGUF:Q8_0"], stderr=subprocess.PIPE)
    assert hub.stalled.wait(30)
    refused(pull("org/Flash-GGUF:Q8_0"), "another process")
    process.kill()
    process.communicate(timeout=30)


def test_damage_is_noticed(hub: Hub, pull: Callable[..., Ran], tmp_path: Path) -> None:
    hub.damage = True
    refused(pull("org/Flash-GGUF:Q8_0"), "arrived damaged")
    assert not list((cache(tmp_path) / "blobs").glob("[0-9a-f]*")) and not (cache(tmp_path) / "snapshots").exists()
    hub.damage = False
    assert pull("org/Flash-GGUF:Q8_0").code == 0
    # what an earlier run left is part of what is compared
    shutil.rmtree(cache(tmp_path))
    hub.cut = [100_000, 0, 0, 0, 0]
    assert pull("org/Flash-GGUF:Q8_0").code == 1
    (partial,) = (cache(tmp_path) / "blobs").glob(".*.partial/0")
    with open(partial, "r+b") as file:
        file.write(b"X")
    refused(pull("org/Flash-GGUF:Q8_0"), "arrived damaged")
    assert pull("org/Flash-GGUF:Q8_0").code == 0


def test_a_server_without_ranges(hub: Hub, pull: Callable[..., Ran]) -> None:
    hub.ignore_ranges = True
    assert pull("org/Flash-GGUF:Q8_0").code == 0
    hub.cut = [50_000]
    refused(pull("org/Flash-GGUF:UD-IQ2_XXS"), "cannot go on")


def test_refusals(hub: Hub, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    refused(run("pull", "org/Flash-GGUF"), "holds 2 models", ":Q8_0 (", ":UD-IQ2_XXS (")
    refused(run("pull", "org/Flash-GGUF:Q2_K"), "has no Q2_K", ":Q8_0 (")
    refused(run("pull", "org/Other-GGUF:Q2_K"), "the hub has no org/Other-GGUF")
    for name in ("flash", "ollama:flash", "a/b/c", "org/x y", "", "../x"):
        refused(run("pull", name), "ORG/REPO:QUANT")
    for status, code, word in ((401, "GatedRepo", "terms"), (403, "GatedRepo", "terms"), (401, "RepoNotFound", "no org/"),
                               (500, "", "cannot download from"), (400, "", "cannot download from")):
        hub.status, hub.error_code = status, code
        refused(run("pull", "org/Flash-GGUF:Q8_0"), word)
    hub.status = 200
    hub.architecture = "llama"
    refused(run("pull", "org/Flash-GGUF:Q8_0"), "'llama'", "deepseek4")
    hub.architecture = None
    hub.files = {"README.md": b""}
    refused(run("pull", "org/Flash-GGUF"), "no GGUF model")
    hub.files = {"../../x-Q8_0.gguf": b"GGUF"}
    refused(run("pull", "org/Flash-GGUF"), "not downloaded")
    hub.files = {"x-Q8_0-00002-of-00002.gguf": b"GGUF"}
    refused(run("pull", "org/Flash-GGUF"), "lacks shards")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    n = hub.n_requests
    refused(run("pull", "org/Flash-GGUF:Q8_0"), "HF_HUB_OFFLINE")
    assert hub.n_requests == n and not cache(tmp_path).exists()
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    refused(run("pull", "org/Flash-GGUF:Q8_0"), "cannot download from http://127.0.0.1:1")


def test_space_is_checked_first(hub: Hub, tmp_path: Path) -> None:
    code = ("import shutil, sys; shutil.disk_usage = lambda path: type('U', (), {'free': 1000})();"
            "from pyflash.cli.main import main; main(sys.argv[1:])")
    done = subprocess.run([sys.executable, "-c", code, "pull", "org/Flash-GGUF:Q8_0"], capture_output=True, text=True)
    refused(Ran(done.returncode, done.stdout, done.stderr), "free some space")
    assert not hub.ranges


def test_without_the_library(hub: Hub) -> None:
    code = "import sys; sys.modules['huggingface_hub'] = None; from pyflash.cli.main import main; main(sys.argv[1:])"
    done = subprocess.run([sys.executable, "-c", code, "pull", "org/Flash-GGUF:Q8_0"], capture_output=True, text=True)
    refused(Ran(done.returncode, done.stdout, done.stderr), "pip install huggingface_hub")


def test_no_other_command_asks(hub: Hub, run: Run, tmp_path: Path, tiny_model: Path) -> None:
    for command in (("list",), ("info", "org/Flash-GGUF:Q8_0"), ("run", "org/Flash-GGUF"), ("info", tiny_model)):
        run(*command)
    assert hub.n_requests == 0
    assert hashlib.sha256(tiny_model.read_bytes()).hexdigest() == hub.key("Flash-Q8_0.gguf")
