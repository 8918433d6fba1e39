"""Docker: an image that serves the bundle with `fcnopt serve`, as a user without rights, with a health check.

The runtime is held to the version that built the engine. Whom the vehicle trusts is not in the image: where the bundle
is signed, the container wants public keys mounted and refuses to start without them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from fcnopt.bundle import Bundle, write_text
from fcnopt.deployment.folder import copy_bundle, render
from fcnopt.deployment.parts import SUMS, described, write_sums
from fcnopt.errors import UsageError
from fcnopt.version import __version__

_TEMPLATES = Path(__file__).parent / "templates" / "docker"
_EXTRAS = {"openvino": "serve", "onnxruntime": "serve,cpu", "tensorrt": "serve", "tensorrt-rtx": "serve,rtx"}
_PYTHON = "python:3.12-slim"


def write(bundle: Bundle, folder: Path) -> None:
    """Write the deployment into an empty folder.

    Raises:
        UsageError: No image can run this bundle.
        BundleError: The bundle is damaged.
    """
    target = bundle.target
    if target.runtime == "openvino" and target.device:
        raise UsageError(
            f"{bundle.path}: is for {target}, and the image has no driver of an Intel GPU",
            fix="build one with --target openvino",
        )
    facts = described(bundle)
    # CUDA's libraries come with the base image where no wheel brings them.
    based = target.runtime == "tensorrt" or target.device == "cuda"
    values = {
        **facts,
        "version": __version__,
        "python": _PYTHON,
        "based": based,
        "on_gpu": target.runtime.startswith("tensorrt") or target.device == "cuda",
        "requirements": _requirements(bundle),
        "tag": re.sub(r"[^a-z0-9._-]+", "-", facts["name"].lower()).strip("._-") or "engine",
        "sums": SUMS,
        "quoted": json.dumps,
    }
    copy_bundle(bundle, folder / "bundle" / facts["name"])
    for name, place in (
        ("Dockerfile", "Dockerfile"),
        ("dockerignore", ".dockerignore"),
        ("compose.yaml", "compose.yaml"),
        ("wheels.txt", "wheels/README.txt"),
        ("README.md", "README.md"),
    ):
        (folder / place).parent.mkdir(exist_ok=True)
        write_text(folder / place, render(_TEMPLATES / name, values))
    write_sums(folder)


def _requirements(bundle: Bundle) -> tuple[str, ...]:
    """What pip installs: fcnopt in this version, and the runtime in the version that built the engine."""
    target = bundle.target
    name, _, version = bundle.manifest.runtime.partition(" ")
    if target.device == "cuda":
        return f"fcnopt[serve]=={__version__}", f"onnxruntime-gpu=={version}", "cuda-python"
    fcnopt = f"fcnopt[{_EXTRAS[target.runtime]}]=={__version__}"
    if target.runtime == "tensorrt":  # the base image brings it
        return fcnopt, "cuda-python"
    return fcnopt, f"{name.replace('_', '-')}=={version}"
