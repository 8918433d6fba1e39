"""The known-answer test: a frame and its labels, made and proved at build time, asked for at load time."""

from __future__ import annotations

import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fcnopt.backends import Target, open_engine, open_onnx
from fcnopt.backends.base import Built, Precision, Progress, Runner
from fcnopt.errors import BuildError, BundleError
from fcnopt.media.clips import fit_frame
from fcnopt.media.synth import SceneOptions, SynthClip
from fcnopt.spec import ModelSpec

if TYPE_CHECKING:
    from fcnopt.quantize.frames import CalibrationFrames

SELFTEST = "selftest.npz"
# An engine must agree with ONNX Runtime on the same precision graph; what is left are roundings of other kernels.
_MIN_AGREEMENT_BUILT = 0.97
# An engine that answered once on this machine answers the same again, but for kernels chosen by timing.
_MIN_AGREEMENT_SEEN = 0.995
_MAX_BYTES = 3 << 27  # of an array: a frame of 2^27 pixels, beyond any camera
# What unpacking and NumPy's header raise on damaged bytes.
_FAULTS = (
    *(ValueError, KeyError, TypeError, ArithmeticError, EOFError, OSError, RuntimeError, SyntaxError),
    *(struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)


def prove(
    model: Path,
    built: Built,
    target: Target,
    precision: Precision,
    spec: ModelSpec,
    frames: CalibrationFrames | None,
    progress: Progress,
) -> float:
    """Make the known-answer test of an engine, beside `model`, the precision graph that it was built from.

    Returns the least agreement that loading shall accept. The answer is ONNX Runtime's on the precision graph. Where
    the engine runs on this machine it must agree with that, and its own answer is kept.

    Raises:
        BuildError: The engine disagrees with the graph that it was built from.
    """
    progress("self-test", 0.0)
    frame = selftest_frame(spec, frames)
    with open_onnx(model, spec, runtime="onnxruntime") as runner:
        expected = runner.run(frame).labels
    least = _MIN_AGREEMENT_BUILT
    if target.runs_here():
        with open_engine(built.files, target, precision, spec) as runner:
            labels = runner.run(frame).labels
        agreement = float(np.mean(labels == expected))
        if agreement < least:
            raise BuildError(
                f"{target}: the engine agrees with its own graph on {agreement:.2%} of labels, expected {least:.0%}",
                fix="report this with the model: the runtime computes something else than the graph says; "
                "--precision fp32 shows whether the precision is to blame",
            )
        expected, least = labels, _MIN_AGREEMENT_SEEN
    write_selftest(model.with_name(SELFTEST), frame, expected)
    progress("self-test", 1.0)
    return least


def selftest_frame(spec: ModelSpec, frames: CalibrationFrames | None) -> NDArray[np.uint8]:
    """uint8 [1, H, W, 3]: the first calibration frame, else a rendered street."""
    if frames is not None:
        return next(iter(frames))
    height, width = spec.frame.height or 192, spec.frame.width or 320
    scene = next(iter(SynthClip(SceneOptions(seed=7, frames=1))))
    return fit_frame(scene.image, replace(spec.frame, height=height, width=width, resize="stretch"))[None]


def run_selftest(runner: Runner, file: Path, min_agreement: float) -> float:
    """Run the known-answer test and return the share of equal labels.

    Raises:
        BundleError: Fewer labels agree than `min_agreement`, or the file cannot be read.
    """
    frame, expected = read_selftest(file)
    labels = runner.run(frame).labels
    agreement = float(np.mean(labels == expected)) if labels.shape == expected.shape else 0.0
    if agreement < min_agreement:
        raise BundleError(
            f"{file.parent.name}: known-answer test failed: {agreement:.2%} of labels agree, "
            f"at least {min_agreement:.2%} must",
            fix="do not use this engine: driver, device or runtime answer differently; build it again here",
        )
    return agreement


def read_selftest(file: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read what `write_selftest` wrote: `frame` uint8 [1, H, W, 3] and its `labels` uint8 [1, H, W].

    What the file announces is held against what it can hold before memory is taken for it: a bundle that is not signed
    may be anybody's, and a few MiB of zip can announce, and unpack to, more than any memory.

    Raises:
        BundleError: It cannot be read, or holds anything else.
    """
    if not file.is_file():
        raise BundleError(f"{file}: is no file", fix="build the bundle again")
    try:
        with zipfile.ZipFile(file) as archive:
            frame, labels = (_array(archive, f"{name}.npy") for name in ("frame", "labels"))
    except _FAULTS as error:
        raise BundleError(
            f"{file}: is no known-answer test: {type(error).__name__}: {error}", fix="build the bundle again"
        ) from error
    if frame.shape != (1, *labels.shape[1:], 3) or labels.ndim != 3:
        raise BundleError(
            f"{file}: expected a frame [1, H, W, 3] and its labels [1, H, W], found {list(frame.shape)} and "
            f"{list(labels.shape)}",
            fix="build the bundle again",
        )
    return frame, labels


def _array(archive: zipfile.ZipFile, name: str) -> NDArray[np.uint8]:
    """A member of an .npz, uint8.

    Raises:
        ValueError: It is of another type, larger than any frame, or holds more or less than it announces; or is packed
            in another way than NumPy packs.
    """
    # zipfile unpacks what it has read by bzip2 and LZMA at once, whatever was asked for: gigabytes of a few KiB
    if archive.getinfo(name).compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is neither stored nor deflated")
    with archive.open(name) as member:
        version = np.lib.format.read_magic(member)
        if version != (1, 0):
            raise ValueError(f"{name} has version {version}, expected (1, 0)")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(member)
        size = math.prod(shape)
        if dtype != np.uint8 or fortran or not all(0 < length <= _MAX_BYTES for length in shape) or size > _MAX_BYTES:
            raise ValueError(f"{name} is {dtype} {list(shape)[:8]}, expected uint8 of at most {_MAX_BYTES:,} bytes")
        data = member.read(size + 1)
    if len(data) != size:
        raise ValueError(f"{name} has {'over ' if len(data) > size else ''}{min(len(data), size)} of {size} bytes")
    return np.frombuffer(data, np.uint8).reshape(shape)


def write_selftest(file: Path, frame: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
    """Write the known-answer test: `frame` uint8 [1, H, W, 3] and its `labels` uint8 [1, H, W]."""
    np.savez_compressed(file, frame=frame, labels=labels)
