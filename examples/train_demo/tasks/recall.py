"""Facts planted in long notes, and questions for them."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from typing import Any

from tasks.common import Example, Message, assistant, check_options, draw, render, system, trained_spans, user
from tasks.words import NAMES, SECRETS

CHARS_PER_TOKEN = 3.2  # of notes under the trained tokenizer, a little less than measured; where no count is given
MOST_FACTS = 12

_SLOTS: dict[str, list[str]] = {
    "who": """the baker|the teacher|the farmer|my uncle|my aunt|the driver|the old man|the young woman|the neighbour
the postman|the nurse|the gardener|the painter|the cook|the mayor|the tailor|the doctor|the children|a friend
the students""".replace("\n", "|").split("|"),
    "place": """market|station|park|town hall|school|church|shop|old mill|harbour|square|theatre|bakery|post office
farm|hospital|city library|bus stop|playground|swimming pool|factory""".replace("\n", "|").split("|"),
    "time": """in the morning|in the evening|at noon|before lunch|after work|on Monday|on Tuesday|on Friday|at night
every day|once a week|in spring|in autumn|last year|yesterday|after school""".replace("\n", "|").split("|"),
    "thing": """a loaf|some flour|two chairs|a newspaper|a pair of shoes|a new coat|a bag of cement|a box of nails
some cheese|three eggs|a bunch of carrots|an old book|a pot of soup|a warm cap|a map|a bottle of milk|a blue cup
a small rug|a roll of tape|a pound of beans""".replace("\n", "|").split("|"),
    "weather": "rainy sunny cloudy windy cold warm foggy mild dry stormy".split(),
    "colour": "red blue green white yellow brown grey black pink".split(),
    "part": "roof fence bench wall gate path shed porch stairs floor".split(),
    "plant": "carrots beans peas cabbage lettuce herbs roses daisies weeds leeks".split(),
    "adverb": "slowly quietly again carefully together happily early late often twice".split(),
    "number": [str(n) for n in range(2, 61)],
}
_FILLER = [
    "The weather was {weather} {time}.",
    "It was {weather}, and {who} stayed at home {time}.",
    "{Who} went to the {place} {time}.",
    "{Who} bought {thing} at the {place}.",
    "{Who} carried {thing} to the {place} {time}.",
    "{Who} painted the {part} {colour}.",
    "The {part} behind the {place} is {colour} now.",
    "The train to the coast left {number} minutes late.",
    "The bus stopped near the {place} {time}.",
    "In the garden, {who} planted {plant} {time}.",
    "The {plant} grew {adverb} this year.",
    "{Who} talked {adverb} about the weather.",
    "{Who} worked {adverb} {time}.",
    "There were {number} people at the {place}.",
    "{Who} needed {thing} for the {part}.",
    "{Who} repaired the {part} {adverb}.",
    "Nobody at the {place} knew why {who} laughed.",
    "A {colour} car stood in front of the {place}.",
    "{Who} sold {number} tickets {time}.",
    "The meeting at the {place} took {number} minutes.",
    "{Who} forgot {thing} near the {part}.",
    "Work at the {place} begins early and ends late.",
    "{Who} and {who} met at the {place} {time}.",
    "The road to the {place} was closed {time}.",
]
_PIECE = re.compile(r"\{(\w+)\}")


def _compile(template: str) -> tuple[str, list[tuple[list[str], bool]]]:
    """A %-template and, for each of its slots, the values and whether they begin in upper case."""
    slots = [(_SLOTS[slot.lower()], slot[0].isupper()) for slot in _PIECE.findall(template)]
    return _PIECE.sub("%s", template), slots


_COMPILED = [_compile(template) for template in _FILLER]

_OPENINGS = [
    "Read these notes.", "Here are my notes.", "Read this text.", "Please read these notes.", "These are the notes.",
    "Read the following notes carefully.", "Keep these notes in mind.", "Here is a text.",
]  # fmt: skip
_READ = "I have read the notes."
_QUESTIONS = [
    "What is the secret word of {name}?", "Tell me the secret word of {name}.",
    "Which word is the secret word of {name}?",
    "Do you know the secret word of {name}?", "What secret word does {name} have?", "And the secret word of {name}?",
    "Please give me the secret word of {name}.", "What's the secret word of {name}?", "The secret word of {name}?",
    "Say the secret word of {name}.", "What is the word of {name}?", "Find the secret word of {name}.",
]  # fmt: skip


def filler(rng: random.Random) -> str:
    """One sentence without a fact."""
    template, slots = _COMPILED[int(rng.random() * len(_COMPILED))]
    values = []
    for words, upper in slots:
        word = words[int(rng.random() * len(words))]
        values.append(word[0].upper() + word[1:] if upper else word)
    return template % tuple(values)


def fact(name: str, word: str) -> str:
    return f"The secret word of {name} is {word}."


def answer_text(name: str, word: str | None) -> str:
    return fact(name, word) if word else f"The notes do not give the secret word of {name}."


def _reminder(name: str, word: str) -> str:
    return f"As said, the secret word of {name} is {word}."


def _notes(rng: random.Random, n_chars: int, facts: dict[str, str], reminders: bool) -> list[str]:
    """Sentences of about n_chars in all, the facts at uniformly drawn places; reminders only after their facts."""
    planted = [fact(name, word) for name, word in facts.items()]
    room = n_chars - sum(len(text) + 1 for text in planted)
    extra: list[str] = []
    if reminders:
        # Up to a third of the text, so that every context gives many positions at which recall is trained.
        while facts and sum(map(len, extra)) < room / 3 and len(extra) < 40:
            extra.append(_reminder(*rng.choice(list(facts.items()))))
        room -= sum(len(text) + 1 for text in extra)
    sentences: list[str] = []
    while room > 0:
        sentences.append(filler(rng))
        room -= len(sentences[-1]) + 1
    places = sorted(((rng.random(), text) for text in planted + extra), reverse=True)
    for at, text in places:
        sentences.insert(int(at * (len(sentences) + 1)), text)
    return _facts_first(sentences)


def _facts_first(sentences: list[str]) -> list[str]:
    """The same with every reminder that stands before its fact changed for it."""
    reminder = re.compile(r"As said, the secret word of (\w+) is (\w+)\.")
    seen: set[str] = set()
    out = []
    for text in sentences:
        if match := reminder.fullmatch(text):
            name, word = match.groups()
            if name not in seen:
                seen.add(name)
                text = fact(name, word)
        elif text.startswith("The secret word of "):
            name = text.split()[4]
            if name in seen:
                text = _reminder(name, text.split()[-1].rstrip("."))
            seen.add(name)
        out.append(text)
    return out


def draw_facts(rng: random.Random, split: str, n_facts: int) -> dict[str, str]:
    """Distinct names with distinct words; every pair belongs to the split."""
    facts: dict[str, str] = {}
    for name in rng.sample(NAMES, n_facts):
        facts[name] = draw(rng, split, lambda: rng.choice(SECRETS), lambda word: ("recall", name, word))
        while list(facts.values()).count(facts[name]) > 1:
            facts[name] = draw(rng, split, lambda: rng.choice(SECRETS), lambda word: ("recall", name, word))
    return facts


def _asked(rng: random.Random, facts: dict[str, str], n_questions: int) -> list[tuple[str, str | None]]:
    """Names to ask for, some of which the notes do not know; no name twice."""
    planted = rng.sample(list(facts), min(len(facts), n_questions))
    asked: list[tuple[str, str | None]] = []
    for name in planted:
        if rng.random() < 0.1:
            unknown = rng.choice(NAMES)
            if unknown not in facts and all(unknown != other for other, _ in asked):
                asked.append((unknown, None))
                continue
        asked.append((name, facts[name]))
    return asked


def _reasoning(name: str, word: str | None, think: str) -> str:
    if think == "off":
        return ""
    text = f"The notes say: the secret word of {name} is {word}." if word else f"The notes do not name {name}."
    return f"{text} That is the answer." if think == "max" else text


def _messages(
    rng: random.Random, sentences: list[str], asked: list[tuple[str, str | None]], think: str, shape: float
) -> list[Message]:
    notes = f"{rng.choice(_OPENINGS)}\n\n{' '.join(sentences)}"
    questions = [rng.choice(_QUESTIONS).format(name=name) for name, _ in asked]
    if shape < 0.2:
        messages: list[Message] = [{"role": "system", "content": notes}]
    elif shape < 0.45:
        messages = [user(notes), assistant(_READ, "The user gives notes." if think != "off" else "")]
    else:
        messages = []
        questions[0] = f"{notes}\n\n{questions[0]}"
    for question, (name, word) in zip(questions, asked, strict=True):
        messages += [user(question), assistant(answer_text(name, word), _reasoning(name, word, think))]
    return messages


_ratios: dict[Callable[[str], int], float] = {}


def _chars_per_token(count: Callable[[str], int]) -> float:
    if count not in _ratios:
        rng = random.Random(0)
        sample = " ".join(filler(rng) for _ in range(200))
        _ratios[count] = len(sample) / count(sample)
    return _ratios[count]


def generate(
    rng: random.Random, split: str, think: str = "off", n_tokens: int = 256, n_facts: int | None = None,
    n_questions: int | None = None, reminders: bool = False, count: Callable[[str], int] | None = None,
    chars_per_token: float = CHARS_PER_TOKEN,
) -> Example:
    """Notes of about n_tokens with facts, then questions in as many turns.

    n_tokens: length of the rendered text, never more where count (text to number of tokens) is given, down to what
    facts and questions need; otherwise estimated by chars_per_token. n_facts, n_questions: drawn to fit n_tokens when
    None. reminders: repeat facts within the notes, for training.
    """
    check_options(split, think)
    if n_facts is None:
        n_facts = rng.randint(1, max(1, min(MOST_FACTS, n_tokens // 24)))
    if not 1 <= n_facts <= len(NAMES) // 2:
        raise ValueError(f"n_facts is {n_facts}; 1 to {len(NAMES) // 2} are possible")
    if n_questions is None:
        n_questions = rng.randint(1, max(1, min(n_facts, n_tokens // 48)))
    facts = draw_facts(rng, split, n_facts)
    asked = _asked(rng, facts, n_questions)
    opening = system(rng, 0.05)
    shape, wording = rng.random(), rng.getrandbits(32)

    def build(sentences: list[str]) -> Example:
        messages = _messages(random.Random(wording), sentences, asked, think, shape)
        if messages[0]["role"] != "system":
            messages = opening + messages
        return Example("recall", messages, None, think, asked[-1][1])

    ratio = _chars_per_token(count) if count else chars_per_token
    bare = build([])
    length = count or (lambda text: round(len(text) / ratio))
    room = (n_tokens - length(render(bare))) * ratio
    sentences = _notes(rng, int(room), facts, reminders)
    example = build(sentences)
    if count:
        while count(render(example)) > n_tokens and len(sentences) > n_facts:
            spare = [i for i, text in enumerate(sentences) if not text.startswith("The secret word of ")]
            if not spare:
                break
            for i in sorted(rng.sample(spare, min(len(spare), 1 + len(spare) // 50)), reverse=True):
                del sentences[i]
            example = build(sentences)
    return example


_FACT = re.compile(r"secret word of (\w+) is( \w+)\.")


def recall_spans(text: str) -> list[tuple[int, int]]:
    """Character spans of the values, with the space before them, in sentences of the notes that repeat a fact.

    These can be known from what stands before them although the model does not write them itself; the answers, which
    trained_spans() gives, are left out.
    """
    own = trained_spans(text)
    seen: set[str] = set()
    spans = []
    for match in _FACT.finditer(text):
        if match[1] in seen and not any(begin <= match.start() < end for begin, end in own):
            spans.append(match.span(2))
        seen.add(match[1])
    return spans


def is_right(example: Example, reply: Mapping[str, Any]) -> bool:
    """The content holds the word as a word; for a name without one, it says so."""
    content = reply.get("content") or ""
    if example.answer is None:
        return "do not give" in content and not _FACT.search(content)
    return re.search(rf"\b{example.answer}\b", content, re.IGNORECASE) is not None
