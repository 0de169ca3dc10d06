"""Tries an export of the demo model in the Ollama of this machine, and prints a table of what works.

    python scripts/check_ollama.py [--ollama PROGRAM] [--json]

Starts an Ollama of its own on a free port, with its store in a temporary folder: your models are not touched. Exit code 0
when everything works, 1 when something does not, 2 where there is no ollama.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyflash
from gguf_export.convert import ConvertOptions, convert
from gguf_export.ollama import export_ollama
from pyflash import demo

START_SECONDS, ANSWER_SECONDS = 60, 300
SUM, RIGHT = "What is 347 + 285?", "632"
TOOLS = [{"type": "function", "function": {
    "name": "calculate",
    "description": "Computes an expression of numbers with + - * / and parentheses.",
    "parameters": {"type": "object", "required": ["expression"], "properties": {"expression": {"type": "string"}}},
}}]  # fmt: skip
SCHEMA = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"],
          "additionalProperties": False}  # fmt: skip
CONTEXT = 4096


class Problem(Exception):
    """What a step found wrong."""


def need(right: object, what: str) -> None:
    if not right:
        raise Problem(what)


@dataclass(frozen=True)
class Ollama:
    """The program and its server. name: the model that most steps ask."""

    program: str
    url: str
    environment: dict[str, str]
    folder: Path
    name: str = "pyflash-demo"

    def run(self, *arguments: str) -> str:
        done = subprocess.run([self.program, *arguments], env=self.environment, capture_output=True, encoding="utf-8",
                              errors="replace", timeout=ANSWER_SECONDS)  # fmt: skip
        need(done.returncode == 0, f"`ollama {' '.join(arguments)}` failed: {' '.join(done.stderr.split())[-200:]}")
        return done.stdout

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(),
            {"Content-Type": "application/json", "Authorization": "Bearer ollama", "anthropic-version": "2023-06-01"},
        )
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as response:
                answer: dict[str, Any] = json.load(response)
                return answer
        except urllib.error.HTTPError as error:
            raise Problem(f"{path} answered {error.code}: {error.read().decode('utf-8', 'replace')[:200]}") from error

    def chat(self, question: str | list[dict[str, Any]], name: str | None = None, **options: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": question}] if isinstance(question, str) else question
        settings = {"temperature": 0, "num_ctx": CONTEXT, "num_predict": 400, **options.pop("options", {})}
        return self.post("/api/chat", model=name or self.name, messages=messages, stream=False, options=settings, **options)

    def create(self, name: str, gguf: Path, extra: str = "") -> None:
        made = export_ollama(gguf, self.folder / name, name=name)
        if extra:
            with made.modelfile.open("a", encoding="utf-8") as file:
                file.write(f"\n{extra}\n")
        self.run("create", name, "-f", str(made.modelfile))


# -- the steps: each returns a detail for the table, or raises Problem --


def create(ollama: Ollama) -> str:
    ollama.create(ollama.name, demo.path())
    return ollama.name


def show(ollama: Ollama) -> str:
    abilities = ollama.post("/api/show", model=ollama.name).get("capabilities", [])
    need({"tools", "thinking"} <= set(abilities), f"capabilities are {abilities}")
    return ", ".join(abilities)


def without_thinking(ollama: Ollama) -> str:
    message = ollama.chat("Hello, who are you?", think=False)["message"]
    need(message["content"].strip() and not message.get("thinking"), f"the answer is {message}")
    return str(message["content"])


def prompt(ollama: Ollama) -> str:
    """Ollama's own count of the prompt's tokens is that of pyflash's encoding."""
    messages = [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": SUM}]
    with pyflash.Model.open(demo.path(), device="cpu") as model:
        ours = len(model.tokenizer.encode_segments(pyflash.chat.segments(messages, release=model.release)))
    theirs = ollama.chat(messages, think=False).get("prompt_eval_count")
    need(theirs == ours, f"Ollama counts {theirs} tokens, pyflash {ours}")
    return f"{ours} tokens in both"


def thinking(ollama: Ollama) -> str:
    message = ollama.chat(SUM, think=True)["message"]
    need(message.get("thinking") and RIGHT in message["content"], f"the answer is {message}")
    return str(message["content"])


def levels(ollama: Ollama) -> str:
    known = ("low", "medium", "high", "max")
    for level in known:
        need(ollama.chat(SUM, think=level)["message"].get("thinking"), f"no thinking at level {level}")
    return ", ".join(known)


def tools(ollama: Ollama) -> str:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "What is 1234 * 56?"}]
    asked = ollama.chat(messages, think=True, tools=TOOLS)["message"]
    calls = asked.get("tool_calls") or []
    need(len(calls) == 1 and calls[0]["function"]["name"] == "calculate", f"the answer is {asked}")
    messages += [asked, {"role": "tool", "tool_name": "calculate", "content": json.dumps({"result": 69104})}]
    answer = ollama.chat(messages, think=True, tools=TOOLS)["message"]["content"]
    need("69104" in answer, f"the answer from the result is {answer!r}")
    return str(answer)


def schema(ollama: Ollama) -> str:
    message = ollama.chat(SUM, think=True, format=SCHEMA)["message"]
    try:
        value = json.loads(message["content"])
    except ValueError:
        raise Problem(f"the answer is no JSON: {message['content']!r}") from None
    need(message.get("thinking") and isinstance(value.get("sum"), int), f"the answer is {message}")
    return str(message["content"])


def shards(ollama: Ollama) -> str:
    options = ConvertOptions(shard_bytes=2_000_000)
    files = convert(demo.checkpoint(), ollama.folder / "split.gguf", options).files
    ollama.create("pyflash-demo-split", files[0])
    need(ollama.chat("Hello, who are you?", "pyflash-demo-split", think=False)["message"]["content"], "no answer")
    return f"{len(files)} shards"


def drafting(ollama: Ollama) -> str:
    files = convert(demo.checkpoint(), ollama.folder / "drafts.gguf", ConvertOptions(mtp=True)).files
    block = next(file for file in files if file.name.startswith("mtp-"))
    ollama.create("pyflash-demo-drafts", next(file for file in files if file != block), f"DRAFT {block}")
    message = ollama.chat(SUM, "pyflash-demo-drafts", think=True)["message"]
    need(RIGHT in message["content"], f"the answer is {message}")
    return "the same answer"


def openai(ollama: Ollama) -> str:
    answer = ollama.post("/v1/chat/completions", model=ollama.name, temperature=0, max_tokens=400,
                         messages=[{"role": "user", "content": SUM}])  # fmt: skip
    text = answer["choices"][0]["message"]["content"]
    need(RIGHT in text, f"the answer is {text!r}")
    return str(text)


def anthropic(ollama: Ollama) -> str:
    answer = ollama.post("/v1/messages", model=ollama.name, temperature=0, max_tokens=400,
                         messages=[{"role": "user", "content": SUM}])  # fmt: skip
    text = "".join(part.get("text", "") for part in answer["content"])
    need(RIGHT in text, f"the answer is {answer['content']}")
    return text


def responses(ollama: Ollama) -> str:
    answer = ollama.post("/v1/responses", model=ollama.name, temperature=0, max_output_tokens=400, input=SUM)
    parts = [part for item in answer["output"] if item["type"] == "message" for part in item["content"]]
    text = "".join(part.get("text", "") for part in parts)
    need(RIGHT in text, f"the answer is {answer['output']}")
    return text


def too_long(ollama: Ollama) -> str:
    try:
        ollama.chat("one two three four five " * 400, think=False, truncate=False, options={"num_ctx": 256})
    except Problem as problem:
        need(any(letter.isdigit() for letter in str(problem).partition(": ")[2]), f"refused without numbers: {problem}")
        return str(problem)
    raise Problem("a prompt longer than the context was taken")


STEPS: list[tuple[str, Callable[[Ollama], str]]] = [
    ("create", create), ("show: tools and thinking", show), ("answer without thinking", without_thinking),
    ("the prompt's tokens are pyflash's", prompt), ("answer with thinking", thinking), ("levels of thinking", levels),
    ("tool call and its result", tools), ("JSON schema after thinking", schema), ("shards", shards),
    ("MTP file as DRAFT", drafting), ("OpenAI's chat completions", openai), ("Anthropic's messages", anthropic),
    ("OpenAI's responses", responses), ("a prompt that is too long is refused", too_long),
]  # fmt: skip


@contextlib.contextmanager
def served(program: str, folder: Path) -> Iterator[Ollama]:
    """An Ollama server of its own, until the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = {**os.environ, "OLLAMA_HOST": address, "OLLAMA_MODELS": str(folder / "store")}
    with open(folder / "server.log", "wb") as log:
        server = subprocess.Popen([program, "serve"], env=environment, stdout=log, stderr=log)
        try:
            _wait(f"http://{address}/api/version", server)
            yield Ollama(program, f"http://{address}", environment, folder)
        finally:
            server.terminate()
            try:
                server.wait(timeout=20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _wait(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    sys.exit(f"check_ollama.py: `ollama serve` did not answer within {START_SECONDS} s")


def main() -> int:
    parser = argparse.ArgumentParser(description="Tries an export of the demo model in this machine's Ollama.")
    parser.add_argument("--ollama", default="ollama", help="the program, if it is not on the PATH")
    parser.add_argument("--json", action="store_true", help="print a JSON object a step instead of the table")
    options = parser.parse_args()
    program = shutil.which(options.ollama)
    if program is None:
        print(f"check_ollama.py: there is no {options.ollama} on the PATH: install Ollama 0.30.12 or newer",
              file=sys.stderr)  # fmt: skip
        return 2
    n_failed = 0
    with tempfile.TemporaryDirectory(prefix="check-ollama-") as folder, served(program, Path(folder)) as ollama:
        if not options.json:
            print("| step | works | detail |\n|---|---|---|")
        for name, step in STEPS:
            try:
                works, detail = True, step(ollama)
            except (Problem, OSError, KeyError, ValueError, pyflash.Error, subprocess.TimeoutExpired) as problem:
                works, detail = False, f"{type(problem).__name__}: {problem}"
            n_failed += not works
            detail = " ".join(detail.split())
            row = json.dumps({"step": name, "works": works, "detail": detail}, ensure_ascii=False)
            print(row if options.json else f"| {name} | {'yes' if works else '**no**'} | {detail[:100]} |", flush=True)
    return 1 if n_failed else 0


if __name__ == "__main__":
    sys.exit(main())
