"""What a runner checks before it runs: the frames handed in, and the engine against its spec."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcnopt.errors import BackendError, UsageError
from fcnopt.spec import ModelSpec

DLPACK_CUDA = (2, 13)
"""kDLCUDA and kDLCUDAManaged of dlpack.h."""


def shape_and_dtype(array: Any) -> tuple[tuple[int, ...], str]:
    """Shape and element type ("uint8") of anything array-like, on whichever device; () and the type's name if none."""
    interface = getattr(array, "__cuda_array_interface__", None)
    if not hasattr(array, "shape") and interface is not None:
        return tuple(interface["shape"]), np.dtype(interface["typestr"]).name
    shape, dtype = getattr(array, "shape", ()), getattr(array, "dtype", type(array).__name__)
    return tuple(shape), str(dtype).removeprefix("torch.")


def on_gpu(frames: Any) -> bool:
    """Whether frames say that they lie in the memory of an NVIDIA GPU, by either of the two ways to say so."""
    place = getattr(frames, "__dlpack_device__", None)
    return hasattr(frames, "__cuda_array_interface__") or (place is not None and int(place()[0]) in DLPACK_CUDA)


def as_numpy(frames: Any, runner: str) -> NDArray[np.uint8]:
    """Frames in host memory, C-contiguous; no copy where they are that already.

    Raises:
        UsageError: They are in GPU memory.
    """
    # Asked first, because some GPU arrays convert themselves, by a slow copy that nobody sees.
    if not on_gpu(frames):
        try:
            return np.ascontiguousarray(frames, dtype=np.uint8)
        except (TypeError, RuntimeError, ValueError) as error:
            raise _not_on_host(frames, runner) from error
    raise _not_on_host(frames, runner)


def stacked(frames: Sequence[Any], count: int, runner: str) -> NDArray[Any]:
    """Frames in host memory as one batch of `count`, filled up with the last of them.

    Args:
        frames: uint8 [H, W, 3] each, at least one and at most `count`.
        count: Frames in the batch.
        runner: For messages.

    Raises:
        UsageError: They are in GPU memory, or differ in shape or type.
    """
    kinds = [shape_and_dtype(frame) for frame in frames]
    other = next((kind for kind in kinds if kind != kinds[0]), None)
    if other is not None:
        first, second = (f"{dtype} [{', '.join(map(str, shape))}]" for shape, dtype in (kinds[0], other))
        raise UsageError(
            f"{runner}: frames of one batch must be alike, found {first} and {second}",
            fix="hand in raw frames as the camera gives them; use fcnopt.media.fit_frame for another size",
        )
    if kinds[0][1] != "uint8":
        return np.stack([np.asarray(frame) for frame in frames])  # refused by the check that follows
    filled = [*frames, *[frames[-1]] * (count - len(frames))]
    return np.stack([as_numpy(frame, runner) for frame in filled])


def _not_on_host(frames: Any, runner: str) -> UsageError:
    return UsageError(
        f"{runner}: frames must be in host memory, found {type(frames).__module__}.{type(frames).__name__}",
        fix="copy them to the host first, or use a GPU runtime, which takes them as they are",
    )


def check_interface(
    runner: str, spec: ModelSpec, inputs: dict[str, tuple[str, tuple[int | None, ...]]], outputs: Iterable[str]
) -> int | None:
    """Compare an engine's inputs and outputs with the spec.

    Args:
        runner: For messages.
        spec: What the engine should take and give.
        inputs: Type ("uint8") and shape of each input by name; None for a dynamic axis.
        outputs: Names of the outputs.

    Returns:
        The number of frames the engine is built for, None where any.

    Raises:
        BackendError: They differ.
    """
    size = spec.frame
    fix = "export and build the model again, so that the engine and its spec come from the same model"
    if len(inputs) != 1 or missing(spec.outputs, outputs):
        raise BackendError(
            f"{runner}: expected one input and the outputs {', '.join(spec.outputs)}, "
            f"found {', '.join(inputs) or 'none'} -> {', '.join(outputs) or 'none'}",
            fix=fix,
        )
    ((name, (dtype, shape)),) = inputs.items()
    want = (None, size.height, size.width, 3)
    clash = len(shape) != 4 or any(s is not None and w is not None and s != w for s, w in zip(shape, want, strict=True))
    if dtype != "uint8" or clash:
        found = f"{dtype} [{', '.join('?' if s is None else str(s) for s in shape)}]"
        wanted = f"uint8 [N, {size.height or 'H'}, {size.width or 'W'}, 3]"
        raise BackendError(f"{runner}: input {name!r} should be {wanted} by the spec, found {found}", fix=fix)
    return shape[0]


def missing(wanted: Iterable[str], found: Iterable[str]) -> tuple[str, ...]:
    """The names in `wanted` that are not in `found`."""
    have = set(found)
    return tuple(name for name in wanted if name not in have)
