"""`pyflash pull` against a stand-in of the hub."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_stand_in import COMMIT, Hub, serve
from ran import Ran
from stores import at_home

from gguf_export import pull as downloads
from gguf_export.convert import ConvertOptions, convert
from gguf_export.errors import ConvertError
from gguf_export.pull import PullPlan
from pyflash import find_model

Run = Callable[..., Ran]

pytest.importorskip("huggingface_hub")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="looks at links")

# Small enough steps for a small file; what a killed run has noted lies at most a step behind.
STEPS = {"_NOTE_BYTES": 1 << 14, "_REQUEST_BYTES": 1 << 19, "_PAUSE": 0.01}
PULL = ("import gguf_export.pull as p, sys; p._NOTE_BYTES = 1 << 14; from pyflash.cli.main import main;"
        " main(['pull', *sys.argv[1:]])")
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
def ask(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], PullPlan]:
    """plan_pull() in this process, whose library has been told the hub and the cache."""
    from huggingface_hub import constants

    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + template)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache(tmp_path).parent))
    for name, value in STEPS.items():
        monkeypatch.setattr(downloads, name, value)
    return downloads.plan_pull


@pytest.fixture
def pull(ask: Callable[[str], PullPlan]) -> Callable[..., bytes]:
    """Downloads, and returns the bytes of the file."""
    return lambda name="org/Flash-GGUF:Q8_0", **rest: downloads.pull(ask(name), **rest).read_bytes()


def start_pull() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", PULL, "org/Flash-GGUF:Q8_0"], stderr=subprocess.PIPE)


def refused(ran: Ran, *words: str) -> None:
    lines = ran.stderr.splitlines()
    assert ran.code == 1 and lines[-1].startswith("pyflash: error: "), ran
    assert all(word in lines[-1] for word in words), lines[-1]
    assert "Traceback" not in ran.stderr and not ran.stdout


def test_a_file(hub: Hub, run: Run, pull: Callable[..., bytes], tmp_path: Path) -> None:
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
    path.unlink()
    assert pull("hf:org/Flash-GGUF:Q8_0") == path.read_bytes() and len(hub.ranges) == n


def test_what_the_library_takes_for_its_own(hub: Hub, run: Run) -> None:
    path = run("pull", "org/Flash-GGUF:Q8_0").stdout.strip()
    n = len(hub.ranges)
    code = ("import huggingface_hub as hub;"
            "print(hub.hf_hub_download('org/Flash-GGUF', 'Flash-Q8_0.gguf', local_files_only=True))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", timeout=60)
    assert done.stdout.strip() == path and len(hub.ranges) == n, done.stderr


def test_shards(hub: Hub, ask: Callable[..., PullPlan]) -> None:
    name = "org/Flash-GGUF:ud-iq2_xxs"
    first = downloads.pull(ask(name))
    shards = [path for path in hub.files if "IQ2" in path]
    assert sorted(path.name for path in first.parent.iterdir()) == [path.partition("/")[2] for path in shards]
    assert all((first.parent / Path(path).name).read_bytes() == hub.files[path] for path in shards)
    assert len(shards) > 1 and find_model(name) == first
    (first.parent / Path(shards[1]).name).resolve().unlink()
    plan = ask(name)
    assert plan.left_bytes == len(hub.files[shards[1]])
    downloads.pull(plan)
    assert ask(name).left_bytes == 0 and find_model(name) == first


def test_a_small_file_of_git(hub: Hub, pull: Callable[..., bytes]) -> None:
    hub.in_git = frozenset(("Flash-Q8_0.gguf",))
    assert pull() == hub.files["Flash-Q8_0.gguf"]


def test_progress(hub: Hub, pull: Callable[..., bytes]) -> None:
    seen: list[tuple[int, int]] = []
    pull("org/Flash-GGUF:UD-IQ2_XXS", progress=lambda done, total: seen.append((done, total)))
    n_bytes = sum(len(data) for path, data in hub.files.items() if "IQ2" in path)
    assert seen == sorted(seen) and seen[-1] == (n_bytes, n_bytes) and len(seen) > 10


def test_broken_connections(hub: Hub, pull: Callable[..., bytes]) -> None:
    hub.cut = [50_000, 0, 0, 70_000, 1, 0, 0, 0]
    lines: list[str] = []
    assert pull(say=lines.append) == hub.files["Flash-Q8_0.gguf"]
    assert len(lines) == 8 and all("trying again" in line for line in lines) and hub.ranges[1][1] == 50_000


def test_it_gives_up_and_goes_on_later(hub: Hub, ask: Callable[..., PullPlan], pull: Callable[..., bytes], tmp_path: Path
                                       ) -> None:
    hub.cut = [100_000, 0, 0, 0, 0]
    with pytest.raises(ConvertError, match="cannot download from.*what is there is kept"):
        pull()
    plan = ask("org/Flash-GGUF:Q8_0")
    assert plan.left_bytes == plan.n_bytes - 100_000
    hub.ranges.clear()
    assert pull() == hub.files["Flash-Q8_0.gguf"] and hub.ranges[0][1] == 100_000
    assert os.listdir(cache(tmp_path) / "blobs") == [hub.key("Flash-Q8_0.gguf")]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_resume_after_a_signal(hub: Hub, pull: Callable[..., bytes], number: signal.Signals) -> None:
    hub.stall_at = 300_000
    process = start_pull()
    assert hub.stalled.wait(30)
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=0.5)
    process.send_signal(number)
    process.communicate(timeout=30)
    hub.stall_at = None
    hub.ranges.clear()
    assert pull() == hub.files["Flash-Q8_0.gguf"]
    assert 300_000 - (1 << 17) < hub.ranges[0][1] <= 300_000


def test_two_at_once(hub: Hub, pull: Callable[..., bytes]) -> None:
    hub.stall_at = 300_000
    process = start_pull()
    assert hub.stalled.wait(30)
    with pytest.raises(ConvertError, match="another process"):
        pull()
    process.kill()
    process.communicate(timeout=30)


def test_damage_is_noticed(hub: Hub, pull: Callable[..., bytes], tmp_path: Path) -> None:
    hub.damage = True
    with pytest.raises(ConvertError, match="arrived damaged"):
        pull()
    assert not list((cache(tmp_path) / "blobs").glob("[0-9a-f]*")) and not (cache(tmp_path) / "snapshots").exists()
    hub.damage = False
    hub.cut = [100_000, 0, 0, 0, 0]
    with pytest.raises(ConvertError, match="cannot download"):
        pull()
    (partial,) = (cache(tmp_path) / "blobs").glob(".*.partial/0")
    with open(partial, "r+b") as file:  # what an earlier run left is part of what is compared
        file.write(b"X")
    with pytest.raises(ConvertError, match="arrived damaged"):
        pull()
    assert pull() == hub.files["Flash-Q8_0.gguf"]


def test_a_server_without_ranges(hub: Hub, pull: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    hub.ignore_ranges = True
    assert pull() == hub.files["Flash-Q8_0.gguf"]
    hub.cut = [50_000]
    with pytest.raises(ConvertError, match="cannot go on"):
        pull("org/Flash-GGUF:UD-IQ2_XXS")


def test_refusals(hub: Hub, ask: Callable[..., PullPlan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    def refuse(name: str, *words: str) -> None:
        with pytest.raises(ConvertError) as told:
            ask(name)
        assert all(word in str(told.value) for word in words), told.value

    refuse("org/Flash-GGUF", "holds 2 models", ":Q8_0 (", ":UD-IQ2_XXS (")
    refuse("org/Flash-GGUF:Q2_K", "has no Q2_K", ":Q8_0 (")
    refuse("org/Flash-GGUF:Flash", "Flash means 2 models of org/", ":Q8_0 (")
    refuse("org/Other-GGUF:Q2_K", "the hub has no org/Other-GGUF")
    refuse("org/a--b:Q2_K", "org/a--b is no name on the hub")
    for name in ("flash", "ollama:flash", "a/b/c", "org/x y", "", "../x"):
        refuse(name, "ORG/REPO:QUANT")
    for status, code, word in ((401, "GatedRepo", "terms"), (403, "GatedRepo", "terms"), (401, "RepoNotFound", "no org/"),
                               (500, "", "cannot download from"), (400, "", "cannot download from")):
        hub.status, hub.error_code = status, code
        refuse("org/Flash-GGUF:Q8_0", word)
    hub.status = 200
    hub.architecture = "llama"
    refuse("org/Flash-GGUF:Q8_0", "'llama'", "deepseek4")
    hub.architecture = None
    for path, word in (("README.md", "no GGUF model"), ("../../x-Q8_0.gguf", "not downloaded"),
                       ("x-Q8_0-00002-of-00002.gguf", "lacks shards")):
        hub.files = {path: b"GGUF"}
        refuse("org/Flash-GGUF", word)
    n = hub.n_requests
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refuse("org/Flash-GGUF:Q8_0", "HF_HUB_OFFLINE")
    assert hub.n_requests == n and not cache(tmp_path).exists()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    refuse("org/Flash-GGUF:Q8_0", "cannot download from http://127.0.0.1:1")


def test_a_file_that_cannot_be_had(hub: Hub, ask: Callable[..., PullPlan]) -> None:
    plan = ask("org/Flash-GGUF:Q8_0")
    hub.status, hub.error_code = 403, "GatedRepo"  # which the hub tells when a file is wanted
    with pytest.raises(ConvertError, match="terms"):
        downloads.pull(plan)
    hub.status, hub.n_requests = 200, 1
    del hub.files["Flash-Q8_0.gguf"]
    with pytest.raises(ConvertError, match="cannot download"):
        downloads.pull(plan)
    assert hub.n_requests == 2  # asking again gets the same answer


def test_space_is_checked_first(hub: Hub, pull: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=1000))
    with pytest.raises(ConvertError, match="free some space"):
        pull()
    assert not hub.ranges


def test_without_the_library(hub: Hub) -> None:
    code = f"import sys; sys.modules['huggingface_hub'] = None; {PULL}"
    done = subprocess.run([sys.executable, "-c", code, "org/Flash-GGUF:Q8_0"], capture_output=True, text=True)
    refused(Ran(done.returncode, done.stdout, done.stderr), "pip install huggingface_hub")


def test_no_other_command_asks(hub: Hub, run: Run, tiny_model: Path) -> None:
    for command in (("list",), ("run", "org/Flash-GGUF"), ("info", tiny_model)):
        run(*command)
    assert hub.n_requests == 0
