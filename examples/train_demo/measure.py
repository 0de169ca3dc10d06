"""Measures a demonstration model: the share of right answers to held-back questions, decoded greedily.

    python examples/train_demo/measure.py MODEL.gguf --counts 200

An answer is right when the strict parser takes it, end of text included, and tasks.is_right() agrees.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import pyflash
from pyflash.engine.options import CACHES
import tasks

MAX_TOKENS = 320  # of an answer; the longest right ones have about 260
FACTS = 12  # in a text of recall, all of them asked for

Answers = list[list[int]]
Answerer = Callable[[Sequence[Sequence[int]]], Answers]  # from prompts to answers, in tokens


@dataclass(frozen=True)
class Row:
    """A row of the table. thinks: modes that take turns. n_tokens: length of the text in which facts are planted."""

    kind: str
    thinks: tuple[str, ...]
    n_tokens: int = 0


ROWS = {
    "arithmetic, off": Row("arithmetic", ("off",)),
    "arithmetic, high": Row("arithmetic", ("high",)),
    "arithmetic, max": Row("arithmetic", ("max",)),
    "recall, 1K": Row("recall", ("off",), 1024),
    "recall, 4K": Row("recall", ("off",), 4096),
    "recall, 16K": Row("recall", ("off",), 16384),
    "tools": Row("tools", ("off", "high")),
    "talk": Row("talk", ("off", "high")),
}
LONGEST = max(row.n_tokens for row in ROWS.values())
CONTEXT = LONGEST + 2 * MAX_TOKENS


@dataclass(frozen=True)
class Result:
    """answers: tokens, the end token included; right: one flag for each."""

    examples: list[tasks.Example]
    answers: Answers
    right: list[bool]
    seconds: float

    @property
    def share(self) -> float:
        return sum(self.right) / len(self.right)


# -- questions --


def questions(name: str, n: int, tokenizer: pyflash.Tokenizer, seed: int = 0,
              row: Row | None = None) -> list[tasks.Example]:
    """n held-back questions of a row, that of ROWS where none is given, the same for the same name, seed and tokenizer.

    Those of recall come in groups that share a text, one after the other.
    """
    row, rng = row or ROWS[name], random.Random(f"{name} {seed}")
    if row.kind == "recall":
        return list(itertools.islice(_recalls(row, rng, tokenizer), n))
    return [tasks.generate(row.kind, rng, "test", think=think)
            for think in itertools.islice(itertools.cycle(row.thinks), n)]


def _recalls(row: Row, rng: random.Random, tokenizer: pyflash.Tokenizer) -> Iterator[tasks.Example]:
    def count(text: str) -> int:
        return len(tokenizer.encode(text, special=True))

    for think in itertools.cycle(row.thinks):
        seed, n_tokens = rng.getrandbits(64), row.n_tokens
        for _ in range(2):  # again with the room that the other questions took
            group = list(_alone(tasks.generate(
                "recall", random.Random(seed), "test", think=think, n_tokens=n_tokens, n_facts=FACTS,
                n_questions=FACTS, count=count,
            )))
            n_tokens += row.n_tokens - max(count(tasks.render(example)) for example in group)
        yield from group


_ANSWER = re.compile(r"The secret word of \w+ is (\w+)\.")


def _alone(example: tasks.Example) -> Iterator[tasks.Example]:
    """The questions of a recall conversation for planted facts, each asked directly after the text."""
    messages = example.messages
    answers = [i for i, message in enumerate(messages)
               if message["role"] == "assistant" and "the secret word of" in message["content"].lower()]
    before = messages[: answers[0] - 1]
    text, gap, _ = messages[answers[0] - 1]["content"].rpartition("\n\n")  # where it stands in the first question
    for i in answers:
        if match := _ANSWER.fullmatch(messages[i]["content"]):
            question = messages[i - 1]["content"].rpartition("\n\n")[2]
            asked = {"role": "user", "content": f"{text}{gap}{question}"}
            yield replace(example, messages=[*before, asked, messages[i]], answer=match[1])


def prompts_of(examples: Sequence[tasks.Example], tokenizer: pyflash.Tokenizer) -> list[list[int]]:
    return [tokenizer.encode(tasks.render(example, with_answer=False), special=True) for example in examples]


# -- answers --


def answer(
    session: pyflash.Session, prompts: Sequence[Sequence[int]], max_tokens: int | None = None,
    pieces: Sequence[int] = (),
) -> Answers:
    """Greedy answers. What a prompt shares with the one before is not evaluated again.

    max_tokens: of an answer, None for MAX_TOKENS. pieces: evaluates prompts in calls of so many tokens, in turn, rather
    than at once.
    """
    answers = []
    for prompt, following in zip(prompts, [*prompts[1:], ()], strict=True):
        session.reuse(prompt)
        shared = common(prompt, following)
        if session.position < shared < len(prompt):
            _evaluate(session, prompt[session.position : shared], pieces)
            session.checkpoint()
        if pieces:
            _evaluate(session, prompt[session.position : -1], pieces)
        rest = prompt[session.position :]
        answers.append([piece.token for piece in session.generate(rest, max_tokens or MAX_TOKENS, temperature=0)])
    return answers


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the beginning that two prompts share."""
    return next((i for i, (a, b) in enumerate(zip(first, second)) if a != b), min(len(first), len(second)))


def _evaluate(session: pyflash.Session, tokens: Sequence[int], pieces: Sequence[int]) -> None:
    sizes = itertools.cycle(pieces or (len(tokens),))
    while tokens:
        n = next(sizes)
        session.eval(tokens[:n])
        tokens = tokens[n:]


# -- judgement --


def is_right(example: tasks.Example, tokens: Sequence[int], tokenizer: pyflash.Tokenizer) -> bool:
    text = tokenizer.decode(tokens, special=True)
    try:
        reply = pyflash.chat.parse(text, thinking=example.think != "off")
    except pyflash.FormatError:
        return False
    return tasks.is_right(example, reply)


def measure(examples: list[tasks.Example], tokenizer: pyflash.Tokenizer, answerer: Answerer) -> Result:
    started = time.monotonic()
    answers = answerer(prompts_of(examples, tokenizer))
    seconds = time.monotonic() - started
    right = [is_right(example, tokens, tokenizer) for example, tokens in zip(examples, answers, strict=True)]
    return Result(examples, answers, right, seconds)


# -- the program --


def table_line(name: str, result: Result) -> str:
    n = len(result.right)
    error = (result.share * (1 - result.share) / n) ** 0.5
    length = sum(map(len, result.answers)) / n
    return (f"{name:18}{sum(result.right):6} of {n:<5}{result.share:7.1%} ± {error:5.1%}"
            f"{length:9.1f} tokens each{result.seconds:8.1f} s")


def show_wrong(result: Result, tokenizer: pyflash.Tokenizer, most: int) -> None:
    triples = zip(result.examples, result.answers, result.right, strict=True)
    wrong = [(example, tokens) for example, tokens, right in triples if not right]
    for example, tokens in wrong[:most]:
        print(f"    {example.messages[-2]['content'][-120:]!r}\n      expected {example.answer!r}\n"
              f"      got {tokenizer.decode(tokens, special=True)[-300:]!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="GGUF file")
    parser.add_argument("--precision", choices=("fast", "exact"), default="fast")
    parser.add_argument("--cache-type", choices=CACHES, default="auto")
    parser.add_argument("--counts", type=int, default=100, metavar="N", help="questions in each row (default: 100)")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW",
                        help=f"some of: {'; '.join(ROWS)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--wrong", type=int, default=0, metavar="N", help="show up to N wrong answers of each row")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    args = parser.parse_args()
    shares = {}
    with pyflash.Model.open(args.model, precision=args.precision) as model, \
            model.session(context=CONTEXT, cache=args.cache_type) as session:
        for name in args.rows:
            examples = questions(name, args.counts, model.tokenizer, args.seed)
            result = measure(examples, model.tokenizer, lambda prompts: answer(session, prompts))
            shares[name] = {"right": sum(result.right), "of": len(result.right), "share": result.share}
            if not args.json:
                print(table_line(name, result), flush=True)
                show_wrong(result, model.tokenizer, args.wrong)
    if args.json:
        print(json.dumps({"model": args.model, "precision": args.precision, "cache_type": args.cache_type,
                          "seed": args.seed, "rows": shares, "done": True}))


if __name__ == "__main__":
    main()
