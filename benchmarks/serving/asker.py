"""One request after another by Triton's own clients."""

from __future__ import annotations

import importlib
from typing import Any, Literal

from numpy.typing import NDArray

from serving.process import ServeProcess

Protocol = Literal["http", "grpc"]


class Asker:
    """A tritonclient of one protocol; a context manager that closes it.

    Args:
        server: Whom to ask.
        protocol: How.
        model: Its model's name.

    Attributes:
        client: The tritonclient.
    """

    def __init__(self, server: ServeProcess, protocol: Protocol, model: str) -> None:
        self._module = importlib.import_module(f"tritonclient.{protocol}")
        self.client: Any = self._module.InferenceServerClient(getattr(server, protocol))
        self._model = model

    def ask(
        self,
        frames: NDArray[Any],
        *,
        name: str = "frames",
        kind: str = "UINT8",
        outputs: tuple[str, ...] | None = None,
        **choices: Any,
    ) -> dict[str, NDArray[Any]]:
        """All outputs, or those that are asked for, by name."""
        sent = self._module.InferInput(name, list(frames.shape), kind)
        sent.set_data_from_numpy(frames)
        wanted = [self._module.InferRequestedOutput(one) for one in outputs] if outputs else None
        answer = self.client.infer(self._model, [sent], outputs=wanted, **choices)
        found = {one: answer.as_numpy(one) for one in ("labels", "confidence", "logits", "problems")}
        return {one: values for one, values in found.items() if values is not None}

    def __enter__(self) -> Asker:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
