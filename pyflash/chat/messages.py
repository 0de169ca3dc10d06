"""Messages as callers give them, mappings or objects such as the openai package's, to plain data of known types."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pyflash.chat.format import TASKS, to_json
from pyflash.native.errors import ArgumentError, Error

Message = Mapping[str, Any]

ROLES = ("system", "user", "tool", "assistant", "developer", "latest_reminder")
_MOST_NESTED = 100  # lists and mappings within each other; Python's own limit is near 1000 calls
_FLAGS = ("wo_eos", "prefix")


def plain_messages(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """The messages as new dicts that hold what the encoding knows of each, checked. ArgumentError for anything else."""
    with _reading("messages"):
        if isinstance(messages, (str, bytes, bytearray, Mapping)) or not isinstance(messages, Iterable):
            raise ArgumentError(f"messages must be a list of messages, not {_name(messages)}")
        return [_message(message) for message in messages]


def plain_data(value: Any, what: str) -> Any:
    """A value as JSON's types, objects that have a model_dump() as what that gives. ArgumentError where it has others.

    what: its name in the error.
    """
    with _reading(what):
        return _plain(value, what, 0)


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Lets nothing but this package's errors out: the objects that are read are a caller's, and may do anything."""
    try:
        yield
    except (Error, MemoryError):
        raise
    except Exception as error:
        raise ArgumentError(f"{what} cannot be read: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _name(value: Any) -> str:
    return type(value).__name__


def _opened(value: Any) -> Any:
    """What a pydantic model holds, as a mapping; any other value as it is."""
    dump = None if isinstance(value, (Mapping, type)) else getattr(value, "model_dump", None)
    return dump(exclude_none=True, by_alias=True) if callable(dump) else value


def _get(value: Any, key: str) -> Any:
    """A member of a mapping, or an attribute of an object; None where it has none."""
    return value.get(key) if isinstance(value, Mapping) else getattr(value, key, None)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview))


def _string(text: str) -> str:
    return text if type(text) is str else str.__str__(text)  # of a subclass, such as an Enum, what it is


def _message(message: Any) -> dict[str, Any]:
    message = _opened(message)
    role = _get(message, "role")
    role = _string(role) if isinstance(role, str) else role
    if role not in ROLES:
        raise ArgumentError(f"a message has the role {role!r:.60}; known are {', '.join(ROLES)}")
    task = _get(message, "task")
    if task is not None and task not in tuple(TASKS):
        raise ArgumentError(f"unknown task {task!r:.60}; known are {', '.join(TASKS)}")
    out = {"role": role, "content": _text(_get(message, "content"), "content")}
    if task is not None:
        out["task"] = _string(task)
    out |= {flag: True for flag in _FLAGS if _flag(message, flag)}
    if "prefix" in out and role != "assistant":
        raise ArgumentError('only an assistant\'s message can have "prefix"')
    if role == "assistant":
        out["reasoning_content"] = _text(_get(message, "reasoning_content"), "reasoning_content")
        if calls := _get(message, "tool_calls"):
            out["tool_calls"] = [_call(call) for call in _entries(calls, "tool_calls")]
    elif role == "tool":
        out["tool_call_id"] = str(_get(message, "tool_call_id") or "")
    if role not in ("user", "tool") and (tools := _get(message, "tools")):
        out["tools"] = plain_tools(tools)
    if schema := _get(message, "response_format"):
        out["response_format"] = _plain(schema, "response_format", 0)
    return out


def _flag(message: Any, key: str) -> bool:
    value = _get(message, key)
    if value is None or isinstance(value, (bool, int)):
        return bool(value)
    raise ArgumentError(f"{key} of a message must be true or false, not {_name(value)}")


def _text(content: Any, what: str) -> str:
    """Content as text: a string, or a list of parts of which only the texts can be read."""
    if content is None:
        return ""
    if isinstance(content, str):
        return _string(content)
    if not _is_list(content):
        raise ArgumentError(f"a message's {what} must be a string or a list of parts, not {_name(content)}")
    parts = []
    for part in map(_opened, content):
        kind = _get(part, "type") if isinstance(part, Mapping) or hasattr(part, "type") else _name(part)
        text = _get(part, "text")
        if kind == "text" and not isinstance(text, str) and text is not None:
            raise ArgumentError(f"the text of a part of a message must be a string, not {_name(text)}")
        parts.append(_string(text or "") if kind == "text" else f"[Unsupported {kind}]")
    return "\n\n".join(parts)


def _entries(value: Any, what: str) -> Sequence[Any]:
    if not _is_list(value):
        raise ArgumentError(f"{what} must be a list, not {_name(value)}")
    entries: Sequence[Any] = value
    return entries


def _function(entry: Any, what: str) -> Any:
    """The "function" of one of the tools or tool calls. ArgumentError where it has none."""
    inner = _opened(_get(_opened(entry), "function"))
    if inner is None or isinstance(inner, (str, bytes, int, float)) or _is_list(inner):
        raise ArgumentError(f'each of the {what} must have a "function"')
    return inner


def _call(call: Any) -> dict[str, Any]:
    call = _opened(call)
    called = _function(call, "tool_calls")
    name = _get(called, "name")
    if not isinstance(name, str):
        raise ArgumentError("a tool call has no name")
    given = _get(called, "arguments")
    arguments = _string(given) if isinstance(given, str) else _plain(given, "arguments", 0)
    call_id = _get(call, "id") or _get(called, "id")
    inner = {"name": _string(name), "arguments": arguments}
    return {"id": str(call_id) if call_id else None, "type": "function", "function": inner}


def plain_tools(tools: Any) -> list[dict[str, Any]]:
    """Tools, each {"type": "function", "function": {...}}, as plain data. ArgumentError for anything else."""
    with _reading("tools"):
        out = []
        for tool in _entries(tools, "tools"):
            inner = _plain(_function(tool, "tools"), "tools", 0)
            if not isinstance(inner, dict):
                raise ArgumentError('each of the tools must have a "function"')
            out.append({"type": "function", "function": inner})
        return out


def _plain(value: Any, what: str, depth: int) -> Any:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return _string(value)
    if depth == _MOST_NESTED:
        raise ArgumentError(f"{what}: lists and objects more than {_MOST_NESTED} deep in each other")
    value = _opened(value)
    if isinstance(value, Mapping):
        return {_key(key, what): _plain(inner, what, depth + 1) for key, inner in value.items()}
    if _is_list(value):
        return [_plain(inner, what, depth + 1) for inner in value]
    raise ArgumentError(f"{what}: JSON cannot express a value of the type {_name(value)}")


def _key(key: Any, what: str) -> str:
    if isinstance(key, str):
        return _string(key)
    if key is None or isinstance(key, (bool, int, float)):
        return to_json(key)  # as JSON writes such a key
    raise ArgumentError(f"{what}: JSON has no keys of the type {_name(key)}")
