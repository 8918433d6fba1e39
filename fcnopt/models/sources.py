"""Where a network to export comes from: an FCN's checkpoint, a user's class, or somebody else's ONNX file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from fcnopt.errors import BackendError, CheckpointError, GraphError, UsageError
from fcnopt.graph import io
from fcnopt.models.verify import open_session
from fcnopt.origin import Origin

if TYPE_CHECKING:
    from fcnopt.models.checkpoint import Loaded
    from fcnopt.models.fcn import Padding

DEMO = "demo_fcn8s.pth"


class Source(ABC):
    """A trained network: float32 [N, 3, H, W] to logits float32 [N, C, H, W].

    Attributes:
        description: For people.
        classes: How many it tells apart, None where only running it tells.
        size: (height, width) of its input where that is fixed.
        batch: A number of frames that it takes at a time.
        any_size: Whether it is known to take frames of any size.
        normalization: The usual one for it, a name in `NORMALIZATIONS`.
        notes: What was concluded or converted.
        origin: Of a slimmed network, what it was made from.
    """

    description: str
    classes: int | None = None
    size: tuple[int, int] | None = None
    batch: int = 1
    any_size: bool = False
    normalization: str = "imagenet"
    notes: tuple[str, ...] = ()
    origin: Origin | None = None

    @abstractmethod
    def run(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logits for normalized pixels."""

    @abstractmethod
    def convert(self, size: tuple[int, int], dynamic: bool, opset: int) -> onnx.ModelProto:
        """The network alone as ONNX.

        Raises:
            GraphError: It cannot be converted.
        """

    def count_classes(self, size: tuple[int, int]) -> int:
        """Run it once on frames of `size`, and count.

        Raises:
            GraphError: What comes out are no logits of that size.
        """
        logits = self.run(np.zeros((self.batch, 3, *size), np.float32))
        if logits.ndim != 4 or logits.shape[2:] != size:
            raise GraphError(
                f"{self.description} gives {list(logits.shape)} for an input of [1, 3, {size[0]}, {size[1]}], "
                f"expected [1, C, {size[0]}, {size[1]}]",
                fix="make it upsample its logits to the size of its input, or choose a size that it keeps",
            )
        return int(logits.shape[1])


class TorchSource(Source):
    """A PyTorch module."""

    def __init__(self, loaded: Loaded) -> None:
        self._module = loaded.module
        self.description = loaded.description
        self.notes = loaded.notes
        self.origin = loaded.origin
        if loaded.architecture is not None:
            self.classes = loaded.architecture.classes
            self.any_size = True
            if loaded.architecture.padding == "caffe":
                self.normalization = "caffe"

    def run(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Source`."""
        logits: NDArray[np.float32] = self._call(pixels).float().numpy()
        return logits

    def _call(self, pixels: NDArray[np.float32]) -> Any:
        import torch

        try:
            with torch.inference_mode():
                return self._module(torch.from_numpy(pixels))
        except RuntimeError as error:
            raise GraphError(
                f"{self.description} fails on an input of {list(pixels.shape)}: {error}",
                fix="choose a frame size that it can take",
            ) from error

    def convert(self, size: tuple[int, int], dynamic: bool, opset: int) -> onnx.ModelProto:
        """See `Source`."""
        from fcnopt.models.convert import to_onnx

        # An odd size keeps the tracer from taking a multiple of 32 for a rule
        traced = (97, 131) if dynamic and self.any_size else size
        return to_onnx(self._module, traced, dynamic=dynamic, opset=opset)

    def count_classes(self, size: tuple[int, int]) -> int:
        """See `Source`; a module that returns a dict is made to return its `out`."""
        from fcnopt.models.user import logits_only

        self._module = logits_only(self._module, self._call(np.zeros((1, 3, *size), np.float32)))
        return super().count_classes(size)


class OnnxSource(Source):
    """Somebody else's ONNX file, without pre- and post-processing."""

    def __init__(self, path: Path) -> None:
        self._model = io.load(path)
        if io.read_spec(self._model) is not None:
            raise UsageError(f"{path}: was exported by fcnopt already", fix="give it to fcnopt build as it is")
        self.description = path.stem
        self._session = open_session(self._model)
        constants = {tensor.name for tensor in self._model.graph.initializer}
        inputs = [value for value in self._model.graph.input if value.name not in constants]
        self._input = inputs[0].name if inputs else ""
        dims = [dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim] if inputs else []
        if len(dims) == 4:
            self.batch = dims[0] or 1
            self.size = (dims[2], dims[3]) if dims[2] and dims[3] else None

    def run(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Source`."""
        try:
            outputs = self._session({self._input: pixels})
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise GraphError(
                f"{self.description} fails on an input of {list(pixels.shape)}: {error}",
                fix="choose a frame size that it can take",
            ) from error
        chosen = [array for name, array in outputs.items() if len(outputs) == 1 or name in ("logits", "out")]
        if not chosen:
            raise GraphError(
                f"{self.description}: expected one output, or one called logits, found {', '.join(outputs)}",
                fix="export the network so that the logits are its only output",
            )
        return chosen[0]

    def convert(self, size: tuple[int, int], dynamic: bool, opset: int) -> onnx.ModelProto:  # noqa: ARG002  (as it is)
        """See `Source`; the opset stays what it is."""
        if dynamic and self.size is not None:
            raise UsageError(
                f"{self.description} takes {self.size[0]} x {self.size[1]} only, it cannot be made dynamic",
                fix="export it with a fixed size, or make the ONNX file with dynamic axes",
            )
        return self._model


def open_source(
    checkpoint: str | Path | None, module: str | None, padding: Padding | None, at_once: bool, classes: int | None
) -> Source:
    """Open what a user named; see `fcnopt.exporter.export`."""
    if checkpoint is not None and Path(checkpoint).suffix.lower() == ".onnx":
        if module is not None or padding is not None or at_once:
            raise UsageError(f"{checkpoint}: an ONNX file needs no module, padding or at_once", fix="leave them out")
        return OnnxSource(Path(checkpoint))
    try:
        from fcnopt.models.checkpoint import load
        from fcnopt.models.user import load_user_module
    except ImportError as error:
        raise BackendError(
            f"{error.name} is not installed; export needs PyTorch", fix="pip install 'fcnopt[export]'"
        ) from error
    if module is not None:
        return TorchSource(load_user_module(module, checkpoint, classes=classes))
    if checkpoint is None:
        raise UsageError("no checkpoint and no module were given", fix="give one of them")
    return TorchSource(load(checkpoint, padding=padding, at_once=at_once))


def demo_checkpoint() -> Path:
    """The small FCN-8s that ships with the package.

    Raises:
        CheckpointError: The package is incomplete.
    """
    path = Path(str(resources.files("fcnopt"))) / "assets" / DEMO
    if not path.is_file():
        raise CheckpointError(
            f"{path}: the embedded demo network is missing",
            fix="install fcnopt again, make it with benchmarks/train_demo.py, or give a checkpoint",
        )
    return path
