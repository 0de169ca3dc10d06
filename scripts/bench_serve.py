"""Measures `pyflash serve` next to llama-server: a coding agent's session of 30 turns, a restart in it, parallel streams.

    python scripts/bench_serve.py build FOLDER [--isa avx2]
    python scripts/bench_serve.py run MODEL.gguf FOLDER [--isa avx2] [--server pyflash llama] [--part session streams]
                                      [--keep results.json]

`build` compiles llama-server from the source that scripts/compare_llama.py uses, also where that was built before. `run`
plays the session of recorded_session.json to each server, and prints tables; --keep adds to the results of earlier calls.

Both write the recorded answers, token for token, whatever the model would say: pyflash serve by another sampler, its
grammar for tools at work; llama-server by a grammar of those tokens. What is sent is what the client sent. pyflash gets
it at /v1/chat/completions. llama-server renders it by its own template of V4 (/apply-template) and answers at /completion:
its /v1/chat/completions does the same, but takes no grammar beside tools. What is new is counted by each server's own prompts.
Before turn --restart the server is ended by SIGTERM and started again: pyflash with its disk cache, llama-server with the
slot saved before, and restored.

llama-server's options are those that keep most: one slot a stream, as many checkpoints as it likes, one at each end of a
prompt, a cache in RAM. Reusing shifted pieces (--cache-reuse) it does not support for this model.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compare_llama import ISA_OPTIONS, VERSION, compile_target, llama_source, processor, warm_file
from recorded_session import Measured, Session, call_name, reuse_ratio

SERVERS = {"pyflash": "pyflash serve", "llama": "llama-server"}
_SECONDS = 3600.0  # for an answer
_STREAM_PROMPT = "The rain has not stopped for days, and the river behind the house number {n} is rising. "
_DELIMITERS = [{"role": "assistant", "delimiter": "<｜Assistant｜>"}, {"role": "user", "delimiter": "<｜User｜>"}]  # of V4
TEMPLATES = {"0731": "deepseek-ai-DeepSeek-V4-Flash-0731.jinja", "preview": "deepseek-ai-DeepSeek-V4.jinja"}  # by release


# -- HTTP --


def ask(port: int, path: str, body: Any = None) -> Any:
    """The JSON that a server answers with."""
    asking = http.client.HTTPConnection("127.0.0.1", port, timeout=_SECONDS)
    asking.request("POST" if body is not None else "GET", path, None if body is None else json.dumps(body),
                   {"Content-Type": "application/json"})
    response = asking.getresponse()
    data = response.read()
    if response.status != 200:
        raise SystemExit(f"{path}: {response.status} {data[:500]!r}")
    return json.loads(data)


def stream(port: int, path: str, body: Any) -> Iterator[Any]:
    """The data of an answer's events, as they come."""
    asking = http.client.HTTPConnection("127.0.0.1", port, timeout=_SECONDS)
    asking.request("POST", path, json.dumps({**body, "stream": True}), {"Content-Type": "application/json"})
    response = asking.getresponse()
    if response.status != 200:
        raise SystemExit(f"{path}: {response.status} {response.read()[:500]!r}")
    for line in response:
        if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
            yield json.loads(line[6:])


# -- servers --


class Server:
    """A server on a port of its own, ready when it is made."""

    def __init__(self, command: Sequence[str], log: Path, **variables: str) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port: int = found.getsockname()[1]
        self._log = log
        with open(log, "ab") as file:
            self._process = subprocess.Popen([*command, "--port", str(self.port)], stdout=file, stderr=file,
                                             env={**os.environ, **variables})
        while not self._is_ready():
            if self._process.poll() is not None:
                raise SystemExit(f"{command[0]} ended: {log.read_text(errors='replace')[-1500:]}")
            time.sleep(0.2)

    def _is_ready(self) -> bool:
        asking = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            asking.request("GET", "/health")
            return asking.getresponse().status == 200
        except OSError:
            return False

    def close(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(120)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Pyflash:
    """pyflash serve, whose model writes the recorded answers."""

    def __init__(self, args: argparse.Namespace, folder: Path, n_parallel: int) -> None:
        self._command = [sys.executable, str(Path(__file__).resolve()), "serve", str(args.file), "--folder", str(folder),
                         "--threads", str(args.threads), "--ctx", str(args.ctx), "--parallel", str(n_parallel)]
        self._isa = {} if args.isa == "native" else {"PYFLASH_CPU": args.isa}
        self._log = folder / "pyflash.log"
        self._ids: dict[str, str] = {}
        self._server = Server(self._command, self._log, **self._isa)

    def restart(self) -> None:
        self.close()
        self._server = Server(self._command, self._log, **self._isa)

    def close(self) -> None:
        self._server.close()

    def turn(self, session: Session, n: int) -> Measured:
        body = {"model": "pyflash", "messages": session.messages(n, self._ids), "tools": session.tools, "max_tokens": 32000}
        sent, first, text = time.monotonic(), 0.0, ""
        timings: dict[str, Any] = {}
        ids: list[str] = []
        for event in stream(self._server.port, "/v1/chat/completions", body):
            if "error" in event:
                raise SystemExit(f"turn {n + 1}: {event['error']}")
            timings = event.get("timings") or timings
            for choice in event.get("choices", ()):
                delta = choice.get("delta") or {}
                text += delta.get("content") or ""
                ids += [call["id"] for call in delta.get("tool_calls") or () if call.get("id")]
                if first == 0 and (delta.get("content") or delta.get("reasoning_content") or delta.get("tool_calls")):
                    first = time.monotonic() - sent
        says = session.turns[n]["says"]
        if text.strip() != says["content"].strip() or len(ids) != len(says["calls"]):
            raise SystemExit(f"turn {n + 1}: pyflash answered {text!r} and {len(ids)} calls, not what was recorded")
        self._ids.update({call_name(n, index): call_id for index, call_id in enumerate(ids)})
        return _measured(timings, first)

    def complete(self, prompt: str, n_tokens: int) -> float:
        body = {"model": "pyflash", "prompt": prompt, "max_tokens": n_tokens, "temperature": 0}
        return _rate(stream(self._server.port, "/v1/completions", body))


class Llama:
    """llama-server, whose grammar admits the recorded answers only."""

    def __init__(self, args: argparse.Namespace, folder: Path, n_parallel: int) -> None:
        from pyflash import Model

        session = Session.load()
        with Model.open(args.file, threads=1) as model:
            self._eos = model.info.eos_token
            self._answers = [session.tokens(n, model.tokenizer) for n in range(len(session.turns))]
            template = args.folder / "llama.cpp" / "models" / "templates" / TEMPLATES[model.release]
        self._command = [str(llama_server(args.folder, args.isa)), "-m", str(args.file), "-t", str(args.threads), "-tb",
                         str(args.threads), "-c", str(args.ctx * n_parallel), "-np", str(n_parallel), "--no-kv-unified",
                         "--jinja", "--chat-template-file", str(template), "--ctx-checkpoints", "1024", "--checkpoint-min-step",
                         "0", "--cache-ram", "4096", "--slot-save-path", str(folder), "--no-repack", "--no-warmup",
                         "--host", "127.0.0.1", *args.llama_option]  # fmt: skip
        self._log = folder / "llama-server.log"
        self._server = Server(self._command, self._log)

    def restart(self) -> None:
        saved = self._slot("save")
        self.close()
        self._server = Server(self._command, self._log)
        if saved:
            self._slot("restore")

    def close(self) -> None:
        self._server.close()

    def _slot(self, action: str) -> bool:
        """Whether it could be done: else the conversation is evaluated anew."""
        try:
            found = ask(self._server.port, f"/slots/0?action={action}", {"filename": "slot.bin"})
        except SystemExit as error:
            print(f"llama-server: {action} of the slot failed: {error}", file=sys.stderr)
            return False
        print(f"llama-server: {action} of the slot: {found}", file=sys.stderr)
        return True

    def turn(self, session: Session, n: int) -> Measured:
        port = self._server.port
        asked = {"messages": session.messages(n), "tools": session.tools, "chat_template_kwargs": {"enable_thinking": True}}
        sent, first, text = time.monotonic(), 0.0, ""
        timings: dict[str, Any] = {}
        prompt = ask(port, "/apply-template", asked)["prompt"]
        tokens = self._answers[n]
        grammar = "root ::= " + " ".join(f"<[{token}]>" for token in tokens if token != self._eos)
        body = {"prompt": prompt, "grammar": grammar, "n_predict": len(tokens), "cache_prompt": True, "id_slot": 0,
                "samplers": ["temperature"], "temperature": 0, "message_delimiters": _DELIMITERS}
        for event in stream(port, "/completion", body):
            if "error" in event:
                raise SystemExit(f"turn {n + 1}: {event['error']}")
            text += event.get("content", "")
            if first == 0 and event.get("content"):
                first = time.monotonic() - sent
            timings = event.get("timings") or timings
        if session.turns[n]["says"]["content"].strip() not in text:
            raise SystemExit(f"turn {n + 1}: llama-server answered {text!r}, not what was recorded")
        return _measured(timings, first)

    def complete(self, prompt: str, n_tokens: int) -> float:
        body = {"prompt": prompt, "n_predict": n_tokens, "temperature": 0, "ignore_eos": True}
        return _rate(stream(self._server.port, "/completion", body))


def _measured(timings: dict[str, Any], first: float) -> Measured:
    """Both servers tell counts of tokens and milliseconds by the same names."""
    return Measured(timings["cache_n"] + timings["prompt_n"], timings["prompt_n"], timings["predicted_n"],
                    timings["prompt_ms"] / 1000, timings["predicted_ms"] / 1000, first)


def _rate(events: Iterator[Any]) -> float:
    """Tokens a second of an answer, as the server tells them: from its first token on."""
    timings: dict[str, Any] = {}
    for event in events:
        timings = event.get("timings") or timings
    return float(1000 * timings["predicted_n"] / timings["predicted_ms"])


# -- pyflash serve with another sampler --


class _Recorded:
    """Stands for a sampler: picks the tokens of a recorded answer."""

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = iter(tokens)

    def pick(self, logits: Any, allowed: Any = None) -> tuple[int, float]:
        token = next(self._tokens)
        if allowed is not None and not allowed[token // 32] >> token % 32 & 1:
            raise RuntimeError(f"the grammar does not allow the recorded token {token}")
        return token, -1.0


def serve(args: argparse.Namespace) -> None:
    """A server that answers requests with tools by what is recorded, until SIGTERM."""
    from pyflash import Model
    from pyflash.serve import app, engine
    from pyflash.serve.server import Place, run

    session, make_answer = Session.load(), engine.Answer  # type: ignore[attr-defined]

    def answer(request: Any, *arguments: Any) -> Any:
        made = make_answer(request, *arguments)
        if request.tools:
            n = sum(message["role"] == "assistant" for message in request.messages)
            made._sampler = _Recorded(session.tokens(n, application.engine.use().model.tokenizer))  # type: ignore[assignment]
        return made

    engine.Answer = answer  # type: ignore[assignment,attr-defined]
    os.environ["PYFLASH_STATE"] = str(args.folder)
    application = app(lambda: Model.open(args.file, threads=args.threads, device="cpu"), context=args.ctx,
                      parallel=args.parallel, disk_cache=args.folder / "cache", draft="off")
    run(application, Place(port=args.port), lambda address: print(f"answers at {address}", flush=True))


# -- measuring --


@dataclass
class Results:
    """What was measured, by server; seconds are wall time."""

    turns: dict[str, list[Measured]]
    streams: dict[str, dict[int, float]]  # tokens a second of so many streams together
    restart: int = 0

    def save(self, path: Path) -> None:
        from gguf_export.outputs import write_output

        write_output(path, json.dumps(asdict(self), indent=1).encode())

    @classmethod
    def load(cls, path: Path) -> Results:
        kept = json.loads(path.read_text(encoding="utf-8"))
        turns = {name: [Measured(**each) for each in found] for name, found in kept["turns"].items()}
        streams = {name: {int(n): rate for n, rate in found.items()} for name, found in kept["streams"].items()}
        return cls(turns, streams, kept["restart"])

    @property
    def cold(self) -> tuple[int, ...]:
        return (self.restart - 1,) if self.restart else ()


def play(server: Pyflash | Llama, session: Session, restart: int, measured: list[Measured]) -> None:
    """All turns one after the other. restart: the turn, from 1, before which the server is started anew; 0 for none."""
    for n in range(len(session.turns)):
        if n and n == restart - 1:
            server.restart()
        found = server.turn(session, n)
        measured.append(found)
        print(f"turn {n + 1}: prompt {found.n_prompt}, evaluated {found.n_evaluated} in {found.prompt_seconds:.2f} s, first "
              f"token after {found.first_token:.2f} s; {found.n_generated} tokens in {found.decode_seconds:.2f} s",
              file=sys.stderr)  # fmt: skip


def stream_together(server: Pyflash | Llama, n_streams: int, n_tokens: int) -> float:
    """Tokens a second of several streams that begin at once, all of them together."""
    found: list[float] = []

    def one(n: int) -> None:
        found.append(server.complete(_STREAM_PROMPT.format(n=n) + f"And {n} more. ", n_tokens))

    threads = [threading.Thread(target=one, args=(n,)) for n in range(n_streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(found) < n_streams:
        raise SystemExit("a stream failed")
    return sum(found)


def measure(args: argparse.Namespace, results: Results) -> None:
    kinds: dict[str, type[Pyflash | Llama]] = {"pyflash": Pyflash, "llama": Llama}
    session = Session.load().cut(args.turns)
    for name in args.server:
        for part in args.part:
            with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
                warm_file(args.file)
                server = kinds[name](args, Path(folder), 1 if part == "session" else args.streams)
                try:
                    if part == "session":
                        results.restart = args.restart
                        results.turns[name] = []
                        play(server, session, args.restart, results.turns[name])
                    else:
                        stream_together(server, args.streams, 8)  # warms it up
                        results.streams[name] = {n: stream_together(server, n, args.stream_tokens) for n in (1, args.streams)}
                finally:
                    server.close()


# -- telling --


def table(results: Results) -> str:
    """Markdown: the session, then the streams, one column a server."""
    names = [name for name in SERVERS if name in results.turns]
    lines = [f"| session | {' | '.join(SERVERS[name] for name in names)} |", "|---" * (len(names) + 1) + "|"] if names else []
    rows: list[tuple[str, list[str]]] = []
    columns = {name: _column(results.turns[name], results.cold) for name in names}
    for label in next(iter(columns.values()), {}):
        rows.append((label, [columns[name][label] for name in names]))
    lines += [f"| {label} | {' | '.join(cells)} |" for label, cells in rows]
    shown = [name for name in SERVERS if name in results.streams]
    if shown:
        counts = sorted(results.streams[shown[0]])
        lines += ["", f"| streams together, tokens/s | {' | '.join(SERVERS[name] for name in shown)} |",
                  "|---" * (len(shown) + 1) + "|"]
        for n in counts:
            one = {name: results.streams[name][counts[0]] for name in shown}
            cells = [f"{results.streams[name][n]:.1f}" + (f" ({results.streams[name][n] / one[name]:.2f} x)" if n > 1 else "")
                     for name in shown]
            lines.append(f"| {n} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _column(turns: list[Measured], cold: tuple[int, ...]) -> dict[str, str]:
    warm = [each for n, each in enumerate(turns) if n and n not in cold]
    waits = sorted(each.first_token for each in warm)
    after = turns[cold[0]] if cold and cold[0] < len(turns) else None
    return {
        "turns": f"{len(turns)}",
        "first turn: tokens evaluated, first token after": f"{turns[0].n_evaluated:,}, {turns[0].first_token:.1f} s",
        "later turns: tokens evaluated, of those that were new": f"{sum(each.n_evaluated for each in warm):,}, "
                                                                 f"{reuse_ratio(turns, cold):.2f} x",
        "later turns: first token after, median and longest": f"{waits[len(waits) // 2]:.2f} s, {waits[-1]:.2f} s",
        "turn after a restart: tokens evaluated, first token after":
            f"{after.n_evaluated:,} of {after.n_prompt:,}, {after.first_token:.2f} s" if after else "",
        "prompts of the session": f"{sum(each.prompt_seconds for each in turns):.0f} s",
        "prompts after the first turn": f"{sum(each.prompt_seconds for each in turns[1:]):.0f} s",
        "decode": f"{sum(each.n_generated for each in turns):,} tokens in {sum(each.decode_seconds for each in turns):.0f} s",
    }


def report(args: argparse.Namespace, results: Results) -> str:
    words = [Path(word).name if os.sep in word else word for word in sys.argv[1:]]
    isa = "" if args.isa == "native" else f", both held to {args.isa.upper().replace('AVX512', 'AVX-512')}"
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    told = (f"{time.strftime('%Y-%m-%d')}, {processor()}, {args.threads} threads{load}{isa}; llama-server of {VERSION}, "
            f"weights as in the file; a session of {Session.load().client}")
    return f"{told}:\n\n{table(results)}\n\n`python scripts/bench_serve.py {' '.join(words)}`"


# -- llama-server --


def _place(folder: Path, isa: str) -> Path:
    """Where compare_llama.py builds, too: most of it is shared."""
    return folder / f"llama-{isa}"


def llama_server(folder: Path, isa: str) -> Path:
    for path in sorted((_place(folder, isa) / "bin").rglob("llama-server*")):
        return path
    sys.exit(f"there is no llama-server in {_place(folder, isa)}: run `{sys.argv[0]} build {folder} --isa {isa}` first")


def build(folder: Path, isa: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    compile_target("llama-server", llama_source(folder), _place(folder, isa), isa, ["-DLLAMA_BUILD_SERVER=ON"])
    print(f"built {llama_server(folder, isa)}")


def main() -> None:
    from pyflash.machine import processor as cpu

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    asked = commands.add_parser("build")
    asked.add_argument("folder", type=Path)
    asked.add_argument("--isa", choices=ISA_OPTIONS, default="native")
    threads = cpu.processor().physical or os.cpu_count()
    run = commands.add_parser("run")
    run.add_argument("file", type=Path)
    run.add_argument("folder", type=Path, help="where `build` put llama-server")
    run.add_argument("--isa", choices=ISA_OPTIONS, default="native")
    run.add_argument("--server", choices=SERVERS, nargs="+", default=list(SERVERS))
    run.add_argument("--part", choices=("session", "streams"), nargs="+", default=["session", "streams"])
    run.add_argument("--turns", type=int, default=30)
    run.add_argument("--restart", type=int, default=21, help="the turn before which the server is started anew; 0 for none")
    run.add_argument("--streams", type=int, default=4)
    run.add_argument("--stream-tokens", type=int, default=48)
    run.add_argument("--threads", type=int, default=threads)
    run.add_argument("--ctx", type=int, default=16384, help="tokens of each conversation")
    run.add_argument("--llama-option", action="append", default=[], metavar="OPTION",
                     help="one more of llama-server's: --llama-option=--swa-full")  # fmt: skip
    run.add_argument("--scratch", type=Path, help="where the caches are put while it runs")
    run.add_argument("--keep", type=Path, metavar="FILE.json", help="add to the results there")
    served = commands.add_parser("serve", help="pyflash serve with the recorded answers, which `run` starts")
    served.add_argument("file", type=Path)
    for name in ("port", "threads", "ctx", "parallel"):
        served.add_argument(f"--{name}", type=int, required=True)
    served.add_argument("--folder", type=Path, required=True)
    args = parser.parse_args()
    if args.command == "build":
        build(args.folder, args.isa)
    elif args.command == "serve":
        serve(args)
    else:
        results = Results.load(args.keep) if args.keep and args.keep.exists() else Results({}, {})
        with contextlib.suppress(KeyboardInterrupt):  # what there is, is shown
            measure(args, results)
        if args.keep:
            results.save(args.keep)
        print(report(args, results))


if __name__ == "__main__":
    main()
