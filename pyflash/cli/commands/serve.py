"""`pyflash serve`: a model for programs, over HTTP."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import pyflash
from pyflash.cli.commands.cache import serve_cache
from pyflash.cli.commands.completion import GGUFFile
from pyflash.cli.memory_advice import warning_of
from pyflash.cli.options import device_arguments, draft_options, model_options, open_model, option, parse_size, stage_options
from pyflash.cli.output import log_to_stderr
from pyflash.cli.paths import FilePath
from pyflash.cli.signals import EXIT_TERMINATED, leaving_on_signals
from pyflash.cli.streams import say
from pyflash.cli.text import read_text
from pyflash.engine.options import RELEASES
from pyflash.machine.units import format_bytes
from pyflash.serve.client_configs import CLIENTS, CODEX_CATALOG, Server

if TYPE_CHECKING:
    from pyflash.serve.engine import Loaded

_LONGEST_DRAIN = 3600
_DEFAULT_CONTEXT = 65536
_KEY = "YOUR-KEY"
_HINTS = {  # beside where the settings belong
    "codex": f"--print-config codex-models prints {CODEX_CATALOG}, which belongs beside it; then start codex --profile pyflash",
    "dsh": "the variable DEEPSEEK_API_KEY must hold the key, any text where there is none",
    "pi": "then start pi --provider pyflash",
}


@click.command()
@click.argument("model", required=False, type=GGUFFile(), metavar="[MODEL]")
@option("--host", default="127.0.0.1", show_default=True, help="Address to listen at. Another than this machine's own needs "
        "an API key.")
@option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0: any that is free.")
@option("--unix-socket", type=FilePath(), help="Listen at this path instead.")
@option("--tls-cert", type=FilePath(), help="PEM file of the certificate, for HTTPS.")
@option("--tls-key", type=FilePath(), help="PEM file of its key.")
@option("--parallel", type=click.IntRange(1, 64), metavar="N", help="Conversations that have a place in memory and are "
        "answered at once.  [default: 2 where memory has room]")
@option("--ctx", "-c", "context", type=click.IntRange(1), metavar="N",
        help="Context of each in tokens.  [default: the model's, at most 65536]")
@option("--api-key-file", type=FilePath(), help="File of the API keys, one a line, of which requests must bring one. "
        "PYFLASH_API_KEY holds one, too.")
@option("--no-auth", is_flag=True, help="Let everybody who reaches --host ask without a key.")
@option("--allowed-host", multiple=True, metavar="NAME", help="A name that clients may call this server by; may be given "
        "several times.")
@option("--cors-origin", multiple=True, metavar="URL", help="A web page's origin that may use this server, such as "
        "http://localhost:3000; may be given several times.")
@option("--think", command="serve", type=click.Choice(["off", "low", "high", "max"]), default="high", show_default=True,
        help="How requests that do not say are thought about.")
@draft_options
@option("--queue", type=click.IntRange(0), default=32, show_default=True, metavar="N", help="Requests that may wait.")
@option("--keepalive", type=click.FloatRange(0.1), default=5.0, show_default=True, metavar="SECONDS",
        help="Send something after so long a silence in a stream.")
@option("--max-body", type=click.IntRange(1), default=32, show_default=True, metavar="MIB", help="Largest request.")
@option("--idle-unload", type=click.FloatRange(0), metavar="MINUTES", help="Let go of the model after so long without a "
        "request; the next one opens it again.")
@option("--no-disk-cache", is_flag=True, help="Keep no conversations on disk for the next start.")
@option("--cache-size", metavar="SIZE", help="Most that kept conversations take on disk.  [default: 16 GiB, or a tenth of "
        "what is free]")
@option("--drain", type=click.IntRange(1, _LONGEST_DRAIN), default=30, show_default=True, metavar="SECONDS",
        help="Answer what is under way for so long after Ctrl-C or SIGTERM.")
@option("--trace", type=FilePath(), metavar="DIR", help="Write into this folder, for each request, where its prompt differs from "
        "what was evaluated before, with its words.")
@option("--print-config", type=click.Choice(list(CLIENTS)), help="Print what this program must be told to use the server, "
        "with --port and the others as they are here, and serve nothing.")
@option("--alias", help="The model's name for clients.  [default: the file's]")
@option("--release", type=click.Choice(list(RELEASES)), help="The model's release, whose rules its chats follow. "
        "[default: what the file tells, else preview]")
@stage_options
@model_options
def serve(model: str | None, **options: Any) -> None:
    """Serve MODEL to programs: OpenAI's Chat Completions, Responses and Completions, Anthropic's Messages, Ollama's API.

    MODEL is a GGUF file or a name as for `pyflash run`; without one it is the demo model. docs/serve.md tells what clients
    need.
    """
    name = options["alias"] or (Path(model).stem if model else "pyflash-demo")
    if options["print_config"]:
        _print_config(options, name)
        return
    log_to_stderr(options["verbose"])
    keys = _keys(options["api_key_file"])
    place = _place(options, bool(keys))
    device_arguments(options)  # refuses what does not go together before anything is opened
    from pyflash.serve import app
    from pyflash.serve.server import run

    folder = None if options["no_disk_cache"] else serve_cache()
    application = app(
        _opener(model, options), name=name, context=options["context"], cache_type=options["cache_type"],
        parallel=options["parallel"], think=options["think"], queue_limit=options["queue"], keys=keys,
        draft=options["draft"], draft_max=options["draft_max"],
        idle_unload=None if options["idle_unload"] is None else 60 * options["idle_unload"],
        hosts=None if place.unix_socket else {place.host.lower(), *(each.lower() for each in options["allowed_host"])},
        origins=options["cors_origin"], max_body=options["max_body"] << 20, keepalive=options["keepalive"],
        disk_cache=folder, disk_cache_size=parse_size(options["cache_size"]) if options["cache_size"] else None,
        trace=options["trace"],
    )

    def ready(address: str) -> None:
        say(f"pyflash: {name} answers at {address}")
        base = f"OpenAI clients: base URL {address}/v1; Anthropic and Ollama clients: {address}" if not place.unix_socket \
            else "curl --unix-socket PATH http://localhost/v1/models asks what is there"
        say(f"pyflash: {base}; {'with an API key' if keys else 'any API key'}; Ctrl-C stops it")
        if (loaded := application.engine.loaded) is not None:
            say(f"pyflash: {_memory_line(loaded)}")
        if options["trace"] is not None:
            say(f"pyflash: TRACE: WORDS OF EVERY REQUEST ARE WRITTEN TO {options['trace']}")
        if application.disk is not None:
            say(f"pyflash: conversations are kept in {folder}, {format_bytes(application.disk.limit)} at most; --no-disk-cache "
                "keeps none, pyflash cache clear deletes them")

    with leaving_on_signals():
        try:
            run(application, place, ready, options["drain"])
        except SystemExit as ended:  # of a SIGTERM, when all has been answered: that is what was asked for
            if ended.code != EXIT_TERMINATED:
                raise


def _memory_line(loaded: Loaded) -> str:
    """How many conversations have a place, and what of memory is theirs."""
    n, memory = len(loaded.slots), loaded.slots[0].session.memory
    places = format_bytes(n * (memory.cache_bytes + memory.buffer_bytes + memory.checkpoint_bytes))
    return (f"{n} conversation{'s have a place' if n > 1 else ' has a place'} of {loaded.n_ctx:,} tokens (--parallel, --ctx): "
            f"up to {places} of memory, beside {format_bytes(loaded.model.info.weight_bytes)} of weights")


def _print_config(options: dict[str, Any], name: str) -> None:
    client = CLIENTS[options["print_config"]]
    scheme = "https" if options["tls_cert"] else "http"
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(options["host"], options["host"])
    address = f"{scheme}://{f'[{host}]' if ':' in host else host}:{options['port']}"
    has_key = options["api_key_file"] or os.environ.get("PYFLASH_API_KEY")
    text = client.render(Server(address, name, options["context"] or _DEFAULT_CONTEXT, _KEY if has_key else "none"))
    told = [f"for {client.file}", _HINTS.get(options["print_config"], ""),
            f"put your key in the place of {_KEY}" if _KEY in text else ""]  # fmt: skip
    say(f"pyflash: {'; '.join(filter(None, told))}")
    click.echo(text, nl=False)


def _opener(model: str | None, options: dict[str, Any]) -> Callable[[], pyflash.Model]:
    def opened() -> pyflash.Model:
        found, budget = open_model(model, options)
        try:
            warning = None
            if not found.n_stages:
                with found.session(options["context"], cache=options["cache_type"]) as session:
                    warning = warning_of(found, session, budget, options["parallel"] or 1)
        except BaseException:
            found.close()
            raise
        if warning:
            say(f"pyflash: warning: {warning}")
        if not found.release_known:
            say(f"pyflash: the file does not tell its release; taken to be {found.release}, else give --release 0731")
        return found

    return opened


def _keys(path: str | None) -> list[str]:
    from pyflash.serve.guard import key_file_lines

    keys = []
    if path is not None:
        keys = list(key_file_lines(read_text(path, say)))
        if not keys:
            raise click.UsageError(f"--api-key-file: {path} holds no key; write one a line")
    if key := os.environ.get("PYFLASH_API_KEY", "").strip():
        keys.append(key)
    return keys


def _place(options: dict[str, Any], has_key: bool) -> Any:
    from pyflash.serve.guard import host_of, is_loopback
    from pyflash.serve.server import Place

    if (options["tls_cert"] is None) != (options["tls_key"] is None):
        raise click.UsageError("--tls-cert and --tls-key belong together")
    host = options["host"].strip("[]")
    own = options["unix_socket"] is not None or is_loopback(host_of(f"[{host}]" if ":" in host else host) or "")
    if not own and not has_key and not options["no_auth"]:
        raise click.UsageError(f"--host {host} lets other machines ask: give --api-key-file, or --no-auth if all of them may")
    return Place(host, options["port"], options["unix_socket"], options["tls_cert"], options["tls_key"])
