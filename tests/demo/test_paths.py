"""The same shares through every other path, and nearly the same tokens."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import measure
import pyflash
import pytest
from gguf_export.convert import ConvertOptions, convert
from import_llama.runner import LlamaCpp, install

from demo import targets

pytestmark = pytest.mark.long

Answerer = Callable[[str, list[list[int]]], measure.Answers]  # (row, prompts)


def check_path(path: str, base: dict[str, measure.Result], model: pyflash.Model, answer: Answerer) -> None:
    right: dict[str, list[bool]] = {}
    required: dict[str, list[float]] = {}
    same: list[bool] = []
    for name, count in targets.FEWER.items():
        examples = base[name].examples[:count]
        result = measure.measure(examples, model.tokenizer, lambda prompts: answer(name, prompts))
        print(measure.table_line(name, result))
        kind = measure.ROWS[name].kind
        right.setdefault(kind, []).extend(result.right)
        required.setdefault(kind, []).extend([targets.SHARES[name]] * count)
        same += [ours == theirs for ours, theirs in zip(result.answers, base[name].answers, strict=False)]
    print(f"{path}: {sum(same)} of {len(same)} answers have the same tokens")
    for kind, flags in right.items():
        # One wrong answer is allowed beyond the share, as the default path's first ones may be its wrong ones.
        assert sum(flags) + 1 >= sum(required[kind]), kind
    assert sum(same) >= targets.SAME[path] * len(same)


def check_session(path: str, base: dict[str, measure.Result], session: pyflash.Session, **options: object) -> None:
    check_path(path, base, session.model, lambda _, prompts: measure.answer(session, prompts, **options))


def test_exact(base: dict[str, measure.Result], demo_model: Path) -> None:
    with pyflash.Model.open(demo_model, precision="exact") as model:
        with model.session(context=measure.CONTEXT) as session:
            check_session("exact", base, session)


def test_native_file(base: dict[str, measure.Result], demo_checkpoint: Path, tmp_path: Path) -> None:
    (file,) = convert(demo_checkpoint, tmp_path / "native.gguf", ConvertOptions(profile="native")).files
    with pyflash.Model.open(file) as model, model.session(context=measure.CONTEXT) as session:
        check_session("native", base, session)


def test_half_float_cache(base: dict[str, measure.Result], model: pyflash.Model) -> None:
    with model.session(context=measure.CONTEXT, cache="f16") as session:
        check_session("f16 cache", base, session)


def test_small_steps(base: dict[str, measure.Result], model: pyflash.Model) -> None:
    with model.session(context=measure.CONTEXT, chunk=37) as session:
        assert session.chunk == 37
        check_session("small steps", base, session)


def test_odd_pieces(base: dict[str, measure.Result], model: pyflash.Model) -> None:
    with model.session(context=measure.CONTEXT) as session:
        check_session("odd pieces", base, session, pieces=(1, 3, 127, 64, 5, 129, 700))


RESTORED = """
import json, sys
import pyflash
model_file, context, max_tokens, request, reply = sys.argv[1:]
answers = []
with pyflash.Model.open(model_file) as model, model.session(context=int(context)) as session:
    for saved, kept, prompt in json.load(open(request)):
        session.load(saved)
        assert session.position == kept and session.reuse(prompt) == kept
        pieces = session.generate(prompt[kept:], int(max_tokens), temperature=0)
        answers.append([piece.token for piece in pieces])
json.dump(answers, open(reply, "w"))
"""


def groups(prompts: list[list[int]]) -> Iterator[tuple[int, list[list[int]]]]:
    """Prompts with how many tokens go into a session's file: those after one another that share most of a text, together;
    half of any other."""
    while prompts:
        first, n = prompts[0], 1
        while n < len(prompts) and measure.common(first, prompts[n]) > len(first) // 2:
            n += 1
        shared = [measure.common(first, prompt) for prompt in prompts[1:n]]
        yield min(shared, default=len(first) // 2), prompts[:n]
        prompts = prompts[n:]


def test_restored_in_another_process(base: dict[str, measure.Result], demo_model: Path, tmp_path: Path) -> None:
    request, reply = tmp_path / "request.json", tmp_path / "reply.json"

    def answer(_: str, prompts: list[list[int]]) -> measure.Answers:
        asked = []
        for kept, members in groups(prompts):
            saved = tmp_path / f"{len(asked)}.session"
            session.rollback(session.position)
            session.eval(members[0][:kept])
            session.save(saved)
            asked += [(str(saved), kept, prompt) for prompt in members]
        request.write_text(json.dumps(asked))
        command = [sys.executable, "-c", RESTORED, str(demo_model), str(measure.CONTEXT), str(measure.MAX_TOKENS),
                   str(request), str(reply)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        answers: measure.Answers = json.loads(reply.read_text())
        return answers

    with pyflash.Model.open(demo_model) as model, model.session(context=measure.CONTEXT) as session:
        check_path("restored", base, model, answer)


@pytest.mark.llama
def test_llama_cpp(base: dict[str, measure.Result], model: pyflash.Model, demo_model: Path) -> None:
    """In its default precision: half-float caches, one thread, one process for all rows."""
    asked = {name: measure.prompts_of(base[name].examples[:count], model.tokenizer)
             for name, count in targets.FEWER.items()}
    prompts = [prompt for members in asked.values() for prompt in members]
    reply = LlamaCpp(install()).run(demo_model, generate=prompts, max_tokens=measure.MAX_TOKENS)
    answers = iter(reply["generated"])
    check_path("llama.cpp", base, model, lambda _, prompts: [next(answers) for _ in prompts])
