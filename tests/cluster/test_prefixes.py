"""Which replica a request goes to: what its keys have in common with earlier ones, and what is done with that. Without Ray."""

from __future__ import annotations

from typing import Any

import pytest

from pyflash.cluster.prefix_index import Held, Loads, PrefixIndex, ranked
from pyflash.cluster.replica_metrics import merged
from pyflash.serve.metrics import Metrics
from pyflash.serve.prefix_keys import keys_of

SYSTEM = {"role": "system", "content": "You are an agent. " * 50}
FIRST, ANSWER, SECOND = (
    {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}, {"role": "user", "content": "Go on"})
TOOL = {"type": "function", "function": {"name": "ls", "parameters": {"type": "object", "properties": {}}}}


def keys(body: dict[str, Any] | None, path: str = "/v1/chat/completions", salt: bytes = b"", **headers: str) -> list[str]:
    found = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return keys_of({"path": path, "headers": found, "state": {"salt": salt}}, body)


def chat(*messages: dict[str, Any], **more: Any) -> list[str]:
    return keys({"model": "m", "messages": list(messages), **more})


def test_a_conversation_goes_on() -> None:
    first, second = chat(SYSTEM, FIRST), chat(SYSTEM, FIRST, ANSWER, SECOND)
    assert len(first) == 1 and first[0] == second[-1] and len(second) == 3
    assert chat(SYSTEM, FIRST, ANSWER, {"role": "user", "content": "Another way"})[1:] == second[1:]
    assert chat(SYSTEM, FIRST, max_tokens=5, temperature=0, stream=True) == first


def test_a_conversation_is_the_same_in_every_protocol() -> None:
    anthropic = keys({"model": "m", "max_tokens": 9, "system": SYSTEM["content"],
                      "messages": [FIRST, {"role": "assistant", "content": [{"type": "text", "text": "Hi."}]}, SECOND]},
                     "/v1/messages", anthropic_version="2023-06-01")  # fmt: skip
    ollama = keys({"model": "m", "messages": [SYSTEM, FIRST, ANSWER, SECOND]}, "/api/chat")
    assert anthropic == ollama == chat(SYSTEM, FIRST, ANSWER, SECOND)


def test_what_many_share_is_no_key() -> None:
    """Else every agent would go to the replica that had the first."""
    one, other = chat(SYSTEM, FIRST), chat(SYSTEM, SECOND)
    assert not set(one) & set(other)
    assert chat(SYSTEM) == []


def test_other_tools_and_other_keys_have_nothing_in_common() -> None:
    plain, tools = chat(SYSTEM, FIRST), chat(SYSTEM, FIRST, tools=[TOOL])
    mine = keys({"model": "m", "messages": [SYSTEM, FIRST]}, salt=b"mine")
    assert len({plain[0], tools[0], mine[0]}) == 3


def test_prompts_without_turns() -> None:
    text = "".join(map(str, range(2000)))
    long, longer = (keys({"model": "m", "prompt": text[:n]}, "/v1/completions") for n in (2048, 4000))
    assert len(long) == 2 and len(longer) == 4 and longer[2:] == long
    tokens = [keys({"model": "m", "prompt": list(range(n))}, "/v1/completions") for n in (1024, 1500)]
    assert tokens[1][1:] == tokens[0] and not set(tokens[0]) & set(long)


def test_the_pages_answers_have_a_name() -> None:
    name = "0" * 36
    asked = keys({"model": "m", "messages": [FIRST]}, x_pyflash_job=name)
    assert asked[0] == chat(FIRST)[0]
    assert asked[1:] == keys(None, f"/page/jobs/{name}") == keys({}, f"/page/jobs/{name}/stop")
    assert keys(None, f"/page/jobs/{name}", b"mine") != asked[1:]


@pytest.mark.parametrize("body", [None, {}, {"messages": 5}, {"messages": [{"role": "x"}]}, {"messages": [], "n": 9}])
def test_what_cannot_be_read_has_no_keys(body: Any) -> None:
    assert keys(body) == [] and keys(body, "/health") == []


# -- where keys are --


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_longest_beginning_wins() -> None:
    index = PrefixIndex(10)
    index.tell({"a": ["1", "2"], "b": ["3"]})
    index.sent("c", ["2", "1"])
    assert index.holders(["9", "3", "2"], ["a", "b", "c"]) == {"b"}
    assert index.holders(["2", "1"], ["a", "b", "c"]) == {"a", "c"}
    assert index.holders(["2", "1"], ["b"]) == index.holders(["9"], ["a", "b"]) == index.holders([], ["a"]) == set()


def test_what_was_sent_is_remembered_until_the_replica_tells() -> None:
    clock = Clock()
    index = PrefixIndex(10, clock)
    index.sent("a", ["1", "0"])
    assert index.holders(["1"], ["a"]) == {"a"} and index.holders(["0"], ["a"]) == set()
    clock.now = 9
    index.sent("a", ["2"])
    clock.now = 11
    assert index.holders(["1"], ["a"]) == set() and index.holders(["2"], ["a"]) == {"a"} and index.n_held("a") == 1
    index.tell({"a": ["1"]})
    assert index.holders(["1"], ["a"]) == {"a"} and index.n_held("a") == 2


def test_a_replica_tells_of_the_last_conversations() -> None:
    held = Held(2)
    for keys in (["1"], ["2", "1"], ["1"], [], ["3", "2"]):
        held.add(keys)
    assert held.keys() == ["1", "3"]


@pytest.mark.parametrize(
    "holders, loads, expected",
    [
        ([], {"a": 3, "b": 1, "c": 2}, ["b", "c", "a"]),  # the least loaded
        ([], {"a": 0, "b": 0, "c": 1}, ["b", "a", "c"]),  # of equals, the one with fewer conversations
        (["c"], {"a": 0, "b": 0, "c": 1}, ["c", "b", "a"]),  # the one that has the beginning
        (["c"], {"a": 0, "b": 1, "c": 2}, ["a", "b", "c"]),  # it would wait there, and another has a place
        (["c"], {"a": 2, "b": 2, "c": 5}, ["c", "b", "a"]),  # it would wait everywhere
        (["c"], {"c": 9}, ["c"]),
    ],
)
def test_ranks(holders: list[str], loads: dict[str, int], expected: list[str]) -> None:
    found = ranked(holders, loads, 2, {"a": 5, "b": 1, "c": 0}.__getitem__)
    assert [name for rank in found for name in rank] == expected


def test_requests_at_the_same_moment_count() -> None:
    clock = Clock()
    loads = Loads(10, clock)
    loads.chosen("1", "a")
    loads.chosen("2", "b")
    loads.chosen("2", "a")  # another try
    assert (loads.of("a"), loads.of("b")) == (2, 0)
    loads.sent("1", "a")
    loads.sent("2", "b")
    loads.chosen("3", "b")  # its client goes
    assert (loads.of("a"), loads.of("b")) == (1, 2)
    clock.now = 11
    loads.ended("1", "a")
    loads.ended("1", "a")
    assert (loads.of("a"), loads.of("b"), loads.of("c")) == (0, 1, 0)


# -- metrics --


def test_metrics_of_several() -> None:
    texts = {}
    for name, n in (("r1", 1), ('r"2', 2)):
        metrics = Metrics()
        metrics.add('requests_total{api="chat",code="200"}', n)
        metrics.first_token(n)
        texts[name] = metrics.text(slots_busy=n)
    text = merged(texts)
    assert 'pyflash_requests_total{api="chat",code="200",replica="r1"} 1\n' in text
    assert 'pyflash_requests_total{api="chat",code="200",replica="r\\"2"} 2\n' in text
    assert 'pyflash_slots_busy{replica="r1"} 1\n' in text
    assert 'pyflash_time_to_first_token_seconds_bucket{le="1",replica="r1"} 1\n' in text
    lines = text.splitlines()
    types = [line for line in lines if line.startswith("# TYPE")]
    assert len(types) == len(set(types)) == sum(line.startswith("# TYPE") for line in texts["r1"].splitlines())
    assert len(lines) - len(types) == sum(not line.startswith("#") for each in texts.values() for line in each.splitlines())
    family = ""
    for line in lines:  # each metric's samples stand together, below its type
        family = line.split(" ")[2] if line.startswith("# TYPE") else family
        assert line.startswith(("# TYPE", family))
