"""A user's program, for the type checker: it has to pass as it stands, and is never run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyflash
from pyflash import chat


def likeliest(session: pyflash.Session, tokens: list[int]) -> int:
    logits: npt.NDArray[np.float32] = session.eval(tokens, progress=lambda done, total: print(done / total))
    return int(logits.argmax())


def together(one: pyflash.Session, two: pyflash.Session) -> npt.NDArray[np.float32]:
    first, second = pyflash.eval_many([(one, [1, 2]), (two, np.arange(3))], "all", keep=False)
    for session in (one, two):
        session.keep(min(1, session.waiting))
    results = pyflash.eval_many([(one, [1]), (two, [2])], return_errors=True)
    if any(isinstance(result, pyflash.CancelledError) for result in results):
        one.rollback(1)
    return first + second


def words(session: pyflash.Session, prompt: npt.NDArray[np.int32]) -> Iterator[str]:
    options: pyflash.SamplingOptions = {"temperature": 0.7, "top_k": 40, "seed": None}
    pieces = session.generate(prompt, max_tokens=5, stop=["\n"], logprobs=2, **options)
    for piece in pieces:
        alternatives: tuple[pyflash.TokenLogprob, ...] = piece.top
        if piece.finish == "stop" and alternatives[0].logprob > piece.logprob:
            pieces.close()
        yield piece.text


def answer(session: pyflash.Session, messages: list[chat.Message]) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": "now"}}]
    with session.chat(messages, "high", tools, response_format={"type": "json_object"}, min_p=0.05) as reply:
        for piece in reply:
            if piece.kind == "tool_call" and piece.call is not None:
                print(piece.index, piece.name, piece.call["function"], piece.problem)
            elif piece.kind == "reasoning":
                print(piece.text)
    speed: float = reply.n_generated / reply.generate_seconds
    print(speed, reply.n_prompt - reply.n_reused, reply.finish)
    return reply.message


async def answer_async(session: pyflash.Session, messages: list[chat.Message]) -> str:
    text = ""
    async with session.chat(messages, think="high") as reply:
        async for piece in reply:
            kind: str = piece.kind
            text += kind + piece.text
            if len(text) > 1000:
                reply.cancel()
    async for part in session.generate([1, 2], 5):
        text += part.text
    await reply.aclose()
    return text


def cancelled(reply: pyflash.Reply, generation: pyflash.Generation) -> None:
    reply.cancel()
    generation.cancel()
    try:
        piece: pyflash.ChatPiece = next(reply)
        print(piece.call, next(generation).token)
    except (pyflash.CancelledError, pyflash.AnswerError) as error:
        print(error)


def main() -> None:
    with pyflash.Model.open("model.gguf", threads=4) as model, model.session(context=4096) as session:
        release: str = model.release
        ids: list[int] = model.tokenizer.encode("text" + release)
        session.checkpoint()
        kept: int = session.reuse(ids)
        session.note = b"note" + session.note
        total: int = session.memory.cache_bytes + session.memory.checkpoint_bytes + kept
        grammar: pyflash.Grammar = pyflash.Grammar.json_schema({"type": "array"})
        print(total, [piece.token for piece in session.generate(ids, grammar=grammar)])
        try:
            session.save("file")
        except pyflash.FileError as error:
            print(error)


def mistakes(session: pyflash.Session) -> None:
    session.generate([1], temprature=1.0)  # type: ignore[call-arg]
    session.generate("text")  # type: ignore[arg-type]
    session.generate([1], temperature="hot")  # type: ignore[arg-type]
    session.chat("hello")  # type: ignore[arg-type]
    session.capacity = 5  # type: ignore[misc]
