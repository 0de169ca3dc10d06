"""`pyflash eval` on models and texts, against the same figures computed directly from the models' logits."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import pyflash
from gguf_export.convert import ConvertOptions, convert
from gguf_export.synthetic import make_config, write_checkpoint
from pyflash.cli.main import cli
from pyflash.eval import measure
from pyflash.eval.source import Subject, Text, text_windows

CTX = 64


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(5)
    words = ["the", "little", "river", "runs", "over", "12", "stones", "and", "a", "long", "way", "to", "sea"]
    lines = [" ".join(rng.choice(words) for _ in range(9)).capitalize() + "." for _ in range(20)]
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_bytes(("\n".join(lines) + "\n").encode())
    return path


@pytest.fixture(scope="module")
def float_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny_model's checkpoint with all weights in float32."""
    folder = tmp_path_factory.mktemp("float-model")
    checkpoint = write_checkpoint(folder / "checkpoint", make_config("tiny"), seed=4)
    return convert(checkpoint, folder / "float.gguf", ConvertOptions(dense="f32", experts="f32")).files[0]


def run(*arguments: object, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(cli, ["eval", *map(str, arguments)], input=stdin)


def lines(*arguments: object, stdin: bytes | None = None) -> list[dict[str, Any]]:
    done = run(*arguments, "--json", stdin=stdin)
    assert done.exit_code == 0, (done.output, done.exception)
    return [json.loads(line) for line in done.stdout.splitlines()]


def failure(*arguments: object) -> tuple[int, str]:
    command = [sys.executable, "-m", "pyflash", "eval", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=60)
    return done.returncode, done.stderr


def text_tokens(path: Path, text: Path) -> list[int]:
    with pyflash.Model.open(path) as model:
        return model.tokenizer.encode(text.read_text(encoding="utf-8").removesuffix("\n"))


def direct(path: Path, text: Path, precision: str, n_ctx: int = CTX, first: int | None = None, step: int | None = None
           ) -> tuple[np.ndarray, np.ndarray]:
    """(log-probabilities [scored, vocab], targets [scored]) of all windows, each in a session of its own."""
    first, step = n_ctx // 2 if first is None else first, step or n_ctx
    tokens = text_tokens(path, text)
    n_windows = len(tokens) // n_ctx if step == n_ctx else math.ceil((len(tokens) - n_ctx) / step)
    found, targets = [], []
    with pyflash.Model.open(path, precision=precision) as model:
        for begin in range(0, n_windows * step, step):
            window = tokens[begin : begin + n_ctx]
            with model.session(context=n_ctx) as session:
                logits = session.eval(window, all_logits=True).astype(np.float64)
            logits = logits[first:-1] - logits[first:-1].max(axis=1, keepdims=True)
            found.append(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
            targets += window[first + 1 :]
    return np.concatenate(found), np.array(targets)


def token_nll(log_probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return -log_probabilities[np.arange(len(targets)), targets]


# -- perplexity --


def test_ppl(tiny_model: Path, text: Path) -> None:
    for precision in ("fast", "exact"):
        *windows, end = lines("ppl", tiny_model, "--text", text, "--ctx", CTX, "--precision", precision)
        nll = token_nll(*direct(tiny_model, text, precision))
        assert end["done"] is True and end["scored"] == len(nll) == end["windows"] * 31
        assert end["tokens"] == len(text_tokens(tiny_model, text)) and end["windows_done"] == end["windows"]
        assert end["nll"] == pytest.approx(nll.mean(), rel=1e-12)
        assert end["ppl"] == pytest.approx(math.exp(nll.mean()), rel=1e-12)
        assert end["nll_error"] == pytest.approx(nll.std(ddof=1) * math.sqrt((len(nll) - 1) / len(nll)) /
                                                 math.sqrt(len(nll) - 1), rel=1e-9)
        assert [each["window"] for each in windows] == list(range(1, end["windows"] + 1))
        for each in windows:
            assert each["ppl"] == pytest.approx(math.exp(nll[: each["scored"]].mean()), rel=1e-12)


def test_ppl_with_a_stride(tiny_model: Path, text: Path) -> None:
    *_, end = lines("ppl", tiny_model, "--text", text, "--ctx", CTX, "--stride", 10, "--precision", "exact")
    nll = token_nll(*direct(tiny_model, text, "exact", first=CTX - 11, step=10))
    assert (end["step"], end["scored"]) == (10, len(nll))
    assert end["ppl"] == pytest.approx(math.exp(nll.mean()), rel=1e-12)


@pytest.mark.parametrize("chunk", [1, 7, 32, 33, 63, 64])
def test_pieces_change_nothing(tiny_model: Path, text: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    with pyflash.Model.open(tiny_model) as model:
        monkeypatch.setattr(measure, "MOST_LOGITS_BYTES", chunk * 4 * model.info.n_vocab)
        with measure.Evaluator(model, CTX) as evaluator:
            assert evaluator.chunk == chunk
    expected = token_nll(*direct(tiny_model, text, "fast"))[: 2 * 31]
    *_, end = lines("ppl", tiny_model, "--text", text, "--ctx", CTX, "--chunks", 2)
    assert end["scored"] == 62 and end["nll"] == pytest.approx(expected.mean(), rel=1e-12)


def test_text_from_stdin(tiny_model: Path, text: Path) -> None:
    *_, end = lines("ppl", tiny_model, "--text", text, "--ctx", CTX)
    *_, piped = lines("ppl", tiny_model, "--text", "-", "--ctx", CTX, stdin=text.read_bytes())
    assert piped["text"] == "-" and (piped["ppl"], piped["tokens"]) == (end["ppl"], end["tokens"])


def test_bos(tiny_model: Path, text: Path, tmp_path: Path) -> None:
    """A file that asks for BOS: before the text, and in place of each window's first token."""
    key = b"tokenizer.ggml.add_bos_token"
    data = bytearray(tiny_model.read_bytes())
    at = data.index(key) + len(key) + 4
    assert data[at] == 0  # after the type of the value, 4 bytes
    data[at] = 1
    path = tmp_path / "bos.gguf"
    path.write_bytes(data)
    *_, end = lines("ppl", path, "--text", text, "--ctx", CTX, "--chunks", 2)
    with pyflash.Model.open(path) as model:
        bos = model.info.bos_token
        tokens = [bos, *text_tokens(path, text)]
        assert Subject(model, str(path)).bos == bos
        nll = []
        for begin in (0, CTX):
            with model.session(context=CTX) as session:
                logits = session.eval([bos, *tokens[begin + 1 : begin + CTX]], all_logits=True).astype(np.float64)
            for position in range(CTX // 2, CTX - 1):
                row = logits[position]
                nll.append(np.log(np.exp(row).sum()) - row[tokens[begin + position + 1]])
    assert end["tokens"] == 2 * CTX and end["nll"] == pytest.approx(np.mean(nll), rel=1e-9)


def test_special_tokens(tiny_model: Path, tmp_path: Path) -> None:
    chat = tmp_path / "chat.txt"
    chat.write_text("<｜User｜>Hello<｜Assistant｜></think>Good day.\n" * 30, encoding="utf-8")
    found = [lines("ppl", tiny_model, "--text", chat, "--ctx", 16, *more)[-1] for more in
             ([], ["--special"])]  # fmt: skip
    assert found[0]["tokens"] > 1.5 * found[1]["tokens"]


def test_text_output(tiny_model: Path, text: Path) -> None:
    done = run("ppl", tiny_model, "--text", text, "--ctx", CTX, "--chunks", 2)
    assert done.exit_code == 0 and done.stderr == ""
    nll = token_nll(*direct(tiny_model, text, "fast"))[:62]
    assert f"\nPPL      {math.exp(nll.mean()):.4f} ± " in done.stdout
    assert "2 windows of 64; 62 tokens scored" in done.stdout and "fast, cache reference" in done.stdout


# -- divergence --


def test_kld_of_two_files(tiny_model: Path, float_model: Path, text: Path) -> None:
    """Weights rounded to Q8_0 against the same in float32."""
    *windows, end = lines("kld", tiny_model, float_model, "--text", text, "--ctx", CTX)
    base, targets = direct(float_model, text, "exact")
    model, _ = direct(tiny_model, text, "fast")
    kld = (np.exp(base) * (base - model)).sum(axis=1)
    nll, base_nll = token_nll(model, targets), token_nll(base, targets)
    assert end["scored"] == len(kld) and 0 < end["kld"] == pytest.approx(kld.mean(), rel=1e-9)
    assert end["kld_spread"]["maximum"] == pytest.approx(kld.max(), rel=1e-6)
    assert end["ppl"] == pytest.approx(math.exp(nll.mean())) and end["base_nll"] == pytest.approx(base_nll.mean())
    assert end["log_ratio"] == pytest.approx((nll - base_nll).mean(), rel=1e-9)
    assert end["same_top"] == pytest.approx((model.argmax(axis=1) == base.argmax(axis=1)).mean())
    assert len(windows) == end["windows"] and windows[-1]["kld"] == end["kld"]


def test_kld_of_a_file_with_itself(tiny_model: Path, text: Path) -> None:
    """Without a base: what computing fast changes. With exact on both sides: nothing."""
    *_, end = lines("kld", tiny_model, "--text", text, "--ctx", CTX)
    base, _ = direct(tiny_model, text, "exact")
    model, _ = direct(tiny_model, text, "fast")
    assert 0 < end["kld"] == pytest.approx((np.exp(base) * (base - model)).sum(axis=1).mean(), rel=1e-6)
    *_, same = lines("kld", tiny_model, tiny_model, "--text", text, "--ctx", CTX, "--precision", "exact")
    assert same["kld"] == same["rms_p_diff"] == 0 and same["same_top"] == same["ratio"] == 1
    *_, cache = lines("kld", tiny_model, "--text", text, "--ctx", CTX, "--base-precision", "fast", "--cache-type",
                      "f16")
    assert cache["kld"] > 0


def test_kld_from_a_file_of_log_probabilities(tiny_model: Path, float_model: Path, text: Path, tmp_path: Path) -> None:
    kept = tmp_path / "base.kld"
    done = run("ppl", float_model, "--text", text, "--ctx", CTX, "--precision", "exact", "--logits", kept)
    assert done.exit_code == 0 and done.stderr == f"wrote {kept}\n"
    *_, direct_end = lines("kld", tiny_model, float_model, "--text", text, "--ctx", CTX)
    *_, end = lines("kld", tiny_model, kept)
    assert end["text"] is None and end["scored"] == direct_end["scored"]
    for name in ("nll", "ppl", "nll_error"):
        assert end[name] == direct_end[name]
    # The file ends 16 below the likeliest token, and llama.cpp leaves out what is at -16 or less.
    base, targets = direct(float_model, text, "exact")
    coded = np.maximum(base, base.max(axis=1, keepdims=True) - 16)
    model, _ = direct(tiny_model, text, "fast")
    terms = np.where(coded > -16, np.exp(coded) * (coded - model), 0)
    assert end["base_nll"] == pytest.approx(token_nll(coded, targets).mean(), abs=1e-4)
    assert end["kld"] == pytest.approx(terms.sum(axis=1).mean(), abs=2e-5)
    assert end["same_top"] == direct_end["same_top"]
    *_, again = lines("kld", tiny_model, kept, "--text", text, "--ctx", CTX)
    assert again["kld"] == end["kld"]
    *_, fewer = lines("kld", tiny_model, kept, "--chunks", 1)
    assert (fewer["windows"], fewer["scored"]) == (1, 31)


def test_side_by_side_in_unequal_pieces(
    tiny_model: Path, float_model: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    *_, end = lines("kld", tiny_model, float_model, "--text", text, "--ctx", CTX, "--chunks", 2)
    made: list[measure.Evaluator] = []
    original: Callable[..., None] = measure.Evaluator.__init__

    def unequal(self: measure.Evaluator, *arguments: Any) -> None:
        original(self, *arguments)
        made.append(self)
        self.chunk = 20 * len(made)

    monkeypatch.setattr(measure.Evaluator, "__init__", unequal)
    *_, pieces = lines("kld", tiny_model, float_model, "--text", text, "--ctx", CTX, "--chunks", 2)
    assert [each.chunk for each in made] == [20, 40]
    assert pieces["kld"] == pytest.approx(end["kld"], rel=1e-12) and pieces["scored"] == end["scored"]


def test_kld_text_output(tiny_model: Path, text: Path) -> None:
    *_, end = lines("kld", tiny_model, "--text", text, "--ctx", CTX)
    done = run("kld", tiny_model, "--text", text, "--ctx", CTX)
    assert done.exit_code == 0
    shown = {line[:24].strip(): line[24:].split()[0] for line in done.stdout.splitlines() if "±" in line}
    assert float(shown["KL divergence"]) == pytest.approx(end["kld"], rel=0.1)
    assert float(shown["same top token"]) == pytest.approx(100 * end["same_top"], abs=0.01)
    assert float(shown["PPL(base)"]) == pytest.approx(end["base_ppl"], rel=1e-4)
    assert "median" in done.stdout and "base " in done.stdout


# -- what goes wrong --


@pytest.fixture(scope="module")
def kept_file(tiny_model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kept") / "base.kld"
    assert run("ppl", tiny_model, "--text", text, "--ctx", CTX, "--chunks", 2, "--logits", path).exit_code == 0
    return path


def test_errors_are_one_line(tiny_model: Path, text: Path, kept_file: Path, tmp_path: Path) -> None:
    short, binary, other = tmp_path / "short.txt", tmp_path / "binary.txt", tmp_path / "other.txt"
    short.write_text("Just a few words.\n")
    binary.write_bytes(b"\xff\xfe" * 100)
    other.write_text("Something else entirely, " * 200)
    cut = tmp_path / "cut.kld"
    cut.write_bytes(kept_file.read_bytes()[:-7])
    ppl, kld = ["ppl", tiny_model, "--text"], ["kld", tiny_model]
    for arguments, code, words in (
        ([*ppl, short], 1, "a longer text or a smaller context"),
        ([*ppl, binary], 1, "is not UTF-8 text"),
        ([*ppl, tmp_path / "absent.txt"], 1, "absent.txt"),
        ([*ppl, tmp_path], 1, str(tmp_path)),
        ([*ppl, text, "--ctx", 1 << 20], 1, "this model takes 1 to 65536"),
        ([*ppl, text, "--ctx", 3], 2, "--ctx"),
        ([*ppl, text, "--ctx", 64, "--stride", 64], 1, "use 1 to 63"),
        ([*ppl, text, "--ctx", 64, "--stride", 8, "--logits", tmp_path / "x"], 2, "no place"),
        ([*ppl, text, "--ctx", 64, "--logits", tmp_path / "no" / "x"], 1, "there is no folder"),
        (["ppl", tiny_model], 2, "--text"),
        (["ppl", "absent.gguf", "--text", text], 1, "absent.gguf"),
        ([*kld, "--text", short], 1, "a longer text"),
        ([*kld, kept_file, "--text", other], 1, "other tokens than"),
        ([*kld, kept_file, "--ctx", 32], 2, "was made with --ctx 64"),
        ([*kld, cut], 1, "interrupted"),
        ([*kld, text], 1, "no file of log-probabilities"),
        ([*kld, "absent.kld"], 1, "cannot read absent.kld"),
        ([*kld, "--text", text, "--precision", "exact"], 2, "with itself"),
        ([*kld, tiny_model], 2, "--text"),
    ):
        status, stderr = failure(*arguments)
        assert (status, words in stderr) == (code, True), (arguments, stderr)
        assert "Traceback" not in stderr and (code == 2 or len(stderr.splitlines()) == 1)
    assert not list(tmp_path.glob("*.part")) and not (tmp_path / "x").exists()


def test_other_vocabularies(
    tiny_model: Path, text: Path, kept_file: Path, tmp_path: Path
) -> None:
    smaller = convert(write_checkpoint(tmp_path / "smaller", make_config("tiny", vocab_size=512), seed=1),
                      tmp_path / "smaller.gguf", ConvertOptions()).files[0]
    data = tiny_model.read_bytes()
    at = data.index(b"tokenizer.ggml.add_bos_token") + len(b"tokenizer.ggml.add_bos_token") + 4
    other = tmp_path / "other.gguf"
    other.write_bytes(data[:at] + b"\x01" + data[at + 1 :])
    for arguments in ([smaller, tiny_model, "--text", text, "--ctx", CTX], [smaller, kept_file],
                      [other, tiny_model, "--text", text, "--ctx", CTX]):
        done = run("kld", *arguments)
        assert isinstance(done.exception, pyflash.ArgumentError), done.exception
        assert "vocabularies differ" in str(done.exception)


# -- Ctrl-C --


_evaluate = pyflash.Session.eval


def interrupt(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Ctrl-C comes with evaluation number `at` from now on."""
    calls = 0

    def evaluate(session: pyflash.Session, *arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise KeyboardInterrupt
        return _evaluate(session, *arguments, **options)

    monkeypatch.setattr(pyflash.Session, "eval", evaluate)


def test_interrupted_run_shows_what_there_is(
    tiny_model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "base.kld"
    interrupt(monkeypatch, 3)
    done = run("ppl", tiny_model, "--text", text, "--ctx", CTX, "--json", "--logits", kept)
    assert done.exit_code != 0 and not list(tmp_path.iterdir())
    *windows, end = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(windows) == end["windows_done"] == 2 and end["done"] is False and end["ppl"] == windows[-1]["ppl"]
    interrupt(monkeypatch, 3)  # the model's second window, as the base's is done
    done = run("kld", tiny_model, "--text", text, "--ctx", CTX)
    assert "after 1 of " in done.stdout and "KL divergence" in done.stdout
    interrupt(monkeypatch, 1)
    done = run("ppl", tiny_model, "--text", text, "--ctx", CTX, "--json")
    assert json.loads(done.stdout) == {"windows_done": 0, "done": False}


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_real_interrupt(tiny_model: Path, tmp_path: Path) -> None:
    long = tmp_path / "long.txt"
    long.write_text("The river runs over many little stones. " * 20_000)
    command = [sys.executable, "-m", "pyflash", "eval", "ppl", str(tiny_model), "--text", str(long), "--ctx", "64",
               "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())
    process.send_signal(signal.SIGINT)
    rest, stderr = process.communicate(timeout=60)
    end = json.loads(rest.splitlines()[-1])
    assert process.returncode == 130 and "Traceback" not in stderr
    assert first["window"] == 1 and end["done"] is False and 1 <= end["windows_done"] < end["windows"]


def test_a_window_at_a_time(tiny_model: Path, text: Path) -> None:
    """One session serves all windows, in any order."""
    with pyflash.Model.open(tiny_model) as model, measure.Evaluator(model, CTX) as evaluator:
        subject = Subject(model, os.fspath(tiny_model))
        windows = text_windows(subject, Text(str(text)), CTX)
        for index in (1, 0, 1):
            pieces = list(evaluator.window(windows, index, 40))
            assert [piece for piece, _ in pieces] == [(0, 8), (8, 31)]
            assert [len(rows) for _, rows in pieces] == [8, 23]
        found = measure.measure_perplexity(evaluator, windows)
        assert [next(found).count, next(found).count] == [31, 62]
