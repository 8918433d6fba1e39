"""OpenVINO as its own documentation runs a network.

By default a request on a model compiled for latency, NumPy around it. `--queue` is its AsyncInferQueue on a model
compiled for throughput; `--in-graph` puts normalization and argmax into the graph by its PrePostProcessor.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13
from openvino.preprocess import PrePostProcessor

from race.scripts import Script, Task, parser_of
from race.wire import Lap, serve


class OpenVinoScript(Script):
    """A request on a compiled model."""

    def __init__(self, task: Task, compiled: Any, in_graph: bool) -> None:
        super().__init__(task)
        self.compiled, self._in_graph = compiled, in_graph
        self._request = compiled.create_infer_request()

    def prepare(self, image: NDArray[np.uint8]) -> NDArray[Any]:
        """Normalize, unless the graph does."""
        return image[None] if self._in_graph else np.asarray(super().prepare(image))

    def infer(self, x: Any) -> NDArray[Any]:
        """Run the request."""
        self._request.infer({0: x})
        found: NDArray[Any] = self._request.get_output_tensor(0).data
        return found

    def finish(self, logits: Any) -> NDArray[np.uint8]:
        """Argmax, unless the graph does it; a copy, since the next frame overwrites the tensor."""
        return np.array(logits).reshape(self.task.size) if self._in_graph else super().finish(logits)


@dataclass(frozen=True)
class Trip:
    """A frame's way through a queue; times of `perf_counter`, in seconds.

    Attributes:
        decoded: When it was.
        prepared: When it was.
        done: When its labels were.
        worked: For how long it was inferred and finished.
    """

    decoded: float
    prepared: float
    done: float
    worked: float


def latencies_ms(trips: Sequence[Trip]) -> list[float]:
    """Latency of each frame as `fcnopt.evaluate.turns` has it.

    A wait for frames before it, or for a free request, is not in it: a camera's frames do not queue up.
    """
    found, before = [], 0.0
    for trip in trips:
        handed_on = max(trip.done, before)  # in order
        service = max(handed_on - max(trip.prepared, before), trip.worked)
        found.append((trip.prepared - trip.decoded + service) * 1e3)
        before = handed_on
    return found


class OpenVinoQueue(OpenVinoScript):
    """An AsyncInferQueue of as many requests as OpenVINO advises."""

    def __init__(self, task: Task, compiled: Any, in_graph: bool) -> None:
        super().__init__(task, compiled, in_graph)
        self._queue = ov.AsyncInferQueue(compiled, 0)

    def run(self, frames: int) -> Lap:
        """Run the next frames; each is finished in the callback of its request."""
        lap, found = Lap(), dict[int, tuple[NDArray[np.uint8], Trip]]()

        def finished(request: Any, frame: tuple[int, float, float, NDArray[np.uint8]]) -> None:
            place, decoded, prepared, image = frame
            inferred = time.perf_counter()
            labels = self.restored(self.finish(request.get_output_tensor(0).data), image)
            done = time.perf_counter()
            found[place] = labels, Trip(decoded, prepared, done, request.latency / 1e3 + done - inferred)

        self._queue.set_callback(finished)
        start = time.perf_counter()
        for place in range(frames):
            begun = time.perf_counter()
            image = next(self._frames, None)
            if image is None:
                break
            decoded = time.perf_counter()
            x = self.prepare(self.fitted(image))
            lap.times_ms["decode"].append((decoded - begun) * 1e3)
            prepared = time.perf_counter()
            lap.times_ms["prepare"].append((prepared - decoded) * 1e3)
            self._queue.start_async({0: x}, (place, decoded, prepared, image))
        self._queue.wait_all()
        lap.seconds = time.perf_counter() - start
        in_order = [found[place] for place in sorted(found)]
        lap.labels = [labels for labels, _ in in_order]
        lap.times_ms["latency"] = latencies_ms([trip for _, trip in in_order])
        return lap

    def network(self, runs: int) -> list[float]:
        """Milliseconds a frame with all requests busy, of `runs` on each."""
        x, count = self.prepare(self.blank()), runs * len(self._queue)
        self._queue.set_callback(lambda _request, _data: None)
        start = time.perf_counter()
        for _ in range(count):
            self._queue.start_async({0: x})
        self._queue.wait_all()
        return [(time.perf_counter() - start) / count * 1e3]


def with_ends(model: Any, task: Task) -> Any:
    """The model with normalization before it and argmax behind it: uint8 [1, H, W, 3] to uint8 [1, 1, H, W]."""
    steps = PrePostProcessor(model)
    steps.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    steps.input().model().set_layout(ov.Layout("NCHW"))
    mean, spread = ([float(v) / task.scale for v in values] for values in (task.mean, task.std))
    steps.input().preprocess().convert_element_type(ov.Type.f32).mean(mean).scale(spread)

    def most_likely(logits: Any) -> Any:
        place = opset13.topk(logits, np.int32(1), axis=1, mode="max", sort="none", index_element_type="i32").output(1)
        return opset13.convert(place, "u8").output(0)

    steps.output().postprocess().custom(most_likely)
    return steps.build()


def open_openvino(options: Any) -> OpenVinoScript:
    """Compile as asked."""
    task, core = Task.read(options.task), ov.Core()
    model = core.read_model(options.model)
    if options.in_graph:
        model = with_ends(model, task)
    config = {"PERFORMANCE_HINT": "THROUGHPUT" if options.queue else "LATENCY"}
    if options.computes:
        config["INFERENCE_PRECISION_HINT"] = options.computes
    kind = OpenVinoQueue if options.queue else OpenVinoScript
    return kind(task, core.compile_model(model, "CPU", config), options.in_graph)


def main() -> None:
    """Parse and serve."""
    parser = parser_of(__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--computes", choices=("f32", "bf16"), help="what float layers compute in; else its own choice")
    parser.add_argument("--queue", action="store_true", help="AsyncInferQueue, compiled for throughput")
    parser.add_argument("--in-graph", action="store_true", help="normalization and argmax by PrePostProcessor")
    options = parser.parse_args()
    serve(lambda: open_openvino(options))


if __name__ == "__main__":
    main()
