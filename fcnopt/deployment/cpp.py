"""C++: the bundle, a header-only C++17 library that runs it, and an example program with its CMake files.

The library does what `fcnopt.load` does before the first frame (signature, hashes, known-answer test) and compiles
the engine with the same hints, so that labels are equal. It neither resizes nor normalizes: the latter is in the
engine.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from fcnopt.backends import Target
from fcnopt.bundle import SIGNATURE, Bundle
from fcnopt.deployment.folder import copy_bundle, render
from fcnopt.errors import UsageError

_TEMPLATES = Path(__file__).parent / "templates" / "cpp"
_README = "README.md"
_RUNTIMES = {"openvino": "OpenVINO", "tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}


def write(bundle: Bundle, folder: Path) -> None:
    """Write the deployment into an empty folder.

    Raises:
        UsageError: The engine's runtime or its frames are not for C++.
        BundleError: The bundle is damaged.
    """
    _check(bundle)
    shutil.copytree(_TEMPLATES, folder, dirs_exist_ok=True)
    name = bundle.path.resolve().name
    copy_bundle(bundle, folder / "bundle" / name)
    frame = bundle.manifest.spec.frame
    values = {
        "name": name,
        "target": Target.parse(bundle.manifest.target),
        "runtime": _RUNTIMES[bundle.target.runtime],
        "built": bundle.manifest.runtime,
        "device": bundle.manifest.device,
        "frame": frame,
        "classes": bundle.manifest.spec.classes.names,
        "signed": (bundle.path / SIGNATURE).exists(),
    }
    (folder / _README).write_text(render(_TEMPLATES / _README, values), encoding="utf-8")


def _check(bundle: Bundle) -> None:
    """Refuse what the library would refuse on the vehicle."""
    if bundle.target.runtime not in _RUNTIMES:
        raise UsageError(
            f"{bundle.path}: is for {bundle.target}, which C++ has no part for",
            fix=f"build one with --target {' or '.join(_RUNTIMES)}",
        )
    frame = bundle.manifest.spec.frame
    if frame.height is None or frame.width is None:
        raise UsageError(
            f"{bundle.path}: takes frames of any size, C++ runs engines of one size",
            fix="export the model again with --size HEIGHTxWIDTH",
        )
