"""Autoware: the ONNX file, the engine where it is TensorRT's, and parameters for `autoware_tensorrt_common`.

`TrtCommon` loads an engine file of its own TensorRT's version, and builds one from the ONNX file where there is none or
another (its source, August 2026). Precision is in this ONNX file (casts, Q/DQ), so it must be built strongly typed:
`precision: strongly-typed`, which Autoware has since then. With an older one, flags choose: FP16 or INT8, not both.
"""

from __future__ import annotations

import json
from pathlib import Path

from fcnopt.bundle import MODEL, RECIPE, Bundle, write_text
from fcnopt.deployment.folder import render
from fcnopt.deployment.parts import (
    Interface,
    Tensor,
    copy_parts,
    described,
    interface_of,
    verified_graph,
    write_sums,
)
from fcnopt.errors import UsageError
from fcnopt.selftest import SELFTEST

ENGINE = "model.engine"
PRECISION = "strongly-typed"
_TEMPLATES = Path(__file__).parent / "templates" / "autoware"
_WEAK = ("fp32", "fp16", "int8")  # what TrtCommonConfig took before
_WORKSPACE_BYTES = 1 << 30  # TrtCommonConfig's own default


def write(bundle: Bundle, folder: Path) -> None:
    """Write the deployment into an empty folder.

    Raises:
        UsageError: TensorRT cannot build this bundle's graph, or its sizes are open.
        BundleError: The bundle is damaged.
    """
    if bundle.target.form != "tensorrt":
        raise UsageError(
            f"{bundle.path}: is for {bundle.target}, and its graph has a form for CPUs that TensorRT does not take",
            fix="build one with --target tensorrt, or without a GPU with --target tensorrt-rtx:sm86",
        )
    interface = interface_of(bundle, verified_graph(bundle))
    _check_sizes(bundle, interface)
    has_engine = bundle.target.runtime == "tensorrt"
    engine = bundle.manifest.engine if bundle.target.runtime.startswith("tensorrt") else ()
    graph = set(bundle.manifest.files) - {RECIPE, SELFTEST, *engine}  # with weights that lie beside it
    parts = {name: Path(name) for name in graph} | ({engine[0]: Path(ENGINE)} if has_engine else {})
    copy_parts(bundle, folder, parts)
    precision = bundle.manifest.precision
    values = {
        **described(bundle),
        "interface": interface,
        "has_engine": has_engine,
        "engine": ENGINE,
        "model": MODEL,
        "precision": PRECISION,
        "older_precision": precision if precision in _WEAK else None,
        "workspace": _WORKSPACE_BYTES,
        "quoted": json.dumps,
        "dims_of": _dims_of,
    }
    write_text(folder / f"{values['name']}.param.yaml", render(_TEMPLATES / "model.param.yaml", values))
    write_text(folder / "README.md", render(_TEMPLATES / "README.md", values))
    write_sums(folder)


def _check_sizes(bundle: Bundle, interface: Interface) -> None:
    """Refuse open sizes: what they may be is in an engine's profile, not in the ONNX file that Autoware builds from."""
    if None in interface.frames.dims:
        raise UsageError(
            f"{bundle.path}: takes any size or number of frames, and Autoware builds for one",
            fix="export the model again with --size HEIGHTxWIDTH",
        )


def _dims_of(tensor: Tensor) -> str:
    """As `nvinfer1::Dims` in C++."""
    return f"{{{len(tensor.dims)}, {{{', '.join(map(str, tensor.dims))}}}}}"
