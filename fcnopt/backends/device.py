"""Frames that lie in GPU memory already, taken as they are: `__cuda_array_interface__` and DLPack.

PyCUDA, CuPy, Numba and torch arrays have at least one of them. DLPack comes first: it makes the producer's stream
and ours wait in the right order, which torch does not tell through the array interface.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import Any

from fcnopt.backends.cudart import LEGACY_STREAM
from fcnopt.backends.frames import DLPACK_CUDA
from fcnopt.errors import UsageError


@dataclass(frozen=True)
class DeviceArray:
    """Somebody's array in GPU memory.

    Attributes:
        pointer: Device address.
        shape: Its shape.
        stream: The stream that must be waited for before reading, None where the data is ready for ours.
        owner: What keeps the memory alive.
    """

    pointer: int
    shape: tuple[int, ...]
    stream: int | None
    owner: Any


def borrow(frames: Any, runner: str, stream: int = LEGACY_STREAM) -> DeviceArray | None:
    """See frames in GPU memory as address and shape, without a copy.

    Args:
        frames: Any array of uint8 on any device.
        runner: For messages.
        stream: The stream that will read them.

    Returns:
        None where the frames are in host memory.

    Raises:
        UsageError: They are on another GPU than the first, or not C-contiguous.
    """
    place = getattr(frames, "__dlpack_device__", None)
    if place is not None:
        kind, index = place()
        if int(kind) in DLPACK_CUDA:
            if index:
                raise UsageError(
                    f"{runner}: frames are on GPU {index}, the engine is on GPU 0",
                    fix="copy the frames to GPU 0, or choose the GPU for both with CUDA_VISIBLE_DEVICES",
                )
            return _from_dlpack(frames, runner, stream)
        return None
    interface = getattr(frames, "__cuda_array_interface__", None)
    return None if interface is None else _from_interface(frames, interface, runner)


def _from_interface(frames: Any, interface: dict[str, Any], runner: str) -> DeviceArray:
    """Read `__cuda_array_interface__`; before version 3 it tells no stream, so the default stream is waited for."""
    shape = tuple(int(s) for s in interface["shape"])
    _check_contiguous(shape, interface.get("strides"), runner)
    stream = interface.get("stream", LEGACY_STREAM)  # None: nothing to wait for
    return DeviceArray(int(interface["data"][0]), shape, stream, frames)


class _Tensor(ctypes.Structure):
    """DLTensor of dlpack.h."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


def _from_dlpack(frames: Any, runner: str, stream: int) -> DeviceArray:
    """Read a DLPack capsule. It is not consumed: it frees itself when the result goes."""
    capsule = frames.__dlpack__(stream=stream)
    tensor = read_capsule(capsule)
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    strides = tuple(tensor.strides[i] for i in range(tensor.ndim)) if tensor.strides else None
    _check_contiguous(shape, strides, runner)
    return DeviceArray(int(tensor.data or 0) + tensor.byte_offset, shape, None, (frames, capsule))


def read_capsule(capsule: Any) -> Any:
    """The DLTensor in an unversioned DLPack capsule; valid while the capsule lives."""
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    return _Tensor.from_address(get(capsule, b"dltensor"))


def _check_contiguous(shape: tuple[int, ...], strides: tuple[int, ...] | None, runner: str) -> None:
    """Strides in elements; for uint8 these are bytes. An axis of length 1 may have any stride."""
    if strides is None:
        return
    for axis, (size, stride) in enumerate(zip(shape, strides, strict=True)):
        if size != 1 and stride != math.prod(shape[axis + 1 :]):
            raise UsageError(
                f"{runner}: frames in GPU memory are not contiguous: shape {list(shape)}, strides {list(strides)}",
                fix="make them contiguous first: torch's .contiguous(), cupy.ascontiguousarray",
            )
