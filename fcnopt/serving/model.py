"""The model as Triton knows it: tensors, batching, queue, and what its labels mean."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fcnopt.backends import Target
from fcnopt.engine import Engine
from fcnopt.serving.answers import BITS, FRAMES, PROBLEMS
from fcnopt.serving.options import ServeOptions
from fcnopt.serving.place import optional
from fcnopt.spec import METADATA_KEY, ModelSpec

_LABELS = "labels.txt"
_BYTES = {"labels": 1, "confidence": 4}  # a pixel


@dataclass(frozen=True)
class ServedModel:
    """A model as Triton knows it.

    Attributes:
        name: What clients call it.
        bundle: The bundle's name.
        spec: What the engine takes and gives.
        batch: Frames that the engine computes at once where it is built for one number of them, else None.
        instances: Batches that are answered side by side.
        on_gpu: Whether the engine runs on an NVIDIA GPU.
        max_batch: Most frames in a request.
        options: Its queue.
    """

    name: str
    bundle: str
    spec: ModelSpec
    batch: int | None
    instances: int
    on_gpu: bool
    max_batch: int
    options: ServeOptions

    @classmethod
    def of(cls, engine: Engine, options: ServeOptions) -> ServedModel:
        """The model that an engine is served as."""
        return cls(
            name=options.name_for(engine),
            bundle=engine.manifest.name,
            spec=engine.spec,
            batch=engine.batch,
            instances=engine.in_flight,
            on_gpu=Target.parse(engine.manifest.target).form == "tensorrt",
            max_batch=options.batch_for(engine),
            options=options,
        )

    @property
    def shared_bytes(self) -> int:
        """Shared memory that requests of the largest batch need; 0 where the size of frames is not known.

        A request and its answer lie there twice: in Triton's Python backend, and on their way to this process.
        """
        frame = self.spec.frame
        if frame.height is None or frame.width is None:
            return 0
        classes = 4 * len(self.spec.classes)
        pixel = 3 + sum(_BYTES.get(name, classes) for name in self.spec.outputs)
        return 2 * self.instances * self.max_batch * frame.height * frame.width * pixel

    def bind(self, triton: Any, answer: Callable[..., Any]) -> None:
        """Bind it to a `pytriton.triton.Triton`, which writes its configuration."""
        config = optional("pytriton.model_config")
        height, width = self.spec.frame.height or -1, self.spec.frame.width or -1
        shapes: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {
            "labels": (np.uint8, (height, width)),
            "confidence": (np.float32, (height, width)),
            "logits": (np.float32, (len(self.spec.classes), height, width)),
            PROBLEMS: (np.uint8, (1,)),
        }
        triton.bind(
            model_name=self.name,
            infer_func=[answer] * self.instances,
            inputs=[config.Tensor(name=FRAMES, dtype=np.uint8, shape=(height, width, 3))],
            outputs=[
                config.Tensor(name=name, dtype=shapes[name][0], shape=shapes[name][1])
                for name in (*self.spec.outputs, PROBLEMS)
            ],
            config=config.ModelConfig(max_batch_size=self.max_batch, batcher=self._batcher(config)),
            strict=True,
        )

    def _batcher(self, config: Any) -> Any:
        """Requests are joined up to the batch that the engine computes at once: beyond, the first would only wait."""
        queue = optional("pytriton.model_config.common").QueuePolicy(
            default_timeout_microseconds=round(self.options.timeout_ms * 1e3),
            allow_timeout_override=True,
            max_queue_size=self.options.max_queue,
        )
        return config.DynamicBatcher(
            max_queue_delay_microseconds=round(self.options.max_queue_delay_ms * 1e3),
            preferred_batch_size=[min(self.batch or self.max_batch, self.max_batch)],
            default_queue_policy=queue,
        )

    def describe(self) -> str:
        """Its tensors, in a line."""
        size = f"{self.spec.frame.height or 'H'}, {self.spec.frame.width or 'W'}"
        return (
            f"{FRAMES} uint8 [N, {size}, 3] {self.spec.frame.color}, N at most {self.max_batch} -> "
            f"{', '.join((*self.spec.outputs, PROBLEMS))}"
        )


def write_about(folder: Path, model: ServedModel) -> None:
    """Add what labels and problems mean to the configuration that lies in a model's folder.

    Clients read it with `get_model_config`: parameters `fcnopt.spec` (JSON: classes, palette, frames), `fcnopt.bundle`
    and `fcnopt.problems` (JSON: bits by name). The class names are also Triton's `label_filename`.
    """
    message = optional("tritonclient.grpc").model_config_pb2.ModelConfig()
    text_format = optional("google.protobuf.text_format")
    file = folder / "config.pbtxt"
    text_format.Parse(file.read_text(encoding="utf-8"), message)
    about = {
        METADATA_KEY: model.spec.to_json(),
        "fcnopt.bundle": model.bundle,
        "fcnopt.problems": json.dumps(BITS),
    }
    for key, value in about.items():
        message.parameters[key].string_value = value
    (labels,) = (output for output in message.output if output.name == "labels")
    labels.label_filename = _LABELS
    (folder / _LABELS).write_text("".join(f"{name}\n" for name in model.spec.classes.names), encoding="utf-8")
    file.write_text(text_format.MessageToString(message), encoding="utf-8")
