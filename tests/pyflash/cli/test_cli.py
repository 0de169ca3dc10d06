"""The command line, run as users run it: in processes of their own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyflash
import pytest
from pyflash import chat

COMMAND = [sys.executable, "-m", "pyflash"]
ATTEMPTS = 5  # at catching an answer before it ends: those of random weights are over in a second or two


def run(*arguments: object, cwd: Path, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], cwd=cwd, input=stdin, capture_output=True, encoding="utf-8", timeout=300,
        env={**os.environ, **env},
    )


def assert_fails(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 1 and exactly one line on stderr that holds the words."""
    assert done.returncode == 1, done
    assert done.stdout == ""
    assert done.stderr.startswith("pyflash: error: ") and done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr


# -- run --


def test_run_answers_with_the_demo_model(tmp_path: Path, demo_model: Path) -> None:
    done = run("run", "Hello, who are you?", "--seed", 1, cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    assert len(done.stdout.strip()) > 10
    assert run("run", "Hello, who are you?", "--seed", 1, cwd=tmp_path).stdout == done.stdout


def test_every_way_to_give_model_and_prompt(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "prompt.txt").write_text("Hello")
    common = ("-n", 8, "--temp", 0)
    answers = {
        run("run", tiny_model, "Hello", *common, cwd=tmp_path).stdout,
        run("run", "-m", tiny_model, "-p", "Hello", *common, cwd=tmp_path).stdout,
        run("run", "-m", tiny_model, "-f", "prompt.txt", *common, cwd=tmp_path).stdout,
        run("run", "-m", tiny_model, "-", *common, cwd=tmp_path, stdin="Hello").stdout,
        run("run", "Hello", cwd=tmp_path, PYFLASH_MODEL=str(tiny_model), PYFLASH_TEMP="0",
            PYFLASH_MAX_TOKENS="8").stdout,
        run("run", tiny_model, *common, cwd=tmp_path, stdin="Hello\n").stdout,
    }
    assert len(answers) == 1 and answers.pop().strip()


def test_text_streams(tmp_path: Path, tiny_model: Path) -> None:
    """The first text arrives while the command still runs, and Ctrl-C then ends it with 130."""
    for seed in range(ATTEMPTS):
        process = subprocess.Popen(
            [*COMMAND, "run", str(tiny_model), "Hello", "-n", "60000", "-c", "65000", "--seed", str(seed)],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert os.read(process.stdout.fileno(), 1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert b"Traceback" not in errors
        if process.returncode != 0:  # else the answer had ended by itself
            break
    assert process.returncode == 130


def test_interrupted_while_reading_the_prompt(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "long.txt").write_text("some words " * 8000)
    process = subprocess.Popen(
        [*COMMAND, "run", str(tiny_model), "-f", "long.txt", "--verbose"], cwd=tmp_path, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    os.read(process.stderr.fileno(), 1)  # the model has been opened
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and b"Traceback" not in errors


def test_chat_reads_lines_until_the_end(tmp_path: Path, tiny_model: Path) -> None:
    done = run("run", tiny_model, "-n", 4, "--temp", 0, cwd=tmp_path,
               stdin="Hi\n\n/help\n/clear\nHi again\n/what\nnot read\n")
    assert done.returncode == 1
    assert "there is no command /what" in done.stderr
    assert done.stdout.count("\n") >= 2


def test_verbose_counts_what_was_evaluated(tmp_path: Path, tiny_model: Path) -> None:
    """In a chat too, where later turns reuse what is there already and the end of an answer may be dropped."""
    turns = ["the first question is a long one " * 5, "short", "/clear", "the first question is another one"]
    done = run("run", tiny_model, "-n", 6, "--temp", 0, "--verbose", cwd=tmp_path, stdin="\n".join(turns))
    assert done.returncode == 0
    counts = [int(count) for count in re.findall(r"prompt (-?\d+)", done.stderr)]
    assert len(counts) == 3 and all(count > 0 for count in counts)
    with pyflash.Model.open(tiny_model) as model:
        first = chat.segments([{"role": "user", "content": turns[0].strip()}])
        assert counts[0] == len(model.tokenizer.encode_segments(first))
    assert counts[1] < counts[0] and counts[2] < counts[0]


def test_thinking_stays_out_of_piped_output(tmp_path: Path, tiny_model: Path) -> None:
    done = run("run", tiny_model, "Hi", "--think", "-n", 20, "--temp", 0, cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.strip() == "" and done.stderr.strip()


def test_full_context_is_told(tmp_path: Path, tiny_model: Path) -> None:
    assert_fails(run("run", tiny_model, "word " * 50, "-c", 20, cwd=tmp_path), "context", "20")
    done = run("run", tiny_model, "Hi", "-c", 20, "--seed", 2, cwd=tmp_path)
    assert done.returncode == 0 and "-c makes it larger" in done.stderr


def test_closed_pipe_ends_quietly(tmp_path: Path, tiny_model: Path) -> None:
    command = " ".join([*COMMAND, "run", str(tiny_model), "Hi", "-n", "2000", "| head -c 5"])
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, timeout=120)
    assert done.stderr == b""


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed(tmp_path: Path, tiny_model: Path, closed: str) -> None:
    command = " ".join([*COMMAND, "run", str(tiny_model), "Hi", "-n", "8", "--seed", "1", closed])
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, timeout=120)
    assert done.returncode == 0 and done.stderr == b""
    assert bool(done.stdout) == (" >&-" not in f" {closed}")


# -- failures: one line, exit code 1 --


def test_missing_model(tmp_path: Path) -> None:
    assert_fails(run("run", "missing.gguf", "Hi", cwd=tmp_path), "missing.gguf")
    assert_fails(run("info", "missing.gguf", cwd=tmp_path), "missing.gguf")


def test_not_a_gguf(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"PK\3\4 something else" * 100)
    assert_fails(run("run", "a.gguf", "Hi", cwd=tmp_path), "a.gguf")
    assert_fails(run("info", "a.gguf", cwd=tmp_path), "a.gguf")


def test_truncated_model(tmp_path: Path, tiny_model: Path) -> None:
    data = tiny_model.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(data[: len(data) // 2])
    assert_fails(run("run", "cut.gguf", "Hi", cwd=tmp_path), "cut.gguf")


def test_missing_prompt_file(tmp_path: Path, tiny_model: Path) -> None:
    assert_fails(run("run", tiny_model, "-f", "none.txt", cwd=tmp_path), "none.txt")


def test_unknown_kernel_set(tmp_path: Path, tiny_model: Path) -> None:
    assert_fails(run("run", tiny_model, "Hi", cwd=tmp_path, PYFLASH_CPU="mmx"), "mmx")


def test_layers_on_a_gpu(tmp_path: Path, tiny_model: Path) -> None:
    assert run("run", tiny_model, "Hi", "-ngl", 0, "-n", 3, cwd=tmp_path).returncode == 0
    for option in ("-ngl", "--gpu-layers"):
        assert_fails(run("run", tiny_model, "Hi", option, 99, cwd=tmp_path), '"cuda" cannot be used', "without it")
    assert_fails(run("run", tiny_model, "Hi", cwd=tmp_path, PYFLASH_GPU_LAYERS="1"), '"cuda" cannot be used')
    assert_fails(run("run", tiny_model, "Hi", "--device", "cuda", cwd=tmp_path), '"cuda" cannot be used')


def test_cache_that_cannot_be_written(tmp_path: Path, demo_checkpoint: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert_fails(run("run", "Hi", cwd=tmp_path, PYFLASH_CACHE=str(tmp_path / "file" / "cache")), "PYFLASH_CACHE")


def test_missing_checkpoint(tmp_path: Path) -> None:
    assert_fails(run("convert", "nowhere", "out.gguf", cwd=tmp_path), "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_export_of_a_compat_file(tmp_path: Path, tiny_model: Path) -> None:
    assert_fails(run("export", "hf", tiny_model, "out", cwd=tmp_path))
    assert list(tmp_path.iterdir()) == []


# -- usage: exit code 2 --


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["run", "--nonsense"],
        ["run", "one", "two", "three"],
        ["run", "-p", "a", "b"],
        ["run", "Hi", "--logprobs", "3"],
        ["run", "Hi", "--stop", ""],
        ["run", "Hi", "--temp", "nan"],
        ["run", "Hi", "--json-object", "--json-schema", "{}"],
        ["run", ""],
        ["run", "Hi", "--temp", "-1"],
        ["run", "Hi", "-n", "0"],
        ["run", "Hi", "-ngl", "all"],
        ["run", "Hi", "--think", "--no-think"],
        ["info"],
        ["convert", "only-one"],
        ["convert", "a", "b", "--split-max-size", "big"],
        ["export"],
    ],
    ids=" ".join,
)
def test_usage(tmp_path: Path, arguments: list[str]) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done
    assert done.stdout == "" and done.stderr


def test_command_line_beats_environment(tmp_path: Path, tiny_model: Path) -> None:
    environment: dict[str, Any] = {"PYFLASH_THINK": "1", "PYFLASH_PROMPT": "from there", "PYFLASH_MODEL": "none.gguf"}
    done = run("run", tiny_model, "Hi", "--no-think", "-n", 5, "--temp", 0, cwd=tmp_path, **environment)
    assert done.returncode == 0
    assert done.stdout == run("run", tiny_model, "Hi", "-n", 5, "--temp", 0, cwd=tmp_path).stdout


# -- the other commands --


def test_info(tmp_path: Path, tiny_model: Path) -> None:
    done = run("info", tiny_model, "--json", "--ctx", 1000, cwd=tmp_path)
    report = json.loads(done.stdout)
    assert report["done"] is True and report["n_ctx"] == 1000 and report["model"]["n_layer"] == 6
    assert sum(report["part_bytes"].values()) == report["model"]["weight_bytes"] and "other" not in report["part_bytes"]
    assert report["fits"] is True and report["needed_bytes"] > report["model"]["weight_bytes"]
    text = run("info", tiny_model, cwd=tmp_path).stdout
    assert "routed experts" in text and "fits" in text


def test_info_of_a_name_that_is_not_utf8(tmp_path: Path, tiny_model: Path) -> None:
    """The library reads such a file, so info tells about it too."""
    data = tiny_model.read_bytes()
    assert data.count(b"tiny, random weights") == 1
    (tmp_path / "m.gguf").write_bytes(data.replace(b"tiny, random", b"tiny\xff random"))
    done = run("info", "m.gguf", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "" and "tiny\ufffd random weights" in done.stdout


def test_info_counts_the_mtp_block(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """All of it: what --mtp adds to a native file."""
    parts = {}
    for name, options in (("with.gguf", ["--mtp"]), ("without.gguf", [])):
        assert run("convert", tiny_checkpoint, name, "--profile", "native", *options, cwd=tmp_path).returncode == 0
        parts[name] = json.loads(run("info", name, "--json", cwd=tmp_path).stdout)["part_bytes"]
    block = parts["with.gguf"].pop("MTP block")
    assert parts["with.gguf"] == parts["without.gguf"]
    assert block > parts["without.gguf"]["routed experts"] / 6


def test_doctor(tmp_path: Path) -> None:
    done = run("doctor", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.count("in use") == 1 and "kernels scalar" in done.stdout
    scalar = run("doctor", cwd=tmp_path, PYFLASH_CPU="scalar").stdout
    assert re.search(r"kernels scalar +in use", scalar)
    assert "models will not open" in run("doctor", cwd=tmp_path, PYFLASH_CPU="mmx").stdout


def test_convert_and_export_back(tmp_path: Path, tiny_checkpoint: Path) -> None:
    plan = run("convert", tiny_checkpoint, "m.gguf", "--dry-run", cwd=tmp_path)
    assert plan.returncode == 0 and "MXFP4" in plan.stdout
    assert list(tmp_path.iterdir()) == []
    done = run("convert", tiny_checkpoint, "m.gguf", "--profile", "native", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "") and "wrote m.gguf" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]
    assert run("run", "m.gguf", "Hi", "-n", 3, cwd=tmp_path).returncode == 0
    assert run("export", "hf", "m.gguf", "back", cwd=tmp_path).returncode == 0
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config == json.loads((tiny_checkpoint / "config.json").read_text())


def test_shards(tmp_path: Path, tiny_checkpoint: Path) -> None:
    done = run("convert", tiny_checkpoint, "m.gguf", "--split-max-size", "1M", cwd=tmp_path)
    assert done.returncode == 0, done
    shards = sorted(path.name for path in tmp_path.iterdir())
    assert len(shards) > 2 and shards[0] == f"m-00001-of-{len(shards):05}.gguf"
    assert run("run", shards[0], "Hi", "-n", 3, cwd=tmp_path).returncode == 0


def test_help_lists_what_exists(tmp_path: Path) -> None:
    text = run("--help", cwd=tmp_path).stdout
    listed = [line.split()[0] for line in text.partition("Commands:")[2].splitlines()[1:] if line[2:3].isalpha()]
    assert listed == sorted(listed)
    assert {"completion", "convert", "doctor", "export", "info", "run"} <= set(listed)
    assert run("--version", cwd=tmp_path).stdout.startswith("pyflash, version 0.1.0")
