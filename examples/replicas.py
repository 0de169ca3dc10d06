"""Several servers behind one address, for Ray Serve (Linux). What it does: docs/scaling.md

    pip install 'pyflash-llm[cluster,serve]'
    RAY_USAGE_STATS_ENABLED=0 ray start --head --include-dashboard=false
    PYFLASH_MODEL=/models/flash.gguf PYFLASH_REPLICAS=2 serve run examples.replicas:application

`serve run` takes the file's place in the folder that it is started in. It answers at http://127.0.0.1:8000.

| variable | |
|---|---|
| PYFLASH_MODEL | a GGUF file, by a path that every machine has; without it the demo model |
| PYFLASH_REPLICAS | how many servers, or the least and the most: 1-4; by default 1 |
| PYFLASH_PARALLEL | conversations that have a place in each; by default 2 |
| PYFLASH_CONTEXT | tokens of each conversation |
| PYFLASH_THREADS | of each server; by default all cores of a machine, so that each server has one for itself |
| PYFLASH_STAGES | each server's model in stages on several machines: their number, or auto |
| PYFLASH_DISK_CACHE | a folder in which conversations outlast a restart, and a move where all machines see it |
| PYFLASH_API_KEY | the key that requests must bring; without it only this machine should reach the port |
| PYFLASH_HOSTS | names that the server is called by, beside this machine's own, with commas between |
"""

from __future__ import annotations

import os

from pyflash.cluster import replicas


def _number(name: str) -> int | None:
    return int(value) if (value := os.environ.get(name)) else None


def _replicas(text: str) -> int | tuple[int, int]:
    least, dash, most = text.partition("-")
    return (int(least), int(most)) if dash else int(least)


def _options() -> dict[str, int]:
    given = {"context": _number("PYFLASH_CONTEXT"), "threads": _number("PYFLASH_THREADS")}
    return {name: value for name, value in given.items() if value is not None}


stages = os.environ.get("PYFLASH_STAGES")
application = replicas.application(
    os.environ.get("PYFLASH_MODEL"),
    replicas=_replicas(os.environ.get("PYFLASH_REPLICAS", "1")),
    parallel=_number("PYFLASH_PARALLEL") or 2,
    stages=int(stages) if stages and stages.isdecimal() else stages,
    disk_cache=os.environ.get("PYFLASH_DISK_CACHE"),
    keys=[key] if (key := os.environ.get("PYFLASH_API_KEY")) else [],
    hosts=[host.strip().lower() for host in os.environ.get("PYFLASH_HOSTS", "").split(",") if host.strip()],
    **_options(),
)
