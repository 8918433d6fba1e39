"""ONNX Runtime as its own examples run a network: a session, NumPy in, NumPy out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from race.scripts import Script, Task, parser_of
from race.wire import serve


class OnnxRuntimeScript(Script):
    """A session with the first of its providers that is asked for."""

    def __init__(self, task: Task, model: Path, provider: str) -> None:
        super().__init__(task)
        self._session = onnxruntime.InferenceSession(str(model), providers=[provider])
        if self._session.get_providers()[0] != provider:
            raise SystemExit(f"error: {provider} failed to start")
        self._input = self._session.get_inputs()[0].name

    def infer(self, x: Any) -> NDArray[np.float32]:
        """Run the session."""
        logits: NDArray[np.float32] = self._session.run(None, {self._input: x})[0]
        return logits


def main() -> None:
    """Parse and serve."""
    parser = parser_of(__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--provider", default="CPUExecutionProvider")
    options = parser.parse_args()
    serve(lambda: OnnxRuntimeScript(Task.read(options.task), options.model, options.provider))


if __name__ == "__main__":
    main()
