"""An agent on a local model: python agent.py FOLDER "What is in notes.txt?" It looks into one folder, and nowhere else.

`pyflash serve MODEL.gguf` first, and `pip install openai`. Another server: set OPENAI_BASE_URL and OPENAI_API_KEY.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from openai import OpenAI

MOST_ROUNDS = 20
FOLDER = Path(sys.argv[1]).resolve()


def list_files() -> str:
    """List the files of the folder."""
    return json.dumps(sorted(str(file.relative_to(FOLDER)) for file in FOLDER.rglob("*") if file.is_file())[:500])


def read_file(path: str) -> str:
    """Read a file of the folder."""
    file = (FOLDER / path).resolve()
    if not file.is_relative_to(FOLDER):  # the model may write anything
        raise ValueError("only files of the folder can be read")
    return file.read_text(encoding="utf-8", errors="replace")[:100_000]


FUNCTIONS: dict[str, Callable[..., str]] = {"list_files": list_files, "read_file": read_file}
TOOLS = [{"type": "function", "function": {
    "name": name, "description": function.__doc__,
    "parameters": {"type": "object", "required": [*parameters],
                   "properties": {parameter: {"type": "string"} for parameter in parameters}},
}} for name, function in FUNCTIONS.items() for parameters in [[n for n in function.__annotations__ if n != "return"]]]  # fmt: skip


def result(name: str, arguments: str) -> str:
    """What a call gives, or what is wrong with it, for the model to read."""
    try:
        return FUNCTIONS[name](**json.loads(arguments))
    except (KeyError, TypeError, ValueError, OSError) as problem:
        return f"error: {type(problem).__name__}: {problem}"


client = OpenAI(base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8080/v1"),
                api_key=os.environ.get("OPENAI_API_KEY", "none"), timeout=3600)  # a long prompt takes a processor minutes
messages: list = [{"role": "user", "content": sys.argv[2]}]
for _ in range(MOST_ROUNDS):
    reply = client.chat.completions.create(model="default", messages=messages, tools=TOOLS).choices[0].message
    messages.append(reply)  # with its reasoning and its ids, so that nothing of it is evaluated again
    if not reply.tool_calls:
        print(reply.content)
        break
    for call in reply.tool_calls:
        print(f"[{call.function.name} {call.function.arguments}]", file=sys.stderr)
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result(call.function.name, call.function.arguments)})
else:
    sys.exit(f"no answer after {MOST_ROUNDS} rounds")
