"""A Modelfile, by which `ollama create` takes a GGUF file in.

Ollama since 0.30 hands chats to llama.cpp with the Jinja template inside the GGUF wherever that can do more than the
Modelfile's TEMPLATE. Ours leaves tools out for that reason: with a TEMPLATE Ollama itself reads calls, as JSON, and would
swallow DeepSeek's markup, which llama.cpp understands. TEMPLATE serves plain chats where OLLAMA_GO_TEMPLATE demands it.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gguf_export.chat_texts import EFFORTS, release_of
from gguf_export.engine import ProgressFn
from gguf_export.errors import ConvertError
from gguf_export.metadata import ARCH
from gguf_export.outputs import check_name, output_file
from gguf_export.placing import (
    make_folder,
    number_key,
    open_for_programs,
    place_files,
    remove_folders,
    replaceable,
    text_key,
)
from gguf_export.reader import GGUFFile
from gguf_export.sampling import recommended

MODELFILE = "Modelfile"
STOPS = ("<｜end▁of▁sentence｜>", "<｜User｜>")

# Ollama's names of what gguf_export.sampling calls otherwise.
_PARAMETERS = {"repetition_penalty": "repeat_penalty", "penalty_last_n": "repeat_last_n"}

_NAME_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}"
_NAME = re.compile(rf"(?:{_NAME_PART}/){{0,2}}{_NAME_PART}(?::{_NAME_PART})?")

# Ollama joins neighbouring messages of one role before it renders. It takes the tags of reasoning from the texts around
# .Thinking, so "<think>" and "</think>" must be what stands next to it.
_TEMPLATE = """\
{{- $last := -1 }}
{{- range $i, $_ := .Messages }}
{{- if or (eq .Role "user") (eq .Role "tool") }}{{ $last = $i }}{{ end }}
{{- end -}}
<｜begin▁of▁sentence｜>
{{- if and .Think .Messages }}@EFFORTS@
{{- end }}
{{- $before := "" }}
{{- range $i, $_ := .Messages }}
{{- if or (eq .Role "user") (eq .Role "tool") }}
{{- if eq $before "user" }}

{{ else }}<｜User｜>{{ end }}
{{- if eq .Role "tool" }}<tool_result>{{ .Content }}</tool_result>{{ else }}{{ .Content }}{{ end }}
{{- $before = "user" }}
{{- else if eq .Role "assistant" }}
{{- if eq $before "user" }}<｜Assistant｜>
{{- if and $.Think (gt $i $last) }}<think>{{ .Thinking }}</think>{{ else }}</think>{{ end }}
{{- else if and $.Think (gt $i $last) }}{{ .Thinking }}</think>{{ end }}
{{- .Content }}
{{- if lt $i (len (slice $.Messages 1)) }}<｜end▁of▁sentence｜>{{ end }}
{{- $before = "assistant" }}
{{- else if eq .Role "system" }}{{ .Content }}
{{- $before = "system" }}
{{- end }}
{{- end }}
{{- if eq $before "user" }}<｜Assistant｜>{{ if .Think }}<think>{{ else }}</think>{{ end }}{{ end -}}
"""


@dataclass(frozen=True)
class OllamaExport:
    """What was written: the Modelfile and the GGUF files it names. how: where those are, "stay" or as placed."""

    modelfile: Path
    model_files: list[Path]
    how: str
    name: str

    def commands(self) -> list[str]:
        """What to run next."""
        create = _command("ollama", "create", self.name, "-f", str(self.modelfile))
        return [create, _command("ollama", "run", self.name)]


def _command(*words: str) -> str:
    if sys.platform == "win32":
        return " ".join(f'"{word}"' if " " in word else word for word in words)
    return shlex.join(words)


def go_template(release: str) -> str:
    """The TEMPLATE for a release, "preview" or "0731", in Go's text/template."""
    branches = [
        f'{{{{- if eq .ThinkLevel "{effort}" }}}}{text}{{{{ end }}}}'
        for effort, text in EFFORTS[release].items()
        if text
    ]
    return _TEMPLATE.replace("@EFFORTS@", "\n".join(["", *branches]) if branches else "")


def _from_line(path: str) -> str:
    # Ollama's parser drops characters that cannot be printed, and blanks at the ends.
    if not path.isprintable() or path != path.strip() or '"' in path:
        raise ConvertError(f"Ollama cannot read the path {path!r}; use one of plain characters, or place='link'")
    return f"FROM {path}"


def _sampling_lines(gguf: GGUFFile) -> list[str]:
    """What the file recommends, over what is neutral: Ollama's own defaults would filter more."""
    values = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}
    values |= recommended(lambda each: gguf.keys.get(each.key))
    lines = []
    for name, value in values.items():
        if name == "top_k" and value == 0:
            lines.append("# Ollama would keep only the 40 likeliest tokens:")
        lines.append(f"PARAMETER {_PARAMETERS.get(name, name)} {value:.10g}")
    return lines


def modelfile(gguf: GGUFFile, paths: Sequence[str], name: str) -> str:
    """The text of a Modelfile. paths: the GGUF or its shards, absolute, or relative to the Modelfile and with ./"""
    release = release_of(lambda key: text_key(gguf, key))
    context = int(number_key(gguf, f"{ARCH}.context_length", 0))
    lines = [f"# {name}: DeepSeek-V4 ({release}), for Ollama 0.30.12 or newer. Made by pyflash export ollama."]
    if len(paths) > 1:
        lines.append(f"# Ollama joins the {len(paths)} shards while it takes the model in.")
    lines += [_from_line(path) for path in paths]
    lines += [
        "",
        "# Ollama's own default context is short. Choose one that your memory holds"
        + (f", up to {context}:" if context else ":"),
        "# PARAMETER num_ctx 65536",
        "# Thinking at the highest level wants 393216.",
        *_sampling_lines(gguf),
        *(f'PARAMETER stop "{stop}"' for stop in STOPS),
        "",
        "# Plain chats, for OLLAMA_GO_TEMPLATE=1. Else the template inside the GGUF is used, which has tools as well.",
        f'TEMPLATE """{go_template(release)}"""',
    ]
    licence = text_key(gguf, "general.license")
    if licence.lower() == "mit":
        lines += ["", 'LICENSE "MIT"']
    return "\n".join(lines) + "\n"


def default_name(gguf: GGUFFile, source: Path) -> str:
    """A name that Ollama takes, from the file's metadata or its own name."""
    stem = re.sub(r"-\d{5}-of-\d{5}$", "", source.stem)
    for text in (text_key(gguf, "general.name"), stem):
        name = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:80]
        if name:
            return name
    return "deepseek-v4"


def export_ollama(
    source: Path, dest: Path, *, name: str | None = None, place: str = "stay", force: bool = False,
    progress: ProgressFn | None = None,
) -> OllamaExport:
    """Writes dest/Modelfile, making the folder dest where it is not there.

    place: "stay" (FROM names the files where they are), "link" (put beside the Modelfile as links, or as copies where
    the file system cannot link) or "copy". ConvertError for files that Ollama cannot run, and for what stands in the
    way unless force is set. On any error or Ctrl-C there is no new Modelfile; a pipe or device in its place, which
    force writes to, may have had some of it.
    """
    gguf, sources = open_for_programs(source, "Ollama")
    chosen = default_name(gguf, source) if name is None else name
    if not _NAME.fullmatch(chosen):
        raise ConvertError(f"{chosen!r} is no name for Ollama; use letters, digits, '-', '_' and '.', then :TAG")
    dest = Path(check_name(dest))
    target = dest / MODELFILE
    paths = [f"./{path.name}" if place != "stay" else os.path.abspath(path) for path in sources]
    text = modelfile(gguf, paths, chosen)
    made = make_folder(dest)
    try:
        with output_file(replaceable(target, sources, force, streams=True)) as file:
            file.write(text.encode("utf-8"))
            files, how = list(map(Path, paths)), "stay"
            if place != "stay":
                files, how = place_files(sources, dest, copy=place == "copy", force=force, progress=progress)
    except BaseException:
        remove_folders(made)
        raise
    return OllamaExport(target, files, how, chosen)
