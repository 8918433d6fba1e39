"""Which files a command means: those that a user names, else the newest results of the step before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fcnopt import bundle as bundles
from fcnopt.backends import Target
from fcnopt.errors import BundleError, FcnoptError, UsageError

ENGINES = Path("engines")
CALIB = Path("calib")


def model_file(path: str | Path) -> Path:
    """`path`, unless it is a bundle or a checkpoint.

    Raises:
        UsageError: It is one of these; says what to do instead.
    """
    file = Path(path)
    if (file / bundles.MANIFEST).is_file():
        raise UsageError(f"{file}: is a bundle", fix="give the ONNX model that it was built from")
    if file.suffix in (".pth", ".pt", ".safetensors"):
        raise UsageError(f"{file}: is a checkpoint, not an ONNX model", fix=f"run `fcnopt export {file}` first")
    return file


def newest_model(folder: Path) -> Path:
    """The newest exported ONNX file in `folder`.

    Raises:
        UsageError: There is none.
    """
    models = [p for p in folder.glob("*.onnx") if not p.name.endswith(".opt.onnx")]
    if not models:
        raise UsageError(
            f"no model given, and none in {folder}/", fix="run `fcnopt export CHECKPOINT` first, or name an ONNX file"
        )
    return max(models, key=lambda p: p.stat().st_mtime)


def newest_bundle(folder: Path) -> Path:
    """The newest bundle in `folder` that runs on this machine; where none does, the newest.

    Raises:
        UsageError: There is none.
    """
    manifests = (p.parent for p in folder.glob(f"*/{bundles.MANIFEST}") if not p.parent.name.startswith("."))
    found = [path for path in manifests if (path / bundles.MODEL).is_file()]
    if not found:
        raise UsageError(f"no engine given, and none in {folder}/", fix="run `fcnopt build` first, or name a bundle")
    return max(found, key=lambda p: (_runs_here(p), (p / bundles.MODEL).stat().st_mtime))


def _runs_here(bundle: Path) -> bool:
    """Whether this machine has what a bundle was built for; of a damaged one its loading tells."""
    try:
        return Target.parse(bundles.Bundle.read(bundle).manifest.target).runs_here()
    except FcnoptError:
        return True


def find_reference(bundle: bundles.Bundle) -> Path:
    """The FP32 model that `bundle` was built from.

    Raises:
        FcnoptError: It is not where it was, or is another file by now.
    """
    named = Path(str(bundle.manifest.sources["model"]))
    for path in (named, bundle.path.parent / named.name):
        if path.is_file() and bundles.sha256_of(path) == bundle.manifest.sources["model_sha256"]:
            return path
    raise FcnoptError(
        f"{bundle.path}: its FP32 reference {named} is missing or was changed since the build",
        fix="give it with --reference PATH, or build the bundle again",
    )


def read_search(bundle: Path) -> dict[str, Any] | None:
    """What a budget search found when `bundle` was built, as `fcnopt.accuracy` wrote it; None where there was none.

    Raises:
        BundleError: The recipe cannot be read, or is damaged.
    """
    path = bundle / bundles.RECIPE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text("utf-8"))["search"]
        if not isinstance(found, dict | None):
            raise TypeError(f"search is {found!r:.60}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(
            f"{path}: the recipe is cut off or damaged: {type(error).__name__}: {error}", fix="build the bundle again"
        ) from error
    return found
