"""A TensorRT engine as Polygraphy's own examples run one, whichever tool built it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from polygraphy.backend.common import BytesFromPath
from polygraphy.backend.trt import EngineFromBytes, TrtRunner

from race.scripts import Script, Task, parser_of
from race.wire import serve


class TensorRtScript(Script):
    """Polygraphy's runner."""

    def __init__(self, task: Task, engine: Path) -> None:
        super().__init__(task)
        self._runner = TrtRunner(EngineFromBytes(BytesFromPath(str(engine))))
        self._runner.activate()
        self._input = next(iter(self._runner.get_input_metadata()))

    def infer(self, x: Any) -> NDArray[np.float32]:
        """Run the engine, copies to and from the GPU included."""
        logits: NDArray[np.float32] = next(iter(self._runner.infer({self._input: x}).values()))
        return logits


def main() -> None:
    """Parse and serve."""
    parser = parser_of(__doc__)
    parser.add_argument("engine", type=Path)
    options = parser.parse_args()
    serve(lambda: TensorRtScript(Task.read(options.task), options.engine))


if __name__ == "__main__":
    main()
