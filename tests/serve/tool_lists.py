"""Tools as coding agents declare them: as many, of the same kinds of parameters, in words of our own."""

from __future__ import annotations

from typing import Any

S = {"type": "string"}
N = {"type": "integer"}
B = {"type": "boolean"}


def tool(name: str, required: str = "", **properties: Any) -> dict[str, Any]:
    """A function. required: names, parted by blanks."""
    schema = {"type": "object", "properties": properties, "required": required.split(), "additionalProperties": False}
    return {"name": name, "description": f"Does what {name} says.", "parameters": schema}


def items(inner: Any, **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": inner, **more}


def record(required: str = "", **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required.split()}


PI = [
    tool("read", "path", path=S, offset={"type": "number"}, limit={"type": "number"}),
    tool("bash", "command", command=S, timeout={"type": "number"}),
    tool("edit", "path edits", path=S, edits=items(record("oldText newText", oldText=S, newText=S), minItems=1)),
    tool("write", "path content", path=S, content=S),
]

OPENCODE = [
    tool("bash", "command description", command=S, timeout=N, workdir=S, description=S),
    tool("read", "filePath", filePath=S, offset=N, limit={"type": "integer", "minimum": 1, "maximum": 2000}),
    tool("write", "content filePath", content=S, filePath=S),
    tool("edit", "filePath oldString newString", filePath=S, oldString=S, newString=S, replaceAll=B),
    tool("glob", "pattern", pattern=S, path=S),
    tool("grep", "pattern", pattern=S, path=S, include=S),
    tool("todowrite", "todos", todos=items(record(
        "content status priority id", content=S, id=S, priority={"type": "string", "enum": ["high", "medium", "low"]},
        status={"type": "string", "enum": ["pending", "in_progress", "completed", "cancelled"]}))),
    tool("todoread"),
    tool("task", "description prompt subagent_type", description=S, prompt=S, subagent_type=S),
    tool("webfetch", "url format", url={"type": "string", "format": "uri"}, timeout={"type": "number"},
         format={"type": "string", "enum": ["text", "markdown", "html"]}),
]  # fmt: skip

_STEP = record("step status", step=S, status={"type": "string", "enum": ["pending", "in_progress", "completed"]})
CODEX = [
    tool("shell", "command", command=items(S), workdir=S, timeout_ms=N, with_escalated_permissions=B, justification=S),
    tool("update_plan", "plan", explanation=S, plan=items(_STEP)),
    tool("view_image", "path", path=S),
    tool("exec_command", "cmd", cmd=S, yield_time_ms=N, max_output_tokens=N, shell=S, login=B),
    tool("write_stdin", "session_id", session_id=N, chars=S, yield_time_ms=N),
    tool("list_dir", "dir_path", dir_path=S, offset=N, limit=N, depth={"type": "integer", "minimum": 1}),
    tool("spawn_agent", "message", message=S, agent_type={"type": ["string", "null"], "enum": ["default", "explorer", None]}),
    tool("wait", "ids", ids=items(S, minItems=1), timeout_ms=N),
    tool("close_agent", "id", id=S),
    tool("ask", "questions", questions=items(record("header question options", header=S, question=S, options=items(
        record("label", label=S, description=S), minItems=1, maxItems=4)), minItems=1, maxItems=3)),
    tool("read_mcp_resource", "server uri", server=S, uri=S),
    tool("input_only", "input", input=S),
]  # fmt: skip

_TREE = {"type": "object", "$defs": {"node": record("name", name=S, children=items({"$ref": "#/$defs/node"}, maxItems=2))},
         "properties": {"root": {"$ref": "#/$defs/node"}, "depth": N}, "required": ["depth"]}  # fmt: skip
CLINE = [
    *({**each, "name": f"{each['name']}_v2"} for each in OPENCODE),
    *({**each, "name": f"{each['name']}_v3"} for each in PI),
    tool("choose", "value", value={"anyOf": [N, B, {"type": "null"}]}, when={"oneOf": [{"const": "now"}, {"const": "later"}]}),
    tool("set", "key value", key={"enum": ["a b", 'with "quotes"', "ü"]}, value={"type": ["number", "boolean", "null"]}),
    tool("place", "x y", x={"type": "number", "minimum": -1, "maximum": 1}, y={"type": "number"}, label={"type": ["string", "null"]}),
    tool("env", "variables", variables={"type": "object", "additionalProperties": N}),
    tool("matrix", "rows", rows=items(items(N, maxItems=3), maxItems=3)),
    {"name": "tree", "description": "Nested.", "parameters": _TREE},
    tool("flags", "", **{f"flag-{n}": B for n in range(12)}),
    tool("many", "a b c d e", a=N, b=N, c=B, d=N, e=B),
    tool("odd.name-[x]", "b/c", **{"a (1)": B, "b/c": N}),
    tool("nothing"),
    {"name": "no_schema", "description": "", "parameters": {}},
]  # fmt: skip

LISTS = {"pi": PI, "opencode": OPENCODE, "codex": CODEX, "cline": CLINE}
