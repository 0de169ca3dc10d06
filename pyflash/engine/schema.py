"""JSON schemas beyond what a grammar can hold: finished answers validated by jsonschema."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pyflash.native.errors import AnswerError, ArgumentError, UnsupportedError

_MOST_NESTED = 100  # schemas within each other; some way from where Python's recursion ends
_DATA = ("const", "default", "enum", "examples")  # keywords whose values are no schemas
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies")


def one_line(text: object) -> str:
    return " ".join(str(text).split())


def read_schema(schema: Mapping[str, Any] | str) -> dict[str, Any]:
    """A JSON schema, given as a mapping or as JSON text, as what JSON makes of it. ArgumentError for what is none."""
    try:
        text = schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False, allow_nan=False)
        text.encode()
        value = json.loads(text, parse_constant=_no_number)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # "1e400" and "\\ud800" are found only now
    except RecursionError:
        raise ArgumentError("the schema is nested too deeply") from None
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"the schema is not JSON: {one_line(error)[:200]}") from None
    if not isinstance(value, dict):
        raise ArgumentError(f"a JSON schema must be an object, not {one_line(text)[:40]}")
    if _depth(value) > _MOST_NESTED:
        raise ArgumentError(f"the schema is nested more than {_MOST_NESTED} deep")
    return value


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [inner for outer in level for inner in _inner(outer)]
    return depth


def _inner(value: Any) -> list[Any]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [each for each in inner if isinstance(each, (dict, list))]


def without_patterns(schema: Any, refused: Callable[[str], bool]) -> Any:
    """A schema without the patterns that are refused, of strings and of names, though Python can match them."""
    def drops(pattern: Any) -> bool:
        return isinstance(pattern, str) and _compiles(pattern) and refused(pattern)

    if isinstance(schema, list):
        return [without_patterns(each, refused) for each in schema]
    if not isinstance(schema, dict):
        return schema
    out: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _NAMED and isinstance(value, dict):
            kept = {name: each for name, each in value.items() if key != "patternProperties" or not drops(name)}
            out[key] = {name: without_patterns(each, refused) for name, each in kept.items()}
        elif key != "pattern" or not drops(value):
            out[key] = value if key in _DATA else without_patterns(value, refused)
    if len(out.get("patternProperties", ())) < len(schema.get("patternProperties", ())):
        out.pop("additionalProperties", None)  # which would now forbid the names that the pattern allows
    return out


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


class Validator:
    """Checks finished texts against the whole of a schema. Nothing that the schema refers to is ever fetched."""

    def __init__(self, schema: dict[str, Any]) -> None:
        """UnsupportedError without the package jsonschema; ArgumentError for a schema that it cannot go by."""
        try:
            jsonschema = importlib.import_module("jsonschema")
            referencing = importlib.import_module("referencing.jsonschema")
            published = importlib.import_module("jsonschema_specifications")
        except ImportError as error:
            raise UnsupportedError(
                "this schema has rules that can only be checked when the answer is finished, which needs one more "
                "package: pip install jsonschema"
            ) from error
        if not isinstance(schema.get("$schema", ""), str):
            raise ArgumentError('"$schema" of a schema must be a string')
        _check_patterns(schema)
        kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        registry = published.REGISTRY  # the meta-schemas; without a way to get anything else
        try:
            kind.check_schema(schema)
            _check_references(schema, registry, referencing.specification_with(kind.META_SCHEMA["$schema"]))
        except (jsonschema.SchemaError, RecursionError) as error:
            where = getattr(error, "json_path", "$")
            raise ArgumentError(
                f"the schema is wrong at {where}: {one_line(getattr(error, 'message', error))[:200]}"
            ) from None
        self._validator = kind(schema, registry=registry, format_checker=kind.FORMAT_CHECKER)

    def __call__(self, text: str) -> None:
        """AnswerError where the text is not JSON of the schema."""
        try:
            problem = next(self._validator.iter_errors(json.loads(text)), None)
        except (ValueError, RecursionError, OverflowError) as error:
            raise AnswerError(f"the answer cannot be checked against the schema: {one_line(error)[:200]}") from None
        if problem is not None:
            rule = "/".join(map(str, problem.absolute_schema_path))
            raise AnswerError(
                f"the answer breaks the schema at {problem.json_path}: {one_line(problem.message)[:200]} "
                f"(rule {rule})"
            )


def _within(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The schemas right within a schema."""
    for key, value in schema.items():
        if key in _DATA:
            continue
        named = key in _NAMED and isinstance(value, dict)
        inner = value.values() if named else value if isinstance(value, list) else [value]
        yield from (each for each in inner if isinstance(each, dict))


def _check_patterns(schema: dict[str, Any]) -> None:
    names = schema.get("patternProperties")
    for pattern in [schema.get("pattern"), *(names if isinstance(names, dict) else ())]:
        if isinstance(pattern, str) and not _compiles(pattern):
            raise ArgumentError(
                f"the pattern {pattern!r:.80} cannot be checked when the answer is finished: write it as Python's "
                "regular expressions do"
            )
    for inner in _within(schema):
        _check_patterns(inner)


def _check_references(schema: dict[str, Any], registry: Any, specification: Any) -> None:
    resource = specification.create_resource(schema)
    uri = resource.id() or ""
    _resolve(schema, registry.with_resource(uri, resource).resolver(uri), specification)


def _resolve(schema: dict[str, Any], resolver: Any, specification: Any) -> None:
    """Looks up what a schema refers to. ArgumentError for what is not there."""
    if isinstance(schema.get("$id"), str):
        resolver = resolver.in_subresource(specification.create_resource(schema))
    for key in _REFERENCES:
        if isinstance(name := schema.get(key), str):
            try:
                resolver.lookup(name)
            except Exception as error:  # referencing's own, and what odd references make urllib raise
                raise ArgumentError(f"the schema refers to {name!r:.100}, which is not in it; nothing is fetched"
                                    ) from error
    for inner in _within(schema):
        _resolve(inner, resolver, specification)
