"""A reader of protobuf's text format, enough for Triton's configurations, for machines without their schema."""

from __future__ import annotations

import re
from typing import Any

_TOKEN = re.compile(r'\s*("(?:[^"\\]|\\.)*"|-?\d+|[A-Za-z_]\w*|[{}\[\]:,])')
_OCTAL = re.compile(rb"\\([0-7]{3})")

Message = dict[str, list[Any]]


def parse(text: str) -> Message:
    """Fields of a message by name, each a list of what was given for it, in order."""
    tokens, position = [], 0
    while text[position:].strip():
        found = _TOKEN.match(text, position)
        assert found, f"cannot be read: {text[position : position + 40]!r}"
        tokens.append(found[1])
        position = found.end()
    tokens.reverse()
    message = _message(tokens, None)
    assert not tokens
    return message


def _message(tokens: list[str], end: str | None) -> Message:
    fields: Message = {}
    while tokens and tokens[-1] != end:
        name = tokens.pop()
        assert name.isidentifier(), f"expected a field's name, found {name}"
        if tokens[-1] == ":":
            tokens.pop()
        else:
            assert tokens[-1] in "{[", f"{name}: expected ':' or a message, found {tokens[-1]}"
        fields.setdefault(name, []).extend(_values(tokens))
    if end is not None:
        assert tokens.pop() == end
    return fields


def _values(tokens: list[str]) -> list[Any]:
    word = tokens.pop()
    if word == "{":
        return [_message(tokens, "}")]
    if word != "[":
        return [_scalar(word)]
    values: list[Any] = []
    while tokens[-1] != "]":
        values.extend(_values(tokens))
        if tokens[-1] != "]":
            assert tokens.pop() == ","
            assert tokens[-1] != "]", "a comma before ]"
    tokens.pop()
    return values


def _scalar(word: str) -> Any:
    if word.startswith('"'):
        return _OCTAL.sub(lambda found: bytes([int(found[1], 8)]), word[1:-1].encode()).decode()
    return int(word) if word.lstrip("-").isdigit() else word
