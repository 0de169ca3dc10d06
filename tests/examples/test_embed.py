"""examples/embed: built by CMake against the installed package, and run on a tiny model."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import pyflash
from pyflash.native.library import ffi, lib

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a compiler on the path")

ROOT = Path(__file__).resolve().parents[2]
EMBED = ROOT / "examples" / "embed"
SEARCH_PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # this environment's tools first
LONG = "a b c"  # the random model's greedy answer takes a second or two


def build(source: Path, folder: Path) -> Path:
    """The folder of the built programs; warnings are errors."""
    cmake, ninja = (shutil.which(name, path=SEARCH_PATH) for name in ("cmake", "ninja"))
    if cmake is None or ninja is None:
        pytest.skip("no cmake or no ninja")
    asked = [sys.executable, "-m", "pyflash", "--cmake-dir"]  # in another folder than the source tree, which -m prefers
    package = subprocess.run(asked, capture_output=True, text=True, check=True, cwd=folder).stdout.strip()
    flags = "-Wall -Wextra -Wshadow -Wconversion -Werror"  # of both languages
    configure = [cmake, "-S", str(source), "-B", str(folder / "build"), f"-Dpyflash_DIR={package}", "-GNinja",
                 f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-DCMAKE_C_FLAGS={flags}", f"-DCMAKE_CXX_FLAGS={flags}"]  # fmt: skip
    for command in (configure, [cmake, "--build", str(folder / "build")]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "build"


@pytest.fixture(scope="module")
def embed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(EMBED, tmp_path_factory.mktemp("embed")) / "embed"


def run(*command: object, lines: Sequence[str] = ()) -> subprocess.CompletedProcess[bytes]:
    text = "".join(f"{line}\n" for line in lines).encode()
    return subprocess.run([str(part) for part in command], input=text, capture_output=True, timeout=120)


def prompt_tokens(model: pyflash.Model, turns: Sequence[tuple[bytes, bytes]]) -> list[int]:
    """pf_chat_tokenize(), because answers of random weights are rarely UTF-8, which Python's messages are."""
    texts = [ffi.new("char[]", text) for turn in turns for text in turn]
    array = ffi.new("pf_chat_message[]", len(turns))
    for i in range(len(turns)):
        array[i].role, array[i].content = texts[2 * i], texts[2 * i + 1]
    out, count, error = ffi.new("int32_t[]", 20_000), ffi.new("int64_t *"), ffi.new("pf_error *")
    with model._handle.borrow() as native:
        assert lib.pf_chat_tokenize(native, array, len(turns), 0, out, 20_000, count, error) == 0
    return list(out[0 : count[0]])


def greedy_answers(tiny_model: Path, questions: Sequence[str], max_tokens: int) -> list[bytes]:
    """What a conversation of these questions answers; whole characters, as they are shown and remembered."""
    answers: list[bytes] = []
    turns: list[tuple[bytes, bytes]] = []
    with pyflash.Model.open(tiny_model) as model, model.session() as session:
        for question in questions:
            turns.append((b"user", question.encode()))
            prompt = session.align(prompt_tokens(model, turns))
            kept = session.reuse(prompt)
            pieces = session.generate(prompt[kept:], max_tokens, temperature=0)
            data = model.tokenizer.decode_bytes([piece.token for piece in pieces if piece.finish != "stop"])
            answers.append(data[: lib.pf_utf8_complete(data, len(data))])
            turns.append((b"assistant", answers[-1].replace(b"\0", b"")))
    return answers


def test_one_message(embed: Path, tiny_model: Path) -> None:
    done = run(embed, tiny_model, "-n", 40, "--temp", 0, "Hello", "there")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == greedy_answers(tiny_model, ["Hello there"], 40)[0] + b"\n"


def test_lines_are_one_conversation(embed: Path, tiny_model: Path) -> None:
    """Also empty lines, long ones, and a last one without an end."""
    questions = ["Hello", "and more?", "é😀 <｜User｜>", "x" * 3000, "the last"]
    done = subprocess.run([embed, tiny_model, "-n", "30", "--temp", "0"], input="\n\n".join(questions).encode(),
                          capture_output=True, timeout=120)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"".join(answer + b"\n" for answer in greedy_answers(tiny_model, questions, 30))


def test_same_seed_same_answer(embed: Path, tiny_model: Path) -> None:
    answers = [run(embed, tiny_model, "-n", 20, "--seed", seed, "Hello").stdout for seed in (7, 7, 8)]
    assert answers[0] == answers[1] != answers[2]


def test_reasoning_goes_to_stderr(embed: Path, tiny_model: Path) -> None:
    done = run(embed, tiny_model, "--think", "-n", 25, "--temp", 0, "Hello")
    assert done.returncode == 0 and done.stdout == b"\n" and b"\x1b" not in done.stderr
    with pyflash.Model.open(tiny_model) as model, model.session() as session:
        reply = session.chat([{"role": "user", "content": "Hello"}], think="high", max_tokens=25, temperature=0)
        for _ in reply:
            pass
        expected = reply.message["reasoning_content"]
    assert done.stderr.decode(errors="replace") == expected.rstrip("\ufffd") + "\n\n"


def test_reasoning_is_dimmed_on_a_terminal(embed: Path, tiny_model: Path) -> None:
    ours, theirs = os.openpty()
    try:
        done = subprocess.run([embed, tiny_model, "--think", "-n", "5", "Hello"], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=theirs, timeout=120)  # fmt: skip
        os.write(theirs, b"<end>")  # a terminal hands over a piece at a time
        shown = b""
        while not shown.endswith(b"<end>"):
            shown += os.read(ours, 4096)
        shown = shown.removesuffix(b"<end>")
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 0
    assert shown.startswith(b"\x1b[2m") and shown.rstrip().endswith(b"\x1b[0m")


def test_ctrl_c_keeps_what_there_is_and_the_next_line_is_answered(embed: Path, tiny_model: Path) -> None:
    full = run(embed, tiny_model, "--temp", 0, LONG).stdout
    with subprocess.Popen([embed, tiny_model, "--temp", "0"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, bufsize=0) as process:  # fmt: skip
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdin.write(f"{LONG}\n".encode())
        shown = process.stdout.read(20)
        process.send_signal(signal.SIGINT)
        # The answer to the second line comes only when the first has ended.
        process.stdin.write(b"Hello\n")
        process.stdin.close()
        shown += process.stdout.read()
        assert process.stderr.read() == b""
    assert process.returncode == 0
    common = os.path.commonprefix([full, shown])
    assert 1 <= len(common) < len(full) / 2, "the first answer has not been stopped"
    second = shown[len(common) :]  # with the line break before it, when that is not how the first answer would go on
    assert second.endswith(b"\n") and len(second) > 2


def test_ctrl_c_stops_a_message(embed: Path, tiny_model: Path) -> None:
    with subprocess.Popen([embed, tiny_model, "--temp", "0", LONG], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          bufsize=0) as process:  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(10)
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.stderr.read() == b""
    assert process.returncode == 130 and rest.endswith(b"\n")


def test_ctrl_c_between_answers_ends_the_program(embed: Path, tiny_model: Path) -> None:
    with subprocess.Popen([embed, tiny_model, "-n", "1", "--temp", "0"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          bufsize=0) as process:  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"Hello\n")
        while b"\n" not in process.stdout.read(1):
            pass
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
    assert process.returncode == -signal.SIGINT


def test_errors_are_one_line(embed: Path, tiny_model: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(tiny_model.read_bytes()[:5000])
    for path in (tmp_path / "none.gguf", damaged):
        done = run(embed, path, "x")
        assert (done.returncode, done.stdout) == (1, b"")
        assert done.stderr.startswith(b"embed: ") and done.stderr.count(b"\n") == 1 and path.name.encode() in done.stderr
    for wrong in ([], ["--think"], [tiny_model, "--no-such"], [tiny_model, "-n"], [tiny_model, "-n", "x"],
                  [tiny_model, "--temp", "nan", "x"]):  # fmt: skip
        done = run(embed, *wrong)
        assert done.returncode == 2 and done.stderr.startswith(b"usage: embed ")
    if Path("/dev/full").exists():
        with open("/dev/full", "wb") as full:
            late = subprocess.run([embed, tiny_model, "-n", "3", "x"], stdout=full, stderr=subprocess.PIPE, timeout=60)
        assert (late.returncode, late.stderr) == (1, b"embed: cannot write the answer\n")


DRIVER = """
#include "chat.h"
#include <stdio.h>
#include <string.h>
static void count(void *user, bool is_reasoning, const char *text, size_t len) {
    (void)is_reasoning;
    (void)text;
    *(size_t *)user += len;
}
static int late_cancels(chat *c) {
    for (int i = 0; i < 3; ++i) {
        size_t bytes = 0;
        if (chat_ask(c, "Hello", count, &bytes) != PF_OK) return 1;
        printf("%d %d\\n", c->stopped, bytes > 0);
        pf_session_cancel(c->session);
        c->late_cancel = i == 0;
    }
    return 0;
}
static int reuses(chat *c) {
    char question[4000];
    memset(question, 'x', sizeof question - 1);
    question[sizeof question - 1] = 0;
    for (int i = 0; i < 3; ++i) {
        size_t bytes = 0;
        if (chat_ask(c, i == 0 ? question : "and?", count, &bytes) != PF_OK) return 1;
        printf("%d %d\\n", (int)c->n_prompt, (int)c->n_reused);
    }
    return 0;
}
int main(int argc, char **argv) {
    chat c = {0};
    const bool thinks = argc > 2;
    const chat_options options = {.think = thinks ? PF_THINK_HIGH : PF_THINK_OFF, .max_tokens = thinks ? 400 : 20};
    if (argc < 2 || chat_open(&c, argv[1], &options) != PF_OK) return 1;
    const int failed = thinks ? reuses(&c) : late_cancels(&c);
    chat_close(&c);
    return failed;
}
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """chat.c in a program of one's own."""
    folder = tmp_path_factory.mktemp("driver")
    shutil.copytree(EMBED, folder / "source")
    (folder / "source" / "main.c").write_text(DRIVER)
    return build(folder / "source", folder) / "embed"


def test_ctrl_c_that_comes_too_late_stops_nothing(driver: Path, tiny_model: Path) -> None:
    """A cancel after the last step is not taken for one of the next answer."""
    done = run(driver, tiny_model)
    assert (done.returncode, done.stdout) == (0, b"0 1\n0 1\n1 0\n")


def test_prompts_are_not_evaluated_again(driver: Path, tiny_model: Path) -> None:
    """Although the reasoning of the answer before, farther than the session can roll back, is left out."""
    done = run(driver, tiny_model, "think")
    assert done.returncode == 0
    (first, none), (second, reused), (third, reused_again) = (
        map(int, line.split()) for line in done.stdout.splitlines()
    )
    assert none == 0 and first > 1000 and second > 3 and third > 3
    assert reused >= first - 20 and reused_again >= reused
