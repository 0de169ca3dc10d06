"""The demonstration model's training data and its tokenizer."""

from __future__ import annotations

import copy
import importlib.util
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pyflash import chat

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "train_demo"
KINDS = ("arithmetic", "recall", "tools", "talk")
THINK = ("off", "high", "max")
VOCAB = 3072


@pytest.fixture(scope="module", autouse=True)
def on_path() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield


@pytest.fixture(scope="module")
def tasks(on_path: None) -> ModuleType:
    return importlib.import_module("tasks")


def draw(tasks: ModuleType, kind: str, number: int, split: str = "test", seed: int = 0, **options: Any) -> list[Any]:
    rng = random.Random(seed)
    options.setdefault("think", None)
    examples = []
    for i in range(number):
        think = options["think"] or THINK[i % 3]
        examples.append(tasks.generate(kind, rng, split, **{**options, "think": think}))
    return examples


def reply(tasks: ModuleType, example: Any) -> dict[str, Any]:
    """What the parser makes of the answer that the example holds."""
    prompt, whole = tasks.render(example, with_answer=False), tasks.render(example)
    assert whole.startswith(prompt)
    return chat.parse(whole[len(prompt) :], thinking=example.think != "off")


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_examples(tasks: ModuleType, kind: str) -> None:
    assert draw(tasks, kind, 60) == draw(tasks, kind, 60)
    assert draw(tasks, kind, 60) != draw(tasks, kind, 60, seed=1)


@pytest.mark.parametrize("split", ("train", "test"))
@pytest.mark.parametrize("kind", KINDS)
def test_own_answer_is_right(tasks: ModuleType, kind: str, split: str) -> None:
    for example in draw(tasks, kind, 600, split):
        parsed = reply(tasks, example)
        last = example.messages[-1]
        assert tasks.is_right(example, parsed), (example, parsed)
        assert parsed["content"] == last["content"]
        assert bool(parsed["reasoning_content"]) == (example.think != "off")
        assert len(parsed["tool_calls"]) == len(last.get("tool_calls", []))


@pytest.mark.parametrize("kind", ("arithmetic", "recall", "talk"))
def test_altered_answers_are_wrong(tasks: ModuleType, kind: str) -> None:
    def other_number(text: str) -> str:
        return re.sub(r"\d+\.$", lambda match: f"{int(match[0][:-1]) + 1}.", text)

    changes: dict[str, list[Callable[[str], str]]] = {
        "arithmetic": [other_number, lambda text: "I do not know.", lambda text: ""],
        "recall": [lambda text: "The secret word of Anna is xylophone.", lambda text: "I do not know."],
        "talk": [lambda text: text + " Or so.", lambda text: "Maybe.", lambda text: ""],
    }
    for example in draw(tasks, kind, 200):
        for change in changes[kind]:
            parsed = reply(tasks, example)
            assert not tasks.is_right(example, parsed | {"content": change(parsed["content"])}), example


def test_arithmetic_wants_reasoning_when_thinking(tasks: ModuleType) -> None:
    for example in draw(tasks, "arithmetic", 30, think="high"):
        assert not tasks.is_right(example, reply(tasks, example) | {"reasoning_content": " "})


def test_altered_calls_are_wrong(tasks: ModuleType) -> None:
    n_calls = n_plain = 0
    for example in draw(tasks, "tools", 400):
        parsed = reply(tasks, example)
        if "content" in example.answer:
            assert not tasks.is_right(example, parsed | {"content": parsed["content"] + "!"})
        elif example.answer["call"] is None:
            n_plain += 1
            any_call = {"function": {"name": example.tools[0]["function"]["name"], "arguments": "{}"}}
            assert not tasks.is_right(example, parsed | {"tool_calls": [any_call]})
        else:
            n_calls += 1
            assert not tasks.is_right(example, parsed | {"tool_calls": [], "content": "Yes."})
            assert not tasks.is_right(example, parsed | {"tool_calls": parsed["tool_calls"] * 2})
            named = copy.deepcopy(parsed)
            named["tool_calls"][0]["function"]["name"] += "_now"
            assert not tasks.is_right(example, named)
            for key, value in example.answer["call"]["arguments"].items():
                # A number as text is another argument.
                changed = example.answer["call"]["arguments"] | {key: str(value) if isinstance(value, int) else "x"}
                other = copy.deepcopy(parsed)
                other["tool_calls"][0]["function"]["arguments"] = json.dumps(changed)
                assert not tasks.is_right(example, other)
    assert n_calls > 100 and n_plain > 60


def contents(example: Any) -> set[Any]:
    """What of an example must be in one split only."""
    asked = [message["content"] for message in example.messages if message["role"] == "user"]
    if example.kind == "arithmetic":
        return {tuple(re.findall(r"\d+|[-+*]", example.messages[-1]["content"])[:3])}
    if example.kind == "recall":
        notes = " ".join(message["content"] for message in example.messages)
        return set(re.findall(r"secret word of (\w+) is (\w+)\.", notes))
    if example.kind == "tools":
        calls = [message["tool_calls"][0] for message in example.messages if message.get("tool_calls")]
        few = ("turn_on_light", "get_stock")
        return {
            (call["function"]["name"], call["function"]["arguments"])
            for call in calls
            if call["function"]["name"] not in few
        }
    fallback = importlib.import_module("tasks.talk_data").FALLBACK
    return {asked[-1]} if example.answer != (fallback,) else set()


def test_copies_are_what_stands_before(tasks: ModuleType) -> None:
    found = {}
    for kind in ("arithmetic", "tools"):
        for example in draw(tasks, kind, 300, "train"):
            text = tasks.render(example)
            for copy_at, original, n in tasks.copies(text, example):
                assert original + n <= copy_at
                same = text[copy_at : copy_at + n] == text[original : original + n]
                found[kind, same] = found.get((kind, same), 0) + 1
    assert found["arithmetic", True] > 2000 and ("arithmetic", False) not in found
    # Only whether to call at all is looked up at something else, the tool's name.
    assert found["tools", True] > 4 * found["tools", False] > 400


def test_copies_of_a_sum(tasks: ModuleType) -> None:
    common = importlib.import_module("tasks.common")
    arithmetic = importlib.import_module("tasks.arithmetic")
    messages = [common.user("Subtract 75 from 203."),
                common.assistant("203 - 75 = 128.", arithmetic.reasoning(203, "-", 75, "high"))]  # fmt: skip
    example = tasks.Example("arithmetic", messages, None, "high", 128)
    text = tasks.render(example)
    found = [(text[:copied + n][-9:], text[: original + n][-6:]) for copied, original, n in tasks.copies(text, example)]
    assert found == [
        ("think>203", "om 203"), ("203 - 075", "act 75"), (". Ones: 3", "nk>203"), ("es: 3 - 5", " - 075"),
        (". Tens: 0", "ink>20"), ("ns: 0 - 7", "3 - 07"), ("ndreds: 2", "hink>2"), ("ds: 2 - 0", "03 - 0"),
        ("0. So 128", "rite 8"), (" 0. So 12", "rite 2"), ("w 0. So 1", "rite 1"), ("think>203", "om 203"),
        (">203 - 75", "act 75"), (" 75 = 128", "So 128"),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_splits_are_disjoint(tasks: ModuleType, kind: str) -> None:
    seen: dict[str, set[Any]] = {}
    for split in ("train", "test"):
        seen[split] = set().union(*(contents(example) for example in draw(tasks, kind, 3000, split)))
        assert len(seen[split]) > 100
    assert not seen["train"] & seen["test"]


def test_topics_of_the_test_split_are_never_trained(tasks: ModuleType) -> None:
    talk, topics = importlib.import_module("tasks.talk"), importlib.import_module("tasks.words").TOPICS
    rng = random.Random(0)
    asked = {split: [talk.fallback(rng, split).question for _ in range(1500)] for split in ("train", "test")}
    common = importlib.import_module("tasks.common")
    held = [topic for topic in topics if common.held_back("topic", topic)]
    assert 15 < len(held) < 80
    for question in asked["test"]:
        assert any(topic.lower() in question.lower() for topic in held), question
    trained = set(re.findall(r"\w+", " ".join(asked["train"])))
    assert not trained & set(held)


def test_reasoning_is_true_step_by_step(tasks: ModuleType) -> None:
    """Every equation within the reasoning holds, and its last result is the answer."""
    for example in draw(tasks, "arithmetic", 900, "train"):
        text = example.messages[-1].get("reasoning_content", "")
        for left, right in re.findall(r"([\d+*][\d +*-]*) = (\d+)", text):
            left = re.sub(r"\b0+(\d)", r"\1", left)
            assert eval(left) == int(right), (left, right, text)  # noqa: S307 - digits and signs only
        if text:
            assert int(re.findall(r"So (\d+)\.", text)[0]) == example.answer
            assert text.endswith("Right.") == (example.think == "max")


def test_recall_plants_every_fact_before_it_is_asked_for(tasks: ModuleType) -> None:
    n_unknown = 0
    for example in draw(tasks, "recall", 150, n_tokens=1500, n_facts=8, n_questions=3, reminders=True):
        text = tasks.render(example)
        name = re.search(r"secret word of (\w+)", example.messages[-1]["content"])
        assert name
        notes = text[: text.index(chat.ASSISTANT)]
        if example.answer is None:
            n_unknown += 1
            assert name[1] not in re.findall(r"secret word of (\w+) is ", text)
        else:
            assert f"The secret word of {name[1]} is {example.answer}." in notes
        assert len(set(re.findall(r"The secret word of (\w+) is", notes))) == 8
        assert notes.count("The secret word of ") - notes.count("?") <= 9  # reminders have a wording of their own
    assert 3 < n_unknown < 40


def test_recall_facts_lie_everywhere(tasks: ModuleType) -> None:
    depths = []
    for example in draw(tasks, "recall", 300, think="off", n_tokens=800, n_facts=1, n_questions=1):
        text = tasks.render(example)
        if example.answer:
            depths.append(text.index("The secret word of ") / text.index(chat.ASSISTANT))
    quarters = [sum(q <= 4 * depth < q + 1 for depth in depths) / len(depths) for q in range(4)]
    assert all(0.15 < share < 0.35 for share in quarters), quarters


def test_recall_keeps_to_its_length(tasks: ModuleType) -> None:
    for n_tokens in (64, 300, 2000, 9000):
        for example in draw(tasks, "recall", 4, think="off", n_tokens=n_tokens, n_facts=2, n_questions=1, count=len):
            assert 0.5 * n_tokens < len(tasks.render(example)) <= max(n_tokens, 330)
        estimated = draw(tasks, "recall", 4, think="off", n_tokens=n_tokens + 100, n_facts=2, n_questions=1)
        assert all(2.4 < len(tasks.render(example)) / (n_tokens + 100) < 3.6 for example in estimated)


def test_recall_spans_are_values_said_before(tasks: ModuleType) -> None:
    found = 0
    for example in draw(tasks, "recall", 60, n_tokens=800, n_facts=4, reminders=True):
        text = tasks.render(example)
        own = tasks.trained_spans(text)
        for begin, end in tasks.recall_spans(text):
            found += 1
            name = text[:begin].split()[-2]
            assert f"The secret word of {name} is{text[begin:end]}." in text[:begin]
            assert not any(first <= begin < last for first, last in own)
    assert found > 300
    plain = draw(tasks, "recall", 20, n_tokens=800, n_facts=4, reminders=False)
    assert not any(tasks.recall_spans(tasks.render(example)) for example in plain)


@pytest.mark.parametrize("kind", KINDS)
def test_trained_spans_are_what_the_model_writes(tasks: ModuleType, kind: str) -> None:
    for example in draw(tasks, kind, 90):
        text = tasks.render(example)
        spans = tasks.trained_spans(text)
        replies = [message for message in example.messages if message["role"] == "assistant"]
        assert len(spans) == len(replies)
        for (begin, end), message in zip(spans, replies, strict=True):
            assert text[:begin].endswith((chat.ASSISTANT + chat.THINK_BEGIN, chat.ASSISTANT + chat.THINK_END))
            assert message["content"] in text[begin:end] and text[begin:end].endswith(chat.EOS)
            assert text[begin:end].count(chat.EOS) == 1 and chat.USER not in text[begin:end]
        assert text[spans[-1][0] : spans[-1][1]] == text[len(tasks.render(example, with_answer=False)) :]


def test_a_question_fits_at_most_one_tool(tasks: ModuleType) -> None:
    """With tools for sums or translations at hand, nothing of that sort goes without a call."""
    for example in draw(tasks, "tools", 3000, "train", think="off"):
        names = {tool["function"]["name"] for tool in example.tools}
        question = next(message["content"] for message in example.messages if message["role"] == "user")
        if example.answer == {"call": None}:
            assert not ("calculate" in names and re.search(r"\d+ ?[-+*/x] ?\d", question)), question
            assert not ("translate" in names and "translate" in question.lower()), question


def test_bad_options(tasks: ModuleType) -> None:
    rng = random.Random(0)
    for options in ({"kind": "poems"}, {"split": "dev"}, {"think": "low"}):
        with pytest.raises(ValueError, match="no (kind|split|thinking mode)"):
            tasks.generate(**{"kind": "talk", "rng": rng, "split": "train", **options})
    with pytest.raises(ValueError, match="n_facts is 0"):
        tasks.generate("recall", rng, "train", n_facts=0)


@pytest.fixture(scope="module")
def tokenizer_folder(on_path: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("tokenizer")
    subprocess.run([sys.executable, FOLDER / "tokenizer.py", folder, "--vocab", str(VOCAB)], check=True, timeout=300)
    return folder


def test_tokenizer_too_small(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    command = [sys.executable, FOLDER / "tokenizer.py", tmp_path / "out", "--vocab", "500"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and done.stderr.startswith("error: a vocabulary of 500 is too small")
    assert done.stderr.count("\n") == 1 and not (tmp_path / "out").exists()


def test_tokens_of_words_and_digits(tokenizer_folder: Path, tasks: ModuleType) -> None:
    from tokenizers import Tokenizer

    words = importlib.import_module("tasks.words")
    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == VOCAB

    def tokens(text: str) -> list[str]:
        return tokenizer.encode(text, add_special_tokens=False).tokens

    for word in words.NAMES + words.SECRETS:
        assert len(tokens(" " + word)) == 1, word
    assert tokens("1234567") == list("1234567")
    capital = words.CITIES + words.RECEIVERS + words.TITLE_FIRST + words.SYMBOLS + words.CURRENCIES + words.LANGUAGES
    values = capital + words.DAYS + ["I am late"]
    # A few share their beginning with a word that has its space in the token (" A", " Frank").
    alike = [value for value in values if tokens(f" {value}")[1:] == tokens(f'">{value}')[1:] == tokens(value)]
    assert len(alike) > 0.9 * len(values), set(values) - set(alike)
    for text in words.PHRASES:
        assert tokens(f'"{text}')[1:] == tokens(f'">{text}')[1:], text


def test_pyflash_tokenizes_alike(tokenizer_folder: Path, tasks: ModuleType, tmp_path: Path) -> None:
    """A checkpoint with this tokenizer, converted, gives the ids of the reference library."""
    import pyflash
    from tokenizers import Tokenizer

    from gguf_export.convert import ConvertOptions, convert
    from gguf_export.synthetic import make_config, write_checkpoint

    config = make_config("tiny", vocab_size=VOCAB, num_hidden_layers=2, num_nextn_predict_layers=0)
    checkpoint = write_checkpoint(tmp_path / "checkpoint", config, drafts=False, tokenizer=False)
    for path in tokenizer_folder.iterdir():
        (checkpoint / path.name).write_bytes(path.read_bytes())
    convert(checkpoint, tmp_path / "model.gguf", ConvertOptions())
    reference = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    with pyflash.Model.open(tmp_path / "model.gguf") as model:
        for kind in KINDS:
            for example in draw(tasks, kind, 125, "train"):
                text = tasks.render(example)
                ids = model.tokenizer.encode(text, special=True)
                assert ids == reference.encode(text, add_special_tokens=False).ids
                assert model.tokenizer.decode(ids, special=True) == text
