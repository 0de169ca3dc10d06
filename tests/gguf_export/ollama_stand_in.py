"""A scripted stand-in for Ollama, for scripts/check_ollama.py: it answers as Ollama does, and knows nothing.

STAND_IN_FAULT names what it does wrong: the path of a request, or a word of the scripts below.
"""

from __future__ import annotations

import json
import os
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FAULT = os.environ.get("STAND_IN_FAULT", "")
STORE = Path(os.environ["OLLAMA_MODELS"])


def create(name: str, modelfile: Path) -> None:
    lines = dict.fromkeys(re.findall(r"^(FROM|DRAFT) (.+)$", modelfile.read_text(encoding="utf-8"), re.MULTILINE))
    files = [(word, modelfile.parent / path) for word, path in lines]
    if not files or any(file.read_bytes()[:4] != b"GGUF" for _, file in files):
        sys.exit("Error: not a GGUF file")
    STORE.mkdir(parents=True, exist_ok=True)
    (STORE / name).write_text(json.dumps({"shards": len(files), "draft": any(word == "DRAFT" for word, _ in files)}))


def chat(body: dict[str, Any]) -> dict[str, Any]:
    last = body["messages"][-1]
    message: dict[str, Any] = {"role": "assistant", "content": "347 + 285 = 632."}
    if body.get("think") and FAULT != "thinking":
        message["thinking"] = "Ones: 7 + 5 = 12."
    if last["role"] == "tool":
        message["content"] = f"It is {json.loads(last['content'])['result']}."
    elif body.get("tools"):
        call = {"function": {"name": "calculate", "arguments": {"expression": "1234 * 56"}}}
        message |= {"content": "", "tool_calls": [] if FAULT == "tools" else [call]}
    elif body.get("format"):
        message["content"] = "The sum is 632" if FAULT == "schema" else '{"sum": 632}'
    return {"message": message, "prompt_eval_count": count(body["messages"]) + (FAULT == "count")}


def count(messages: list[dict[str, Any]]) -> int:
    if messages[0]["role"] != "system":
        return 0  # nobody asks
    import pyflash
    from pyflash import demo

    with pyflash.Model.open(demo.path(), device="cpu") as model:
        return len(model.tokenizer.encode_segments(pyflash.chat.segments(messages, release=model.release)))


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer({"version": "0.0.0"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == FAULT or not (STORE / body["model"]).is_file():
            self._answer({"error": "model not found"}, 404)
        elif self.path == "/api/show":
            self._answer({"capabilities": ["completion", "tools", "thinking"]})
        elif self.path == "/v1/chat/completions":
            self._answer({"choices": [{"message": {"content": "632"}}]})
        elif self.path == "/v1/messages":
            self._answer({"content": [{"type": "thinking", "thinking": "..."}, {"type": "text", "text": "632"}]})
        elif self.path == "/v1/responses":
            self._answer({"output": [{"type": "message", "content": [{"type": "output_text", "text": "632"}]}]})
        elif body["options"]["num_ctx"] < 1000 and FAULT != "long":
            self._answer({"error": "the prompt has 2003 tokens, the context 256"}, 400)
        else:
            self._answer(chat(body))

    def _answer(self, body: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


if __name__ == "__main__":
    if sys.argv[1] == "create":
        create(sys.argv[2], Path(sys.argv[4]))
    else:
        host, port = os.environ["OLLAMA_HOST"].split(":")
        ThreadingHTTPServer((host, int(port)), Handler).serve_forever()
