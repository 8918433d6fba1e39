"""JSON that fcnopt reads (manifests, ranges, recipes, specs, classes, results): hypothesis makes wrong ones.

A whole document is changed at a place that is drawn: another value of any type and size, a missing or an unknown field;
or its text is damaged.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import hypothesis
from hypothesis import HealthCheck, Phase, strategies

from faults.case import Case
from fcnopt.bundle import Bundle
from fcnopt.choices import read_classes
from fcnopt.evaluate.result import BenchResult
from fcnopt.locate import read_search
from fcnopt.origin import Origin
from fcnopt.quantize.rangefile import RangeFile
from fcnopt.quantize.recipe import Recipe
from fcnopt.spec import ModelSpec

T = TypeVar("T")

_NUMBERS = (10**400, -(10**400), 2**63, -1, 0, 3, 1e308, float("nan"), float("inf"))
_ODD = (*_NUMBERS, "", "\ud800", "../../secret.txt", [], {})
_ANYTHING: strategies.SearchStrategy[Any] = strategies.recursive(
    strategies.sampled_from(_ODD)
    | strategies.none()
    | strategies.booleans()
    | strategies.integers()
    | strategies.floats()
    | strategies.text(max_size=20),
    lambda inner: (
        strategies.lists(inner, max_size=4) | strategies.dictionaries(strategies.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
_DAMAGE = ("cut", "deep", "bytes", "number")


@strategies.composite
def documents(draw: Callable[[Any], Any], whole: Any) -> bytes:
    """A document that is not quite the whole one, as bytes."""
    changed = deepcopy(whole)
    for _ in range(draw(strategies.integers(1, 3))):
        changed = _changed(draw, changed)
    text = json.dumps(changed).encode("utf-8", "surrogatepass")
    return _damaged(draw, text) if draw(strategies.integers(0, 4)) == 0 else text


def _changed(draw: Callable[[Any], Any], value: Any) -> Any:
    """`value` with one change, as deep in it as is drawn."""
    if isinstance(value, dict | list) and value and draw(strategies.integers(0, 5)):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = draw(strategies.sampled_from(keys))
        action = draw(strategies.sampled_from(("within", "within", "within", "remove", "add")))
        if action == "remove":
            del value[key]
        elif action == "add" and isinstance(value, dict):
            value[draw(strategies.text(max_size=8))] = draw(_ANYTHING)
        elif action == "add":
            value.insert(key, draw(_ANYTHING))
        else:
            value[key] = _changed(draw, value[key])
        return value
    return draw(_like(value))


def _like(value: Any) -> strategies.SearchStrategy[Any]:
    """Mostly of the same type, so that what comes after a check of types is reached too."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return _ANYTHING
    same = strategies.text(max_size=20) if isinstance(value, str) else strategies.sampled_from(_NUMBERS)
    return same | same | _ANYTHING


def _damaged(draw: Callable[[Any], Any], text: bytes) -> bytes:
    how, place = draw(strategies.sampled_from(_DAMAGE)), draw(strategies.integers(0, len(text)))
    if how == "cut":
        return text[:place]
    if how == "deep":
        return text[:place] + draw(strategies.sampled_from((b"[", b'{"a":'))) * 100_000
    if how == "bytes":
        return text[:place] + draw(strategies.binary(max_size=16)) + text[place:]
    return b'{"schema": ' + b"9" * 5000 + b"}"


def drawn(strategy: strategies.SearchStrategy[T], count: int, seed: int) -> list[T]:
    """So many values, the same for the same seed."""
    found: list[T] = []
    while len(found) < count:

        @hypothesis.seed(seed + len(found))
        @hypothesis.settings(
            max_examples=count - len(found),
            database=None,
            deadline=None,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        )
        @hypothesis.given(strategy)
        def keep(value: T) -> None:
            found.append(value)

        keep()
    return found[:count]


def cases(seeds: str, count: int, seed: int = 0) -> Iterator[Case]:
    """Every kind as it should be, then as many wrong ones of each, `count` in all."""
    for kind in KINDS:
        content = json.dumps(_seed(kind, Path(seeds))).encode()
        yield Case(f"{kind}, whole", partial(_written, kind, content), partial(_read, kind))
    for place, kind in enumerate(KINDS):
        wrong = (count - len(KINDS) + place) // len(KINDS)
        for number, content in enumerate(drawn(documents(_light(_seed(kind, Path(seeds)))), wrong, seed)):
            yield Case(f"{kind} {number}", partial(_written, kind, content), partial(_read, kind))


def _seed(kind: str, seeds: Path) -> Any:
    file, _ = KINDS[kind]
    if kind == "origin":
        return json.loads(Origin("fcn8s.pth", "0" * 64, "same", accuracy={"frames": 9}).to_json())
    found = json.loads((seeds / file).read_text("utf-8"))
    found.pop("checksum", None)  # with it nothing after it would be reached; without, it is of an earlier version
    return found["spec"] if kind == "spec" else found


def _light(document: Any) -> Any:
    """Without all but the first few entries of long lists and objects, so that a change hits a field and no weight."""
    if isinstance(document, dict):
        kept = list(document.items())[:24]
        return {key: _light(value) for key, value in kept}
    return [_light(value) for value in document[:4]] if isinstance(document, list) else document


def _written(kind: str, content: bytes, folder: Path) -> Path:
    path = folder / Path(KINDS[kind][0]).name
    path.write_bytes(content)
    return path


def _read(kind: str, path: Path) -> str:
    KINDS[kind][1](path)
    return "read"


def _text(read: Callable[[str], object], path: Path) -> None:
    """For readers of text: who hands it to them reads the file."""
    text = path.read_bytes().decode("utf-8", "replace")
    read(text)


def _manifest(path: Path) -> None:
    Bundle.read(path.parent).manifest.to_json()


KINDS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "manifest": ("engines/net/manifest.json", _manifest),
    "recipe": ("engines/net/recipe.json", Recipe.load),
    "search in a recipe": ("engines/net/recipe.json", lambda path: read_search(path.parent)),
    "range file": ("calib/net.json", RangeFile.load),
    "classes": ("classes.json", read_classes),
    "spec": ("engines/net/manifest.json", partial(_text, ModelSpec.from_json)),
    "origin": ("origin.json", partial(_text, lambda text: Origin.from_json(text, "net.onnx"))),
    "bench result": ("result.json", partial(_text, BenchResult.from_json)),
}
"""By kind: the whole document's file among the seeds, and what reads it."""
