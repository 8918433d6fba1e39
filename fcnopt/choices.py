"""Specs from what a user types: the classes, the normalization, the size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast, get_args

from fcnopt.errors import UsageError
from fcnopt.spec import DATASETS, NORMALIZATIONS, ClassSpec, ColorOrder, Normalization

_CLASSES_FIX = 'give a JSON file like {"names": ["road", "car"], "palette": [[128, 64, 128], [0, 0, 142]]}'


def read_classes(choice: str | Path | ClassSpec) -> ClassSpec:
    """The classes that `choice` means.

    Args:
        choice: A data set's name (`DATASETS`), or a JSON file: an object with `names`, and if wanted `palette`
            ([R, G, B] each, 0..255; made up otherwise) and `ignore_index` (255 otherwise; null for none).

    Raises:
        UsageError: The name is unknown, or the file is missing or has another form.
    """
    if isinstance(choice, ClassSpec):
        return choice
    if str(choice) in DATASETS:
        return ClassSpec.named(str(choice))
    path = Path(choice)
    if path.suffix.lower() != ".json":
        return ClassSpec.named(str(choice))  # raises, listing the names there are
    try:
        data = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"classes: {path}: no such file", fix=_CLASSES_FIX) from error
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"classes: {path}: not a JSON file: {error}", fix=_CLASSES_FIX) from error
    return _classes_from(data, path)


def read_normalization(choice: str) -> Normalization:
    """The normalization that `choice` means.

    Args:
        choice: A name (`NORMALIZATIONS`), or mean and standard deviation as "R,G,B/R,G,B"; "BGR:B,G,R/B,G,R" for a
            network that takes BGR. With all numbers up to 1 they are for pixels scaled to 0..1, as torchvision's
            are; with any above 1, for pixels 0..255.

    Raises:
        UsageError: It is neither.
    """
    if choice in NORMALIZATIONS:
        return NORMALIZATIONS[choice]
    fix = f"use one of {', '.join(NORMALIZATIONS)}, or mean/std such as 0.485,0.456,0.406/0.229,0.224,0.225"
    before, colon, numbers = choice.rpartition(":")
    color = before.upper() if colon else "RGB"
    try:
        mean, std = (tuple(float(v) for v in part.split(",")) for part in numbers.split("/"))
    except ValueError as error:
        raise UsageError(f"normalize: {choice!r} is not a normalization", fix=fix) from error
    if len(mean) != 3 or len(std) != 3 or color not in get_args(ColorOrder):
        raise UsageError(f"normalize: {choice!r} is not three numbers for the mean and three for the std", fix=fix)
    scale = 1 / 255 if max(map(abs, (*mean, *std))) <= 1 else 1.0
    return Normalization(cast(ColorOrder, color), scale, mean, std)


def read_size(text: str) -> tuple[int, int]:
    """The (height, width) of "HEIGHTxWIDTH".

    Raises:
        UsageError: It is no such thing.
    """
    height, x, width = text.lower().partition("x")
    if not x or not height.strip().isdecimal() or not width.strip().isdecimal():
        raise UsageError(f"size: {text!r} is not HEIGHTxWIDTH", fix="give it as in 360x480")
    return int(height), int(width)


def _classes_from(data: Any, path: Path) -> ClassSpec:
    if not isinstance(data, dict) or not isinstance(data.get("names"), list):
        raise UsageError(f"classes: {path}: expected an object with a list 'names'", fix=_CLASSES_FIX)
    unknown = sorted(set(data) - {"names", "palette", "ignore_index"})
    if unknown:
        raise UsageError(f"classes: {path}: unknown entry {unknown[0]!r}", fix=_CLASSES_FIX)
    names = tuple(str(name) for name in data["names"])
    ignore = data.get("ignore_index", 255)
    if ignore is not None and (type(ignore) is not int or not 0 <= ignore <= 255):
        raise UsageError(f"classes: {path}: ignore_index {ignore!r} is not a label", fix="use 0 to 255, or null")
    if "palette" not in data:
        return ClassSpec(names, ClassSpec.of_count(len(names)).palette, ignore)
    try:
        palette = tuple((int(r), int(g), int(b)) for r, g, b in data["palette"])
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"classes: {path}: palette is not a list of [R, G, B]", fix=_CLASSES_FIX) from error
    return ClassSpec(names, palette, ignore)
