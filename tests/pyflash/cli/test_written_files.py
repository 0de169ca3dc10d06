"""What bench, eval, the history and the demo model write, where something else stands at its name."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

import pyflash
from pyflash import demo
from pyflash.bench import measure
from pyflash.cli.chat.lines import History
from pyflash.cli.main import cli
from pyflash.eval.logits_file import LogitsFile
from pyflash.machine import hardware

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes, links and permissions are POSIX's")


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_LEAST_BANDWIDTH_BYTES", 1 << 22)
    monkeypatch.setattr(hardware, "outer_cache_bytes", lambda root=Path("/"): 0)


@pytest.fixture
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("A river runs over stones to the sea. " * 30)
    return path


@pytest.fixture
def read_pipe() -> Iterator[Callable[[Path], Callable[[], bytes]]]:
    def start(path: Path) -> Callable[[], bytes]:
        os.mkfifo(path)
        found: list[bytes] = []
        thread = threading.Thread(target=lambda: found.append(path.read_bytes()), daemon=True)
        thread.start()

        def result() -> bytes:
            thread.join(30)
            assert stat.S_ISFIFO(os.lstat(path).st_mode)
            return found[0]

        return result

    yield start


def run(*arguments: object) -> str:
    done = CliRunner().invoke(cli, list(map(str, arguments)))
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def refusal(*arguments: object) -> str:
    done = CliRunner().invoke(cli, list(map(str, arguments)))
    assert isinstance(done.exception, pyflash.Error), (done.output, done.exception)
    return str(done.exception)


BENCH = ["--prompt", 4, "--gen", 1, "--repeat", 1, "--plot"]


def test_plot(
    tiny_model: Path, tmp_path: Path, little_memory: None, read_pipe: Callable[[Path], Callable[[], bytes]]
) -> None:
    svg = read_pipe(tmp_path / "pipe")
    run("bench", tiny_model, *BENCH, tmp_path / "pipe")
    assert svg().endswith(b"</svg>\n")
    (tmp_path / "link").symlink_to("there")
    run("bench", tiny_model, *BENCH, tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there").read_text().endswith("</svg>\n")
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe", "there"]


def test_plots_that_cannot_be(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before the model is opened: the run may take hours."""
    monkeypatch.setattr("pyflash.cli.commands.bench.open_model", lambda *_: pytest.fail("opened"))
    (tmp_path / "locked").touch(0o444)
    (tmp_path / "circle").symlink_to("circle")
    model = tmp_path / "model"
    model.symlink_to(tiny_model)
    size = tiny_model.stat().st_size
    for name, words in (("locked", "read-only"), ("circle", "circle"), ("x" * 256, "too long"), ("model", "made from")):
        assert words in refusal("bench", tiny_model, *BENCH, tmp_path / name)
    assert "made from" in refusal("bench", tiny_model, *BENCH, tiny_model) and tiny_model.stat().st_size == size
    assert sorted(os.listdir(tmp_path)) == ["circle", "locked", "model"]


def test_log_probabilities(
    tiny_model: Path, text: Path, tmp_path: Path, read_pipe: Callable[[Path], Callable[[], bytes]]
) -> None:
    ppl = ["eval", "ppl", tiny_model, "--text", text, "--ctx", 16, "--chunks", 2, "--logits"]
    read = read_pipe(tmp_path / "pipe")
    run(*ppl, tmp_path / "pipe")
    (tmp_path / "link").symlink_to("kept")
    run(*ppl, tmp_path / "link")
    assert read() == (tmp_path / "kept").read_bytes() and (tmp_path / "link").is_symlink()
    LogitsFile(tmp_path / "kept").close()
    for own in (tiny_model, text):
        before = own.stat().st_size
        assert "made from" in refusal(*ppl, own) and own.stat().st_size == before
    assert sorted(os.listdir(tmp_path)) == ["kept", "link", "pipe"]


# -- the history --


def test_history_follows_a_link(tmp_path: Path) -> None:
    real = tmp_path / "dotfiles" / "history"
    real.parent.mkdir()
    real.write_text("".join(f"{n}\n" for n in range(2500)))
    real.chmod(0o640)
    (tmp_path / "history").symlink_to(real)
    assert len(History(tmp_path / "history").entries) == 1000
    assert (tmp_path / "history").is_symlink() and len(real.read_text().splitlines()) == 1000
    assert stat.S_IMODE(real.stat().st_mode) == 0o640 and os.listdir(real.parent) == ["history"]
    real.unlink()  # and then it dangles
    assert History(tmp_path / "history").add("hello") and real.read_text() == "hello\n"
    assert stat.S_IMODE(real.stat().st_mode) == 0o600


@pytest.mark.parametrize("what", ["pipe", "device", "folder", "circle"])
def test_history_that_is_no_file(tmp_path: Path, what: str) -> None:
    """It is not waited for, and not replaced."""
    path = tmp_path / "history"
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    else:
        path.symlink_to(os.devnull if what == "device" else path.name)
    before = os.lstat(path)
    history = History(path)
    assert history.add("hello") and history.entries == ["hello"] and History(path).entries == []
    assert os.lstat(path)[:6] == before[:6] and os.listdir(tmp_path) == ["history"]


# -- the demo model --


@pytest.fixture
def source(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYFLASH_DEMO", str(tiny_checkpoint))
    monkeypatch.setenv("PYFLASH_CACHE", str(tmp_path / "cache"))
    return tiny_checkpoint


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)


def zero(path: Path) -> None:
    size = path.stat().st_size
    path.write_bytes(b"")
    os.truncate(path, size)


@pytest.mark.parametrize("damage", [truncate, flip, zero, Path.unlink])
def test_a_damaged_demo_is_made_again(source: Path, damage: Callable[[Path], None]) -> None:
    good = demo.path().read_bytes()
    lines: list[str] = []
    assert demo.path(say=lines.append).read_bytes() == good and lines == []
    damage(demo.file())
    assert demo.path(say=lines.append).read_bytes() == good
    assert ("damaged in the cache" in lines[0]) == (damage is not Path.unlink) and len(lines) == 3
    lines.clear()
    for text in ("nonsense", ""):
        demo.file().with_suffix(".sum").write_text(text)
        assert demo.path(say=lines.append).read_bytes() == good and lines
    demo.file().with_suffix(".sum").unlink()  # killed just before it was written
    lines.clear()
    assert demo.path(say=lines.append).read_bytes() == good and "damaged" not in lines[0]
    draft = demo.draft_path()
    assert draft is not None
    assert sorted(demo.file().parent.iterdir()) == [demo.file(), demo.file().with_suffix(".sum"), draft]
    good = draft.read_bytes()
    damage(draft)
    assert demo.draft_path() == draft and draft.read_bytes() == good


def test_a_damaged_demo_on_the_command_line(source: Path) -> None:
    command = [sys.executable, "-m", "pyflash", "run", "Hello", "-n", "2", "--temp", "0", "--json"]
    first = subprocess.run(command, capture_output=True, text=True, timeout=120)
    zero(demo.file())
    again = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert first.returncode == again.returncode == 0
    assert again.stdout.splitlines()[0] == first.stdout.splitlines()[0]
    assert again.stderr.count("damaged in the cache") == 1


def test_the_cache_is_a_link(source: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").symlink_to("elsewhere/cache")
    assert demo.path().is_file() and (tmp_path / "cache").is_symlink() and (tmp_path / "elsewhere" / "cache").is_dir()
