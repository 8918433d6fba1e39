"""Requests of Triton's own clients."""

from __future__ import annotations

from typing import Any

import numpy as np
import serving.asker
from numpy.typing import NDArray
from serving.asker import Protocol

__all__ = ["Asker", "Protocol"]


class Asker(serving.asker.Asker):
    """A tritonclient that also looks at refusals."""

    def refusal(self, frames: NDArray[Any] | None = None, **choices: Any) -> str:
        """What the server says to a request that it does not answer."""
        from tritonclient.utils import InferenceServerException

        try:
            self.ask(np.zeros((1, 24, 32, 3), np.uint8) if frames is None else frames, **choices)
        except InferenceServerException as error:
            return f"{error.status()}: {error.message()}"
        raise AssertionError("it was answered")

    def __enter__(self) -> Asker:
        return self
