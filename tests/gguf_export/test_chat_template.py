"""The stored Jinja template against the published chat encoding, as Hugging Face's libraries render templates."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from chats import EFFORTS, TOOLS, conversation
from checkpoints import small_checkpoint
from jinja2.sandbox import ImmutableSandboxedEnvironment

import pyflash.chat
from gguf_export.chat_template import chat_template
from gguf_export.convert import ConvertOptions, convert
from gguf_export.reader import read_gguf

pytestmark = pytest.mark.quick

BOS, EOS, USER, BOT = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"
EVERY_ROLE = ("system", "user", "user", "assistant", "tool", "developer", "latest_reminder")


def as_transformers_does(text: str) -> Any:
    """Compiled in a sandbox, with blocks trimmed, loop controls, and a tojson that leaves characters as they are."""
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    made.filters["tojson"] = lambda value, **options: json.dumps(value, **{"ensure_ascii": False, **options})
    return made.from_string(text)


@pytest.fixture(scope="module", params=["jinja2", pytest.param("transformers", marks=pytest.mark.oracle)])
def compiled(request: pytest.FixtureRequest) -> Any:
    """The templates of each release, compiled by jinja2 alone and by transformers."""
    compile_ = as_transformers_does
    if request.param == "transformers":
        utils = pytest.importorskip("transformers.utils.chat_template_utils", reason="transformers is not installed")
        compile_ = utils._compile_jinja_template
    return {release: compile_(chat_template(release)) for release in EFFORTS}


def variables(messages: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """What a program gives a template: the tokens as well, which ours writes itself."""
    return {"messages": messages, "add_generation_prompt": True, "bos_token": BOS, "eos_token": EOS, **more}


def message(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def encoded(given: dict[str, Any], release: str) -> str:
    """What pyflash writes for a template's variables."""
    messages = given["messages"]
    if given.get("tools"):
        messages = pyflash.chat.with_tools(messages, given["tools"])
    if schema := given.get("response_format"):
        opening, *rest = messages if messages[0]["role"] == "system" else [message("system", ""), *messages]
        messages = [{**opening, "response_format": schema}, *rest]
    return pyflash.chat.encode(
        messages, thinking=given.get("enable_thinking", False), effort=given.get("reasoning_effort"), release=release,
        drop_thinking=not given.get("preserve_thinking", False),
    )


def cases(count: int, seed: int, roles: tuple[str, ...] = EVERY_ROLE) -> list[tuple[str, dict[str, Any]]]:
    """Releases and variables: chats of every kind, with thinking off and at each effort, some with tools."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        release = rng.choice(list(EFFORTS))
        with_tools = rng.random() < 0.4
        given = variables(conversation(rng, with_tools=with_tools, roles=roles), enable_thinking=rng.random() < 0.6)
        if (effort := rng.choice(EFFORTS[release])) is not None:
            given["reasoning_effort"] = effort
        if with_tools and rng.random() < 0.9:
            given["tools"] = TOOLS[: rng.randint(1, 2)]
        if rng.random() < 0.15:
            given["response_format"] = {"type": "object", "properties": {"ä": {"enum": ["<", 1]}}}
        if rng.random() < 0.15:
            given["preserve_thinking"] = True
        made.append((release, given))
    return made


def test_same_as_the_encoder(compiled: Any) -> None:
    for release, given in cases(1500, seed=1):
        assert compiled[release].render(**given) == encoded(given, release), given


CHAT = [
    message("system", "Be brief."),
    message("user", "Hi"),
    message("assistant", "Hello!", reasoning_content="A greeting."),
    message("user", "Bye"),
]


@pytest.mark.parametrize(
    "given, opening",
    [({}, "</think>"), ({"enable_thinking": False}, "</think>"), ({"enable_thinking": True}, "<think>"),
     ({"thinking": True}, "<think>"), ({"reasoning_effort": "max"}, "</think>"),
     ({"thinking": True, "reasoning_effort": "medium"}, "<think>")],
)  # fmt: skip
def test_reasoning_of_earlier_turns_is_dropped(compiled: Any, given: dict[str, Any], opening: str) -> None:
    expected = f"{BOS}Be brief.{USER}Hi{BOT}</think>Hello!{EOS}{USER}Bye{BOT}{opening}"
    for template in compiled.values():
        assert template.render(**variables(CHAT, **given)) == expected


@pytest.mark.parametrize("given", [{"preserve_thinking": True}, {"drop_thinking": False}])
def test_reasoning_stays_on_demand(compiled: Any, given: dict[str, Any]) -> None:
    expected = f"{BOS}Be brief.{USER}Hi{BOT}<think>A greeting.</think>Hello!{EOS}{USER}Bye{BOT}<think>"
    assert compiled["preview"].render(**variables(CHAT, thinking=True, **given)) == expected


def test_no_generation_prompt(compiled: Any) -> None:
    given = {"messages": CHAT[:2], "add_generation_prompt": False}
    assert compiled["preview"].render(**given) == f"{BOS}Be brief.{USER}Hi"


def test_arguments_as_text_are_one_parameter(compiled: Any) -> None:
    """Jinja cannot parse JSON; the encoder does the same with what is no JSON."""
    call = {"function": {"name": "now", "arguments": "in Köln"}}
    messages = [message("user", "x"), message("assistant", "", tool_calls=[call])]
    assert compiled["preview"].render(**variables(messages)) == pyflash.chat.encode(messages)


def test_published_vectors(compiled: Any, shared: Path) -> None:
    """The first as it is; of the second what stands before its task, which templates know nothing of."""
    folder = shared / "vectors/encoding"
    data = json.loads((folder / "input_1.json").read_text(encoding="utf-8"))
    for entry in data["messages"]:
        for call in entry.get("tool_calls", ()):  # llama.cpp parses arguments before it renders
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    rendered = compiled["preview"].render(**variables(data["messages"], tools=data["tools"], enable_thinking=True))
    assert rendered == (folder / "output_1.txt").read_text(encoding="utf-8")
    messages = json.loads((folder / "input_4.json").read_text(encoding="utf-8"))
    rendered = compiled["preview"].render(**variables(messages[:4]))
    assert len(rendered) > 1000 and (folder / "output_4.txt").read_text(encoding="utf-8").startswith(rendered)


def test_llama_cpp_knows_the_markup() -> None:
    """By these words it chooses its parser for DeepSeek's calls, and V4's variant of it."""
    for release in EFFORTS:
        text = chat_template(release)
        assert all(word in text for word in ("dsml_token", "DSML", "tool_calls", "<think>", "</think>"))
        assert "function_calls" not in text


@pytest.mark.parametrize("release", ["preview", "0731"])
def test_files_tell_their_release(tmp_path: Path, release: str) -> None:
    checkpoint = small_checkpoint(tmp_path / "checkpoint", release)
    (checkpoint / "LICENSE").write_text("MIT License\n\nCopyright (c) someone\n")
    (path,) = convert(checkpoint, tmp_path / "m.gguf", ConvertOptions()).files
    keys = read_gguf(path).keys
    assert keys["tokenizer.chat_template"] == chat_template(release)
    assert ("Beyond maximum" in keys["tokenizer.chat_template"]) == (release == "0731")
    assert (keys["general.version"], keys["general.license"]) == (release, "mit")
    with pyflash.Model.open(path) as model:
        assert model.release == release
