"""The metrics of several replicas as one text, each told apart by a label."""

from __future__ import annotations

from collections.abc import Mapping


def merged(texts: Mapping[str, str]) -> str:
    """Prometheus texts by replica, whose samples get the label `replica`; a metric's samples stay together."""
    kinds: dict[str, str] = {}
    samples: dict[str, list[str]] = {}
    for replica, text in texts.items():
        family = ""
        for line in text.splitlines():
            if line.startswith("# TYPE "):
                family = line.split(" ")[2]
                kinds.setdefault(family, line)
            elif line and not line.startswith("#"):
                samples.setdefault(family, []).append(_labelled(line, replica))
    return "".join(f"{line}\n" for family, kind in kinds.items() for line in (kind, *samples.get(family, ())))


def _labelled(line: str, replica: str) -> str:
    label = 'replica="' + replica.replace("\\", "\\\\").replace('"', '\\"') + '"'
    name, _, value = line.rpartition(" ")
    if name.endswith("}"):
        return f"{name[:-1]},{label}}} {value}"
    return f"{name}{{{label}}} {value}"
