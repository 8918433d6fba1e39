"""Dataclasses to JSON and back by their type hints, and the JSON schema that follows from the same hints.

One walk over the hints serves reading and describing, so that the schema file cannot say anything else than what
the reader accepts. Known are dataclasses, tuples of one kind or of fixed places, `X | None`, `Literal`, string-keyed
dicts, numbers, strings and booleans. A field with the metadata `{"json": False}` is left out; it has a default. One
with `{"optional": True}` may be missing and then has its default, and is not written where it has it: files that do
without what came later stay what they were, to readers that know nothing of it.
"""

from __future__ import annotations

import types
from dataclasses import Field, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

D = TypeVar("D")

_SCHEMA_NAMES: dict[object, str] = {str: "string", int: "integer", float: "number", bool: "boolean"}


def decode(kind: type[D], data: Any, what: str = "result") -> D:
    """Make `kind`, a dataclass, from parsed JSON, which a message calls `what`.

    Raises:
        ValueError: A field is missing, unknown, or of another type; the message names its path.
    """
    made: D = _decode(kind, data, what)
    return made


def schema(kind: type[Any]) -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of `kind`, a dataclass. Fields are required but for optional ones; no others."""
    hints = get_type_hints(kind)
    return {
        "type": "object",
        "additionalProperties": False,
        "required": _names(kind, optional=False),
        "properties": {name: _schema(hints[name]) for name in _names(kind)},
    }


def _decode(kind: Any, data: Any, path: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind) and isinstance(kind, type):
        return _decode_dataclass(kind, data, path)
    if origin in (Union, types.UnionType):
        (inner,) = (a for a in arguments if a is not types.NoneType)
        return None if data is None else _decode(inner, data, path)
    if origin is tuple:
        return _decode_tuple(arguments, data, path)
    if origin is Literal:
        return _expect(data in arguments, data, f"one of {arguments}", path)
    if origin is dict:
        _expect(isinstance(data, dict), data, "an object", path)
        return {str(key): _decode(arguments[1], value, f"{path}.{key}") for key, value in data.items()}
    if kind is Any:
        return data
    if kind is float:
        return _as_float(_expect(type(data) in (int, float), data, "a number", path), path)
    return _expect(type(data) is kind, data, _SCHEMA_NAMES[kind], path)


def _as_float(data: Any, path: str) -> float:
    """JSON's integers have no limit, and floats do."""
    try:
        return float(data)
    except OverflowError as error:
        raise ValueError(f"{path}: expected a number that a float can hold, found {data!r:.20}...") from error


def _decode_dataclass(kind: type[Any], data: Any, path: str) -> Any:
    _expect(isinstance(data, dict), data, "an object", path)
    hints = get_type_hints(kind)
    names, needed = set(_names(kind)), set(_names(kind, optional=False))
    for wrong, what in ((sorted(needed - set(data)), "missing"), (sorted(set(data) - names), "unknown")):
        if wrong:
            raise ValueError(f"{path}: {what} {', '.join(wrong)}")
    return kind(**{name: _decode(hints[name], data[name], f"{path}.{name}") for name in names & set(data)})


def plain(value: Any) -> Any:
    """`value` as dicts, lists, numbers and strings: what JSON can hold, without what need not be written."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value) if _written(f, value)}
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def _written(field: Field[Any], value: Any) -> bool:
    default = field.metadata.get("optional", False) and getattr(value, field.name) == field.default
    return bool(field.metadata.get("json", True)) and not default


def _names(kind: type[Any], *, optional: bool = True) -> list[str]:
    shown = [f for f in fields(kind) if f.metadata.get("json", True)]
    return [f.name for f in shown if optional or not f.metadata.get("optional", False)]


def _decode_tuple(arguments: tuple[Any, ...], data: Any, path: str) -> tuple[Any, ...]:
    _expect(isinstance(data, list | tuple), data, "an array", path)
    kinds = [arguments[0]] * len(data) if arguments[-1] is ... else list(arguments)
    _expect(len(kinds) == len(data), data, f"an array of {len(kinds)}", path)
    return tuple(_decode(k, d, f"{path}[{i}]") for i, (k, d) in enumerate(zip(kinds, data, strict=True)))


def _expect(fits: bool, data: Any, what: str, path: str) -> Any:
    if not fits:
        raise ValueError(f"{path}: expected {what}, found {data!r:.60}")
    return data


def _schema(kind: Any) -> dict[str, Any]:
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind) and isinstance(kind, type):
        return schema(kind)
    if origin in (Union, types.UnionType):
        (inner,) = (a for a in arguments if a is not types.NoneType)
        return {"anyOf": [_schema(inner), {"type": "null"}]}
    if origin is tuple:
        if arguments[-1] is ...:
            return {"type": "array", "items": _schema(arguments[0])}
        places = [_schema(a) for a in arguments]
        return {"type": "array", "prefixItems": places, "minItems": len(places), "maxItems": len(places)}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(arguments[1])}
    return {} if kind is Any else {"type": _SCHEMA_NAMES[kind]}
