"""Makes a text to measure importance on: conversations as the model's chat format writes them, one after the other.

    python scripts/make_corpus.py corpus.txt [--characters 1200000] [--seed 1] [--release preview]
    pyflash imatrix model.gguf --text corpus.txt --special -o model.imatrix.gguf

Synthetic: everything is put together from templates by a generator of random numbers. The same seed gives the same bytes,
and nothing is anybody's text. Licence: MIT, as this repository. It covers what the model is used for (thinking and not,
tools, code, JSON, sums, long documents, nine languages), but narrowly: wordings come again and again, and of the
vocabulary of 129,280 tokens it has some 5,300. Where there are texts of your own, add them.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyflash.chat import encoding

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER))

import corpus_code as code  # noqa: E402

RELEASES = ("preview", "0731")
SYSTEMS = (
    "You are a helpful assistant.",
    "Answer briefly.",
    "You are a careful engineer. Say what you do not know.",
    "You write for readers without prior knowledge.",
    "Reply in the user's language.",
    "Du bist ein hilfreicher Assistent.",
    "你是一个乐于助人的助手。",
    "Today is a working day; the user is in a hurry.",
)


@dataclass(frozen=True)
class Language:
    """Wordings in one language. Fields in braces are filled in: {n} and {m} numbers, {item}, {place}, {name}, {day}.

    talks: questions with their reasoning and answer. sum_*: the same of one sum: {a}, {b}, {c} = a * b, {d} = c + n.
    sentences stand for themselves, with `space` between them, as text that goes on.
    """

    code: str
    items: list[str]
    places: list[str]
    names: list[str]
    days: list[str]
    talks: list[list[str]]
    sum_asked: str
    sum_thought: str
    sum_answer: str
    sentences: list[str]
    space: str


_TEXTS = json.loads((FOLDER / "corpus_texts.json").read_text(encoding="utf-8"))
LANGUAGES = [Language(**each) for each in _TEXTS["languages"]]
ENGLISH = LANGUAGES[0]
SUBJECTS: list[str] = _TEXTS["subjects"]
OFFICES: list[str] = _TEXTS["offices"]
FINDINGS: list[str] = _TEXTS["findings"]
ADVICE: list[str] = _TEXTS["advice"]
SCIENCE: list[list[str]] = _TEXTS["science"]  # question, reasoning, answer


@dataclass
class Talk:
    """A conversation to encode. thinking: with its reasoning. tools: offered in it. schema: of the JSON asked for."""

    thinking: bool
    messages: list[dict[str, Any]] = field(default_factory=list)
    tools: list[dict[str, Any]] | None = None
    schema: dict[str, Any] | None = None

    def user(self, content: str) -> None:
        self.messages.append({"role": "user", "content": content})

    def assistant(self, thought: str, content: str, calls: list[dict[str, Any]] | None = None) -> None:
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if self.thinking:
            message["reasoning_content"] = thought
        if calls:
            message["tool_calls"] = calls
        self.messages.append(message)


def _fill(rng: random.Random, language: Language, *wordings: str) -> list[str]:
    """Templates with the same words in all of them."""
    a, b, n = rng.randint(3, 99), rng.randint(3, 99), rng.randint(2, 59)
    values = {
        "a": a,
        "b": b,
        "c": a * b,
        "d": a * b + n,
        "n": n,
        "m": rng.randint(12, 240),
        "item": rng.choice(language.items),
        "place": rng.choice(language.places),
        "name": rng.choice(language.names),
        "day": rng.choice(language.days),
    }
    return [each.format(**values) for each in wordings]


def _paragraph(rng: random.Random, language: Language, n_sentences: int) -> str:
    chosen = [rng.choice(language.sentences) for _ in range(n_sentences)]
    return language.space.join(_fill(rng, language, each)[0] for each in chosen)


# -- kinds of conversations --


def small_talk(rng: random.Random, talk: Talk) -> None:
    """A few turns, some of which change the language."""
    language = rng.choice(LANGUAGES)
    for _ in range(rng.randint(1, 4)):
        question, thought, answer = _fill(rng, language, *rng.choice(language.talks))
        talk.user(question)
        talk.assistant(thought, answer)
        if rng.random() < 0.2:
            language = rng.choice(LANGUAGES)


def sums(rng: random.Random, talk: Talk) -> None:
    language = rng.choice(LANGUAGES)
    for _ in range(rng.randint(1, 3)):
        if rng.random() < 0.5:
            question, thought, answer = _fill(
                rng, language, language.sum_asked, language.sum_thought, language.sum_answer
            )
        else:
            question, thought, answer = _long_sum(rng)
        talk.user(question)
        talk.assistant(thought, answer)


def _long_sum(rng: random.Random) -> tuple[str, str, str]:
    """With steps, and a check at the end."""
    kind = rng.randrange(4)
    if kind == 0:
        a, b = rng.randint(100, 9999), rng.randint(11, 999)
        parts = [(int(digit) * 10**i) for i, digit in enumerate(reversed(str(b))) if digit != "0"]
        steps = "\n".join(f"{a} × {part} = {a * part}" for part in parts)
        added = " + ".join(str(a * part) for part in parts)
        return (
            f"What is {a} * {b}?",
            f"Split {b} into {' + '.join(map(str, parts))}.\n{steps}\nSum: {added} = {a * b}.",
            f"{a} × {b} = **{a * b:,}**",
        )
    if kind == 1:
        x, m, n = rng.randint(-20, 30), rng.randint(2, 15), rng.randint(-90, 90)
        right = m * x + n
        sign = "+" if n >= 0 else "-"
        return (
            f"Solve {m}x {sign} {abs(n)} = {right} for x.",
            (
                f"Move {n} over: {m}x = {right} - ({n}) = {right - n}. Divide by {m}: x = {x}. Check: {m}*{x} ="
                f" {m * x}, {sign} {abs(n)} gives {right}. Right."
            ),
            f"$$x = \\frac{{{right - n}}}{{{m}}} = {x}$$",
        )
    if kind == 2:
        price, off = rng.randint(20, 900), rng.choice((5, 10, 12, 15, 20, 25, 30, 40))
        cut = price * off / 100
        return (
            f"A coat costs {price} euros and is reduced by {off} %. What do I pay?",
            f"{off} % of {price} is {price} * {off} / 100 = {cut:.2f}. {price} - {cut:.2f} = {price - cut:.2f}.",
            f"You pay {price - cut:.2f} euros.",
        )
    km, minutes = rng.randint(3, 400), rng.choice((12, 15, 20, 24, 30, 40, 45, 75, 90, 150))
    speed = km / minutes * 60
    return (
        f"A train needs {minutes} minutes for {km} km. How fast is it on average, in km/h and in m/s?",
        (
            f"{km} km in {minutes} min is {km}/{minutes} km a minute, times 60: {speed:.2f} km/h. Divided by 3.6:"
            f" {speed / 3.6:.2f} m/s."
        ),
        f"About {speed:.1f} km/h, which is {speed / 3.6:.1f} m/s.",
    )


def explanation(rng: random.Random, talk: Talk) -> None:
    question, thought, answer = rng.choice(SCIENCE)
    opening = rng.choice(
        (
            "",
            "",
            "I am preparing a talk for a mixed audience. ",
            "Short, please. ",
            "For a ten-year-old: ",
            f"My exam is on {rng.choice(ENGLISH.days)}. ",
        )
    )
    talk.user(opening + question)
    talk.assistant(thought, answer)
    if rng.random() < 0.6:
        subject = rng.choice(SUBJECTS)
        talk.user(f"And how does that matter for {subject}?")
        talk.assistant(
            f"A link between the subject and {subject}. Be concrete and do not invent figures.",
            f"Only indirectly. For {subject} the same reasoning applies: say what is measured, in what unit, and what"
            f" would change your mind. A practical next step is to {rng.choice(ADVICE)}.",
        )


def programming(rng: random.Random, talk: Talk) -> None:
    for _ in range(rng.randint(1, 2)):
        question, thought, answer = code.draw(rng)
        talk.user(question)
        talk.assistant(thought, answer)


def structured(rng: random.Random, talk: Talk) -> None:
    """Facts from a text as JSON."""
    language = rng.choice(LANGUAGES)
    rows = [
        {
            "name": rng.choice(language.names),
            "item": rng.choice(language.items),
            "count": rng.randint(1, 40),
            "price": round(rng.uniform(1, 300), 2),
            "paid": rng.random() < 0.5,
            "day": rng.choice(language.days),
        }
        for _ in range(rng.randint(1, 5))
    ]
    listed = "\n".join(
        f"{row['day']}: {row['name']} – {row['count']} × {row['item']} ({row['price']}"
        f" EUR){'' if row['paid'] else ' *'}"
        for row in rows
    )
    kinds = {
        "name": "string",
        "item": "string",
        "count": "integer",
        "price": "number",
        "paid": "boolean",
        "day": "string",
    }
    schema = {
        "type": "object",
        "properties": {
            "orders": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {key: {"type": kind} for key, kind in kinds.items()},
                    "required": list(kinds),
                },
            }
        },
        "required": ["orders"],
    }
    if rng.random() < 0.5:
        talk.schema = schema
    talk.user(f"Turn this list into JSON with the key orders; a star means not paid yet.\n\n{listed}")
    text = json.dumps({"orders": rows}, ensure_ascii=False, indent=rng.choice((None, 2)))
    talk.assistant(
        f"{len(rows)} lines, so {len(rows)} objects. Keep the words as they are.",
        text if talk.schema else f"```json\n{text}\n```",
    )


def _tool(name: str, about: str, **kinds: str) -> dict[str, Any]:
    properties = {key: {"type": kind, "description": key.replace("_", " ")} for key, kind in kinds.items()}
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": about,
            "parameters": {"type": "object", "properties": properties, "required": list(kinds)[:1]},
        },
    }


TOOLS = [
    _tool("get_weather", "Weather of a place on a day.", place="string", day="string"),
    _tool("search", "Searches the web and returns titles and short extracts.", query="string", limit="integer"),
    _tool("run_sql", "Runs a read-only query on the warehouse.", query="string"),
    _tool(
        "read_file",
        "Returns the lines of a file of the project.",
        path="string",
        first_line="integer",
        last_line="integer",
    ),
    _tool("send_message", "Sends a message to a person.", to="string", text="string", urgent="boolean"),
    _tool(
        "convert_currency",
        "Converts an amount at today's rate.",
        amount="number",
        from_currency="string",
        to_currency="string",
    ),
    _tool("book_room", "Books a meeting room.", room="string", start="string", minutes="integer", people="array"),
    _tool("python", "Runs Python code and returns what it prints.", code="string"),
]


def _call(rng: random.Random, language: Language) -> tuple[str, str, dict[str, Any], str, str]:
    """A request, the tool that it needs, its arguments, what it gives, and the answer."""
    place, day, name = rng.choice(language.places), rng.choice(language.days), rng.choice(language.names)
    number = rng.randint(2, 9000)
    subject = rng.choice(SUBJECTS)
    kind = rng.randrange(6)
    if kind == 0:
        low = rng.randint(-8, 20)
        result = {
            "place": place,
            "day": day,
            "low": low,
            "high": low + rng.randint(2, 14),
            "rain": round(rng.random(), 2),
        }
        return (
            f"{place}, {day}: do I need an umbrella?",
            "get_weather",
            {"place": place, "day": day},
            json.dumps(result, ensure_ascii=False),
            (
                f"{'Yes' if result['rain'] > 0.4 else 'Probably not'}: the chance of rain is {result['rain']:.0%}, with"
                f" {low} to {result['high']} °C."
            ),
        )
    if kind == 1:
        hits = [
            {"title": f"{subject.capitalize()} {2015 + i}", "extract": f"The figures {rng.choice(FINDINGS)}."}
            for i in range(3)
        ]
        return (
            f"Find recent figures on {subject}.",
            "search",
            {"query": f"{subject} statistics", "limit": 3},
            json.dumps(hits),
            "I found three reports:\n" + "\n".join(f"- **{hit['title']}**: {hit['extract']}" for hit in hits),
        )
    if kind == 2:
        query = (
            f"SELECT region, SUM(amount) AS total FROM orders WHERE year = {rng.randint(2010, 2026)} GROUP BY region"
            " ORDER BY total DESC;"
        )
        rows = "\n".join(
            f"{region}\t{rng.randint(100, 99999)}"
            for region in rng.sample(["north", "south", "east", "west", "coast"], 3)
        )
        return (
            "Which regions sold most that year?",
            "run_sql",
            {"query": query},
            f"region\ttotal\n{rows}",
            f"In descending order: {', '.join(line.split(chr(9))[0] for line in rows.splitlines())}.",
        )
    if kind == 3:
        return (
            f"Tell {name} that the meeting on {day} moves to room {number}.",
            "send_message",
            {"to": name, "text": f"The meeting on {day} moves to room {number}.", "urgent": rng.random() < 0.3},
            '{"sent": true}',
            f"Done, {name} has the message.",
        )
    if kind == 4:
        program = f"n = {number}\nprint(sum(d for d in range(1, n) if n % d == 0))"
        total = sum(d for d in range(1, number) if number % d == 0)
        return (
            f"What is the sum of the proper divisors of {number}?",
            "python",
            {"code": program},
            f"{total}\n",
            f"The sum is {total}.",
        )
    amount, rate = rng.randint(5, 5000), rng.uniform(0.5, 170)
    pair = rng.sample(["EUR", "USD", "JPY", "GBP", "CHF", "BRL", "CNY"], 2)
    return (
        f"How much are {amount} {pair[0]} in {pair[1]}?",
        "convert_currency",
        {"amount": amount, "from_currency": pair[0], "to_currency": pair[1]},
        json.dumps({"result": round(amount * rate, 2), "rate": round(rate, 4)}),
        f"{amount} {pair[0]} are {amount * rate:,.2f} {pair[1]} at a rate of {rate:.4f}.",
    )


def tool_use(rng: random.Random, talk: Talk) -> None:
    language = rng.choice(LANGUAGES)
    talk.tools = rng.sample(TOOLS, rng.randint(2, len(TOOLS)))
    offered = {each["function"]["name"] for each in talk.tools}
    for turn in range(rng.randint(1, 3)):
        asked, name, arguments, result, answer = _call(rng, language)
        talk.user(asked)
        if name not in offered:
            talk.assistant(
                f"This needs {name}, which is not among the tools.",
                "I have no tool for that here; I can only tell you how to find out.",
            )
            continue
        call_id = f"call_{turn}"
        function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
        talk.assistant(
            f"{name} gives that.",
            rng.choice(("", "", "Let me look that up.")),
            [{"id": call_id, "type": "function", "function": function}],
        )
        talk.messages.append({"role": "tool", "tool_call_id": call_id, "content": result})
        talk.assistant("The result is there, so I answer.", answer)


def document(rng: random.Random, talk: Talk) -> None:
    """A long document, and questions about single places in it."""
    language = rng.choice(LANGUAGES)
    subject = rng.choice(SUBJECTS)
    parts, facts = [f"# Report on {subject}\n"], []
    for section in range(1, rng.randint(6, 16)):
        value, office = rng.randint(10, 99999), rng.choice(OFFICES)
        facts.append((section, value, office))
        rows = "\n".join(
            f"| {rng.choice(language.places)} | {rng.randint(1, 999)} | {rng.uniform(0, 100):.1f} |"
            for _ in range(rng.randint(2, 6))
        )
        parts.append(
            f"## {section}. {rng.choice(FINDINGS).split(' ')[0].capitalize()} figures\n\n"
            f"{_paragraph(rng, language, rng.randint(3, 9))}\n\nAccording to {office}, {value:,} readings "
            f"{rng.choice(FINDINGS)}. {_paragraph(rng, ENGLISH, rng.randint(2, 6))}\n\n"
            f"| place | count | share |\n|---|---:|---:|\n{rows}\n\nIt is recommended to {rng.choice(ADVICE)}.\n"
        )
    section, value, office = rng.choice(facts)
    talk.user("\n".join(parts) + f"\n---\nHow many readings does section {section} report, and who reports them?")
    talk.assistant(
        f"Section {section}: {office}, {value:,} readings.",
        f"Section {section} reports {value:,} readings, according to {office}.",
    )
    talk.user("Summarise the document in three points.")
    points = "\n".join(
        f"- Section {number} ({each}): {amount:,} readings." for number, amount, each in rng.sample(facts, 3)
    )
    talk.assistant("Choose three sections and give their main figure.", points)


def writing(rng: random.Random, talk: Talk) -> None:
    """Prose to translate in parts or to go on with."""
    language, other = rng.sample(LANGUAGES, 2)
    template = rng.choice(language.talks)
    text = _paragraph(rng, language, rng.randint(4, 12))
    talk.user(
        rng.choice(
            (
                "Continue this text in the same language:",
                "Improve the style, keep the facts:",
                "Lies das und schreib weiter:",
                "请续写：",
                "Continue en gardant le ton :",
            )
        )
        + f"\n\n{text}"
    )
    talk.assistant(_fill(rng, language, template[1])[0], _paragraph(rng, language, rng.randint(4, 12)))
    if rng.random() < 0.4:
        talk.user(f"({other.code}) " + _fill(rng, other, rng.choice(other.talks)[0])[0])
        talk.assistant("Another language, another subject.", _paragraph(rng, other, 3))


def _made_up(rng: random.Random) -> str:
    """A word that nobody has used."""
    parts = (
        "ba",
        "cor",
        "del",
        "en",
        "fin",
        "gra",
        "hol",
        "ist",
        "jun",
        "kel",
        "lum",
        "mir",
        "nor",
        "osk",
        "pra",
        "quil",
        "ros",
        "sten",
        "tur",
        "ulm",
        "vex",
        "wyn",
        "xan",
        "yor",
        "zet",
    )
    word = "".join(rng.choice(parts) for _ in range(rng.randint(2, 4)))
    return word.capitalize() if rng.random() < 0.5 else word


def records(rng: random.Random, talk: Talk) -> None:
    """Lines of a log, with numbers and names of all kinds, and a question about one of them."""
    lines, marks = [], []
    for _ in range(rng.randint(8, 40)):
        mark = f"{rng.getrandbits(48):012x}"
        host = ".".join(str(rng.randint(1, 254)) for _ in range(4))
        stamp = (
            f"20{rng.randint(10, 29)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
            f"T{rng.randint(0, 23):02}:{rng.randint(0, 59):02}"
        )
        lines.append(
            rng.choice(
                (
                    (
                        f"{stamp} {rng.choice(('INFO', 'WARN', 'ERROR'))} [{_made_up(rng)}] {mark}"
                        f" {host}:{rng.randint(1, 65535)} {rng.uniform(0, 999):.3f} ms"
                    ),
                    (
                        f"{stamp} GET /{_made_up(rng)}/{rng.randint(1, 10**6)}?{_made_up(rng)}={mark} HTTP/2"
                        f" {rng.choice((200, 204, 301, 404, 500))}"
                    ),
                    (
                        f"{stamp} {_made_up(rng)}.{_made_up(rng)}({rng.uniform(-180, 180):.5f},"
                        f" {rng.uniform(-90, 90):.5f}) -> {mark}"
                    ),
                )
            )
        )
        marks.append((mark, stamp))
    mark, stamp = rng.choice(marks)
    talk.user("\n".join(lines) + f"\n\nWhen was {mark} written?")
    talk.assistant(f"Search for {mark}: the line begins with {stamp}.", f"At {stamp.replace('T', ' ')}.")


Kind = Callable[[random.Random, Talk], None]
# How often each is drawn, against the others.
SHARES: list[tuple[int, Kind]] = [
    (20, small_talk),
    (14, sums),
    (10, explanation),
    (20, programming),
    (8, structured),
    (16, tool_use),
    (4, document),
    (8, writing),
    (6, records),
]


def conversation(rng: random.Random, release: str) -> str:
    """One, as text with the special tokens of the chat format."""
    talk = Talk(thinking=rng.random() < 0.5)
    if rng.random() < 0.3:
        talk.messages.append({"role": "system", "content": rng.choice(SYSTEMS)})
    (kind,) = rng.choices([kind for _, kind in SHARES], [share for share, _ in SHARES])
    kind(rng, talk)
    messages: Any = talk.messages
    if talk.tools:
        messages = encoding.with_tools(messages, talk.tools)
    if talk.schema:
        messages = encoding.with_response_format(messages, talk.schema)
    effort = rng.choice((None, None, None, None, "high", "max")) if talk.thinking else None
    return encoding.encode(messages, thinking=talk.thinking, effort=effort, release=release, drop_thinking=False)


def corpus(characters: int, seed: int, release: str = "preview") -> str:
    """Conversations until there are so many characters."""
    rng = random.Random(seed)
    parts: list[str] = []
    total = 0
    while total < characters:
        parts.append(conversation(rng, release))
        total += len(parts[-1])
    return "".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--characters", type=int, default=1_200_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--release", choices=RELEASES, default="preview")
    options = parser.parse_args()
    text = corpus(options.characters, options.seed, options.release)
    options.out.write_bytes(text.encode("utf-8"))
    print(f"wrote {options.out}: {len(text):,} characters")


if __name__ == "__main__":
    main()
