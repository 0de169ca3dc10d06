"""The rows on which the demonstration model is trained: what the loss looks at, and what they must never hold."""

from __future__ import annotations

import importlib
import random
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.oracle
pytest.importorskip("torch", reason="torch trains the demonstration model")
pytest.importorskip("tokenizers", reason="tokenizers reads its vocabulary")

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "train_demo"
FACT = re.compile(r"[Tt]he secret word of (\w+) is (\w+)\.")


@pytest.fixture(scope="module")
def mixture() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("mixture")


@pytest.fixture(scope="module")
def source(mixture: ModuleType, demo_checkpoint: Path) -> Any:
    return mixture.Mixture(demo_checkpoint / "tokenizer.json", seed=1)


def texts(source: Any, length: int, drilled: float, batches: int) -> Iterator[str]:
    for _ in range(batches):
        for row in source.batch(length, 2048, 0.5, drilled).tokens:
            yield source._tokenizer.decode(row.tolist(), skip_special_tokens=False)


@pytest.mark.parametrize("length", [256, 512, 2048])
def test_shapes(source: Any, length: int) -> None:
    batch = source.batch(length, 2048, 0.5)
    rows = max(1, 2048 // length)
    assert batch.tokens.shape == (rows, length + 1)
    assert batch.weights.shape == (rows, length)
    assert batch.positions.shape == (length,)
    assert batch.lookups.shape == (len(batch.lookups), 3) and len(batch.lookups) > 10


def test_same_seed_same_rows(mixture: ModuleType, demo_checkpoint: Path) -> None:
    first, second = (mixture.Mixture(demo_checkpoint / "tokenizer.json", seed=7) for _ in range(2))
    for _ in range(3):
        a, b = (source.batch(512, 2048, 0.1) for source in (first, second))
        assert all(getattr(a, name).equal(getattr(b, name)) for name in vars(a))


def test_positions_skip_whole_groups(source: Any) -> None:
    skipped = 0
    for _ in range(20):
        positions = source.batch(1024, 1024, 0.9).positions
        steps = positions.diff()
        jumps = (steps != 1).nonzero().flatten()
        assert all((place + 1) % 128 == 0 and (steps[place] - 1) % 128 == 0 for place in jumps)
        assert positions[0] == 0 and positions[-1] < 16384
        skipped += len(jumps) > 0
    assert 3 <= skipped <= 17


def test_full_weight_is_what_the_assistant_writes(mixture: ModuleType, source: Any) -> None:
    import tasks

    for kind in ("arithmetic", "tools", "talk"):
        for _ in range(20):
            ids, weights, _ = source._document(kind, 500)
            text = source._tokenizer.decode(ids, skip_special_tokens=False)
            written = "".join(text[a:b] for a, b in tasks.trained_spans(text))
            counted = source._tokenizer.decode([i for i, w in zip(ids, weights, strict=True) if w == 1.0],
                                               skip_special_tokens=False)  # fmt: skip
            assert counted == written
            assert set(weights) <= {0.0, mixture.CONTEXT_WEIGHT, 1.0}


@pytest.mark.parametrize("kind", ["words", "facts"])
def test_drills_count_what_came_before(source: Any, kind: str) -> None:
    for _ in range(10):
        ids, weights, _ = source._drill(256, kind)
        counted = [i for i, w in enumerate(weights) if w]
        assert len(counted) > 15
        for i in counted:
            assert ids[i + 1] in ids[: i + 1]


def test_drills_of_sums_count_the_results(source: Any) -> None:
    ids, weights, _ = source._drill(256, "sums")
    text = "".join(source._tokenizer.decode([token]) if weight else "_"
                   for token, weight in zip(ids[1:], weights, strict=True))  # fmt: skip
    assert len(re.findall(r"_+ \d+\.", text)) > 15 and set(re.sub(r"_+ \d+\.", "", text)) <= set("_ 0123456789")


def test_drills_of_arguments_count_what_is_copied(source: Any) -> None:
    ids, weights, pairs = source._drill(256, "arguments")
    counted = {i for i, weight in enumerate(weights) if weight}
    assert len(counted) > 5 and counted == {query for query, _ in pairs if query < 256}
    within = [(ids[query + 1], ids[place]) for query, place in pairs if query < 256]
    assert sum(copy == original for copy, original in within) > 0.8 * len(within)
    for copy, original in within:  # the same text, but perhaps without its space, and then in other pieces
        one, other = (source._tokenizer.decode([token]).strip() for token in (copy, original))
        assert one in other or other in one
    text = source._tokenizer.decode(ids, skip_special_tokens=False)
    assert "<｜DSML｜invoke" in text and "Available Tool Schemas" not in text


def test_lookups_stand_where_the_next_token_does(source: Any) -> None:
    """Of facts and of what is copied; but whether to call a tool is to be looked up at its name."""
    seen = {True: 0, False: 0}
    for length in (256, 512):
        for drilled in (0.0, 1.0):
            for _ in range(10):
                batch = source.batch(length, 2048, 0.1, drilled)
                for row, query, place in batch.lookups.tolist():
                    assert 0 <= place <= query < length
                    seen[bool(batch.tokens[row, query + 1] == batch.tokens[row, place])] += 1
    assert seen[True] > 1000 and seen[False] < 0.1 * seen[True]


def test_held_back_facts_never_occur(source: Any) -> None:
    common = importlib.import_module("tasks.common")
    seen = 0
    for text in texts(source, 512, 0.4, 40):
        for name, word in FACT.findall(text):
            assert not common.held_back("recall", name, word)
            seen += 1
    assert seen > 500


def test_held_back_sums_never_occur(source: Any) -> None:
    tasks = importlib.import_module("tasks")
    rng = random.Random(3)
    held = {tasks.generate("arithmetic", rng, "test").messages[-1]["content"] for _ in range(300)}
    rows = "\n".join(texts(source, 256, 0.0, 60))
    assert not [answer for answer in held if f"</think>{answer}" in rows]
