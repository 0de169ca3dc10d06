"""Tokenizer and Session.chat(): parts of an answer, tools, thinking modes, reuse, Reply."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import pyflash
from gguf_export.chat_template import chat_template
from gguf_export.chat_texts import release_of
from pyflash import chat

Say = Callable[..., list[int]]  # the fixture's

QUESTION = [{"role": "user", "content": "What is the weather in Paris and in Rome?"}]
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CALLS = (
    "\n\n<｜DSML｜tool_calls>\n"
    '<｜DSML｜invoke name="weather">\n<｜DSML｜parameter name="city" string="true">Paris "P"</｜DSML｜parameter>\n'
    '<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
    '<｜DSML｜invoke name="weather">\n<｜DSML｜parameter name="city" string="true">Rome</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n</｜DSML｜tool_calls>"
)


def parts(pieces: list[pyflash.ChatPiece]) -> dict[str, str]:
    out: dict[str, str] = {"reasoning": "", "content": ""}
    for piece in pieces:
        if piece.kind != "tool_call":
            out[piece.kind] += piece.text
    return out


def problems(pieces: list[pyflash.ChatPiece]) -> list[str]:
    return [piece.problem for piece in pieces if piece.problem]


def test_what_users_type_does_not_become_special(model: pyflash.Model) -> None:
    end = model.tokenizer.token_id(chat.THINK_END)
    assert end is not None
    pieces = chat.segments([{"role": "user", "content": f"say {chat.THINK_END} and {chat.EOS}"}])
    ids = model.tokenizer.encode_segments(pieces)
    assert ids.count(end) == 1 and ids[-1] == end and model.info.eos_token not in ids


def test_vocabulary_tells_special_tokens(model: pyflash.Model) -> None:
    tokens, special = model.tokenizer.vocabulary()
    assert tokens == [model.tokenizer.decode_bytes([token], special=True) for token in range(model.info.n_vocab)]
    for text in (chat.BOS, chat.EOS, chat.THINK_BEGIN, chat.THINK_END, chat.DSML):
        assert model.tokenizer.token_id(text) in special
    assert not set(special) & set(model.tokenizer.encode("Plain text, such as this; <think> too."))


# -- reasoning and content --


def test_reasoning_is_split_from_content(session: pyflash.Session, say: Say) -> None:
    ids = say(session, "hm</think>yes")
    reply = session.chat(QUESTION, think="high")
    pieces = list(reply)
    assert [piece.token for piece in pieces] == ids
    assert parts(pieces) == {"reasoning": "hm", "content": "yes"} and not problems(pieces)
    assert reply.message == {"role": "assistant", "content": "yes", "reasoning_content": "hm", "tool_calls": []}
    assert reply.finish == pieces[-1].finish == "stop" and reply.n_generated == len(ids)


@pytest.mark.parametrize(
    ("think", "text", "expected"),
    [
        ("off", "one</think> two<think> three", ("", "one two three", 2)),
        ("high", "<think>one</think>two", ("one", "two", 1)),
        ("high", "one</think>two</think>", ("one", "two", 1)),
        ("high", "one <｜User｜> more", ("one  more", "", 1)),
        ("off", "one <｜begin▁of▁sentence｜>two", ("", "one two", 0)),
        ("off", "a ｜DSML｜ b", ("", "a ｜DSML｜ b", 1)),
    ],
)  # fmt: skip
def test_special_tokens_out_of_place(session: pyflash.Session, say: Say, think: str, text: str,
                                     expected: tuple[str, str, int]) -> None:
    say(session, text)
    pieces = list(session.chat(QUESTION, think=think))
    assert (parts(pieces)["reasoning"], parts(pieces)["content"], len(problems(pieces))) == expected


def test_stop_strings_apply_to_the_content(session: pyflash.Session, say: Say) -> None:
    ids = say(session, "the END is near</think>this is the END of it")
    reply = session.chat(QUESTION, think="high", stop=["END"])
    pieces = list(reply)
    assert parts(pieces) == {"reasoning": "the END is near", "content": "this is the "}
    assert reply.finish == "stop" and reply.n_generated < len(ids)
    assert reply.message["content"] == "this is the "


def test_logprobs_come_with_every_token(session: pyflash.Session) -> None:
    pieces = list(session.chat(QUESTION, max_tokens=5, logprobs=2))
    assert all(len(piece.top) == 2 for piece in pieces)


# -- tools --


def test_tool_calls_stream(session: pyflash.Session, say: Say) -> None:
    say(session, "I shall look</think>Just a moment." + CALLS)
    reply = session.chat(QUESTION, "high", [WEATHER])
    pieces = list(reply)
    assert parts(pieces) == {"reasoning": "I shall look", "content": "Just a moment."} and not problems(pieces)
    calls = [piece.call for piece in pieces if piece.call]
    assert [json.loads(call["function"]["arguments"]) for call in calls] == [
        {"city": 'Paris "P"', "days": 3}, {"city": "Rome"}]  # fmt: skip
    assert reply.message["tool_calls"] == calls and len({call["id"] for call in calls}) == 2
    for index, call in enumerate(calls):
        of_call = [piece for piece in pieces if piece.kind == "tool_call" and piece.index == index]
        assert "".join(piece.text for piece in of_call) == call["function"]["arguments"]
        assert len(of_call) > 5 and of_call[-1].call == call and not any(piece.call for piece in of_call[:-1])
        assert {piece.name for piece in of_call if piece.text} == {"weather"}
    assert reply.finish == "stop"


def test_tool_loop_encodes_as_published(model: pyflash.Model, session: pyflash.Session, say: Say) -> None:
    say(session, "hm</think>" + CALLS)
    reply = session.chat(QUESTION, "high", [WEATHER])
    list(reply)
    results = [{"role": "tool", "tool_call_id": call["id"], "content": f"{n} degrees"}
               for n, call in enumerate(reply.message["tool_calls"])]  # fmt: skip
    conversation = [*QUESTION, reply.message, *reversed(results)]
    prompt = chat.encode(chat.with_tools(conversation, [WEATHER]), thinking=True)
    assert "hm</think>" + CALLS in prompt
    assert prompt.index("0 degrees") < prompt.index("1 degrees")
    following = session.chat(conversation, "high", [WEATHER], max_tokens=1)
    # With tools the reasoning stays, so all that was there is still right, up to the answer's end.
    assert following.n_reused == reply.n_prompt + reply.n_generated - 1


@pytest.mark.parametrize(
    "text",
    [
        "\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=weather>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>",
        '\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="weather">\n<｜DSML｜parameter name="city" string="tr',
        '\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="weather">\n<｜DSML｜parameter name="n" string="false">{</｜DSML｜'
        "parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>",
        CALLS + "and more",
    ],
    ids=["name", "cut", "json", "text after"],
)
def test_broken_calls_are_reported_and_never_raised(session: pyflash.Session, say: Say, text: str) -> None:
    say(session, "Well." + text)
    reply = session.chat(QUESTION, tools=[WEATHER])
    pieces = list(reply)
    assert problems(pieces) and reply.finish == "stop" and reply.message["content"].startswith("Well.")
    list(session.chat([*QUESTION, reply.message, *QUESTION], tools=[WEATHER], max_tokens=2))


def test_call_within_the_reasoning_is_reported(session: pyflash.Session, say: Say) -> None:
    say(session, "let me see" + CALLS)
    reply = session.chat(QUESTION, think="high", tools=[WEATHER])
    pieces = list(reply)
    assert problems(pieces) and len(reply.message["tool_calls"]) == 2
    assert reply.message["reasoning_content"] == "let me see"


def test_anything_may_be_generated(model: pyflash.Model) -> None:
    """A random model, sampled from at random and often out of the tokens of the format: nothing raises."""
    rng = np.random.default_rng(3)
    favoured = model.tokenizer.encode(CALLS + "</think><think>", special=True)
    with model.session(context=1000) as session:
        evaluate = session.eval

        def favouring(tokens: Any, **options: Any) -> Any:
            logits = evaluate(tokens, **options)
            logits[rng.choice(favoured)] += 12
            return logits

        session.eval = favouring  # type: ignore[method-assign]
        for seed in range(12):
            reply = session.chat(QUESTION, ("off", "high", "max")[seed % 3], [WEATHER], max_tokens=80, seed=seed,
                                 draft="off")  # fmt: skip
            pieces = list(reply)
            assert reply.n_generated <= 80 and pieces[-1].finish == reply.finish is not None
            assert parts(pieces)["content"] == reply.message["content"]
            assert chat.THINK_BEGIN not in reply.message["content"] + reply.message["reasoning_content"]


# -- arguments --


@pytest.mark.parametrize(
    "arguments",
    [{"think": "hard"}, {"think": "low"}, {"tools": [{}]}, {"tools": "weather"}, {"release": "1999"}, {"think": None}],
    ids=str,
)
def test_bad_arguments(session: pyflash.Session, arguments: dict[str, Any]) -> None:
    with pytest.raises(pyflash.ArgumentError):
        session.chat(QUESTION, **arguments)


@pytest.mark.parametrize("messages", [[{"role": "robot", "content": "x"}], ["hello"], [{"role": "user", "content": 5}]])
def test_bad_messages(session: pyflash.Session, messages: Any) -> None:
    with pytest.raises(pyflash.ArgumentError):
        session.chat(messages)


def test_thinking_modes_write_the_published_prompts(model: pyflash.Model, session: pyflash.Session) -> None:
    for release, think, effort in (("preview", "off", None), ("preview", "high", "high"), ("preview", "max", "max"),
                                   ("0731", "low", "low"), ("0731", "high", "high"), ("0731", "max", "max")):
        reply = session.chat(QUESTION, think, release=release, max_tokens=1)
        list(reply)
        wanted = chat.segments(QUESTION, thinking=think != "off", effort=effort, release=release)
        assert session.tokens.tolist() == model.tokenizer.encode_segments(wanted)
        assert reply.n_prompt == session.position


def test_release_is_read_from_the_file(model: pyflash.Model, session: pyflash.Session) -> None:
    assert model.release == "preview"
    for release in ("preview", "0731"):
        assert release_of({"tokenizer.chat_template": chat_template(release)}.get) == release
    assert release_of({}.get) == "preview"
    list(session.chat(QUESTION, think="max", max_tokens=1))
    text = model.tokenizer.decode(session.tokens)
    model.release = "0731"
    try:
        list(session.chat(QUESTION, think="high", max_tokens=1))
    finally:
        model.release = "preview"
    assert model.tokenizer.decode(session.tokens) == text  # 0731 calls high what the preview calls max


def test_conversation_longer_than_the_context(model: pyflash.Model) -> None:
    with model.session(context=50) as session:
        with pytest.raises(pyflash.ContextFullError, match="larger context"):
            session.chat([{"role": "user", "content": "many words " * 50}])
        reply = session.chat([{"role": "user", "content": "few"}])
        list(reply)
        assert reply.finish in ("length", "stop")


# -- what is evaluated --


def test_conversation_is_evaluated_once(model: pyflash.Model, session: pyflash.Session, say: Say) -> None:
    opening = [{"role": "system", "content": "Be brief. " * 20}, *QUESTION]
    say(session, "Fine weather in both.")
    first = session.chat(opening)
    list(first)
    assert first.n_reused == 0 and session.position == first.n_prompt + first.n_generated - 1
    second = [*opening, first.message, {"role": "user", "content": "And tomorrow?"}]
    reply = session.chat(second, max_tokens=8, temperature=0)
    pieces = list(reply)
    assert reply.n_reused == first.n_prompt + first.n_generated - 1
    with model.session() as fresh:
        assert list(fresh.chat(second, max_tokens=8, temperature=0)) == pieces


def test_answers_in_unusual_tokens_are_known_too(model: pyflash.Model, session: pyflash.Session) -> None:
    """Random weights hardly ever write a text in the tokens that the tokenizer gives for it."""
    messages: list[dict[str, Any]] = [*QUESTION]
    known, unusual = 0, 0
    for seed in range(8):
        reply = session.chat(messages, max_tokens=25, seed=seed)
        assert reply.n_reused == known
        list(reply)
        # An answer that max_tokens ended has one token more than was evaluated, and no end.
        known = reply.n_prompt + reply.n_generated - 1
        content = reply.message["content"]
        unusual += model.tokenizer.encode(content) != session.tokens.tolist()[reply.n_prompt :]
        messages += [reply.message, {"role": "user", "content": f"and {seed}?"}]
        wanted = model.tokenizer.decode(model.tokenizer.encode_segments(chat.segments(messages)))
        given = session.align(model.tokenizer.encode_segments(chat.segments(messages)))
        assert model.tokenizer.decode(given) == wanted or "\ufffd" in content
    assert unusual > 4


def test_regenerating_needs_no_prefill(model: pyflash.Model, session: pyflash.Session) -> None:
    first = session.chat(QUESTION, think="high", max_tokens=400, seed=1)
    list(first)
    again = session.chat(QUESTION, think="high", max_tokens=20, seed=2)
    pieces = list(again)
    assert again.n_reused == again.n_prompt - 1
    with model.session() as fresh:
        assert list(fresh.chat(QUESTION, think="high", max_tokens=20, seed=2)) == pieces


def test_next_turn_drops_long_reasoning_without_prefill(session: pyflash.Session, say: Say) -> None:
    say(session, "long thoughts, " * 120 + "</think>short answer")
    first = session.chat([{"role": "system", "content": "Be brief. " * 200}, *QUESTION], think="high")
    list(first)
    assert first.n_generated > 350
    following = [{"role": "system", "content": "Be brief. " * 200}, *QUESTION, first.message, *QUESTION]
    second = session.chat(following, think="high", max_tokens=1)
    list(second)
    # The first answer now begins with "</think>" where "<think>" was.
    assert second.n_reused == first.n_prompt - 1


def test_another_question_after_a_long_answer_needs_no_prefill(session: pyflash.Session, say: Say) -> None:
    say(session, "many words, " * 150)
    first = session.chat(QUESTION)
    list(first)
    asked = [*QUESTION, first.message, {"role": "user", "content": "And then? " * 200}]
    list(session.chat(asked, max_tokens=300, seed=1))
    another = session.chat([*asked[:-1], {"role": "user", "content": "Why?"}], max_tokens=1)
    assert first.n_generated > 300 and another.n_reused == first.n_prompt + first.n_generated - 1
    assert len(list(another)) == 1


def test_session_without_checkpoints_chats_too(model: pyflash.Model) -> None:
    with model.session(checkpoints=0) as session:
        list(session.chat(QUESTION, max_tokens=5))
        assert session.memory.checkpoint_bytes == 0


# -- the Reply --


def test_closing_keeps_what_there_is(session: pyflash.Session, say: Say) -> None:
    say(session, "one two three four five six seven eight nine")
    with session.chat(QUESTION) as reply:
        shown = "".join(next(reply).text for _ in range(5))
    assert reply.message["content"] == shown != "" and reply.finish is None
    assert list(reply) == [] and reply.n_generated == 5
    following = session.chat([*QUESTION, reply.message, *QUESTION], max_tokens=3)
    list(following)
    assert following.n_reused >= reply.n_prompt + 3


def test_times_and_counts(session: pyflash.Session) -> None:
    reply = session.chat(QUESTION, max_tokens=30, seed=5)
    assert (reply.n_generated, reply.prompt_seconds, reply.generate_seconds) == (0, 0.0, 0.0)
    pieces = list(reply)
    assert 0 < reply.n_generated <= min(30, len(pieces)) and reply.prompt_seconds > 0 and reply.generate_seconds > 0
    assert reply.n_prompt == session.position - reply.n_generated + 1


def test_progress_counts_what_is_evaluated(session: pyflash.Session) -> None:
    calls: list[tuple[int, int]] = []
    messages = [{"role": "user", "content": "some words " * 100}]
    list(session.chat(messages, max_tokens=1, progress=lambda done, total: calls.append((done, total))))
    total = calls[0][1]
    assert total > 128 and calls == [(min(done, total), total) for done in range(64, total + 64, 64)]
    calls.clear()
    list(session.chat(messages, max_tokens=1, progress=lambda done, total: calls.append((done, total))))
    assert calls == [(1, 1)]


def test_parts_are_as_early_as_tokens(session: pyflash.Session, say: Say) -> None:
    """Each token gives a piece, also while text is held back."""
    ids = say(session, "hm</think>Just a moment." + CALLS)
    reply = session.chat(QUESTION, "high", [WEATHER])
    seen: list[int] = []
    for piece in reply:
        if reply.n_generated > len(seen):
            seen.append(piece.token)
    assert seen == ids
