"""Where two precisions of one network part: per layer, how much noise its result carries and what it adds itself.

A layer's SQNR falls with every layer above it that loses something, so a low one does not yet name the culprit. Two
measures do, in the same unit (the SQNR that the result would have if nothing else was lost):

- added: the noise-to-signal ratio of the result less that of the noisiest input. It costs nothing, and is an estimate:
  a layer does not hand noise on as it hands on its signal (a convolution averages it, ReLU and pooling select).
- alone: the layer computed in B's precision from A's inputs, so that all of its noise is its own: inputs quantized,
  weights, arithmetic. It costs one more run of B.

Tensors that a rewrite rescaled are brought back by one factor a channel (see `distance`); the logits never are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from fcnopt.errors import GraphError, MediaError
from fcnopt.evaluate.distance import Channels, Distance, Meter, Scaling
from fcnopt.evaluate.pairing import Layer, Pairing
from fcnopt.evaluate.parting_result import Comparison, LayerParting
from fcnopt.evaluate.probe import Probe

_LABELS = "labels"
FACTOR_FRAMES = 4
"""How many frames factors are learnt from, hundreds of pixels a channel each."""


Tensors = Mapping[str, NDArray[Any]]
Frames = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""One frame as A takes it and as B takes it, uint8 [1, H, W, 3] each."""


@dataclass(frozen=True)
class Network:
    """A network to compare.

    Attributes:
        name: For tables.
        model: Takes frames uint8 [N, H, W, 3].
    """

    name: str
    model: onnx.ModelProto


def part(
    a: Network,
    b: Network,
    pairing: Pairing,
    frames: Callable[[], Iterable[Frames]],
    *,
    clip: str,
    alone: bool = False,
    progress: Callable[[], None] | None = None,
) -> Comparison:
    """Run both networks over the frames and measure every layer.

    Args:
        a: The reference.
        b: The network to judge.
        pairing: Of the two.
        frames: Gives the frames from the start each time it is called; of the first ones, factors are learnt.
        clip: What the frames are called.
        alone: Also run each layer of B on A's inputs.
        progress: Called for each frame learnt from, and for each measured.

    Raises:
        GraphError: A tensor differs in shape.
        MediaError: There are no frames.
        BackendError: A network does not run.
    """
    work = _Work(a, b, pairing)
    report = progress or (lambda: None)
    with ExitStack() as stack:
        extra = work.labels
        probe_a = stack.enter_context(Probe(a.model, [*(layer.a for layer in pairing.layers), *extra], a.name))
        probe_b = stack.enter_context(Probe(b.model, [*(layer.b for layer in pairing.layers), *extra], b.name))
        names = [layer.b for layer in pairing.layers]
        single = stack.enter_context(Probe(b.model, names, b.name, given=names)) if alone else None
        for _, (for_a, for_b) in zip(range(FACTOR_FRAMES), frames(), strict=False):
            work.scale(probe_a.read(for_a), probe_b.read(for_b))
            report()
        work.fix_factors()
        for for_a, for_b in frames():
            truth = probe_a.read(for_a)
            work.measure(truth, probe_b.read(for_b), (for_a.shape[1], for_a.shape[2]))
            if single is not None:
                work.measure_alone(truth, single.read(for_b, work.given(truth)))
            report()
    return work.result(clip)


class _Work:
    """The meters of all layers."""

    def __init__(self, a: Network, b: Network, pairing: Pairing) -> None:
        self._a, self._b, self._pairing = a, b, pairing
        outputs = [{value.name for value in network.model.graph.output} for network in (a, b)]
        self.labels = [_LABELS] if all(_LABELS in names for names in outputs) else []
        self._scalings = {layer.a: Scaling(layer.axis) for layer in pairing.layers if layer.a != pairing.logits}
        self._factors: dict[str, Channels | None] = {}
        self._meters: dict[str, Meter] = {}
        self._alone: dict[str, Meter] = {}
        self._frames = self._equal = self._pixels = 0
        self._size = (0, 0)

    def scale(self, truth: Tensors, found: Tensors) -> None:
        """Learn factors from one frame."""
        for layer in self._pairing.layers:
            one, two = self._same(layer, truth, found)
            if layer.a in self._scalings:
                self._scalings[layer.a].add(one, two)

    def fix_factors(self) -> None:
        """Decide on the factors; measuring can begin."""
        self._factors = {name: scaling.factors() for name, scaling in self._scalings.items()}
        self._meters = {layer.a: self._meter(layer) for layer in self._pairing.layers}

    def measure(self, truth: Tensors, found: Tensors, size: tuple[int, int]) -> None:
        """Measure one frame of both networks; its size is (height, width)."""
        for layer in self._pairing.layers:
            self._meters[layer.a].add(*self._same(layer, truth, found))
        labels = self._labels(truth, found)
        if labels is not None:
            self._equal += int(np.count_nonzero(labels[0] == labels[1]))
            self._pixels += labels[0].size
        self._frames += 1
        self._size = size

    def measure_alone(self, truth: Tensors, found: Tensors) -> None:
        """Measure one frame of A and of B's layers on A's inputs."""
        for layer in self._pairing.layers:
            meter = self._alone.setdefault(layer.a, self._meter(layer))
            meter.add(*self._same(layer, truth, found))

    def given(self, truth: Tensors) -> dict[str, NDArray[Any]]:
        """A's tensors by B's names, scaled as B's are."""
        return {layer.b: _scaled(truth[layer.a], self._factors.get(layer.a), layer) for layer in self._pairing.layers}

    def result(self, clip: str) -> Comparison:
        """What was measured."""
        if not self._frames:
            raise MediaError(f"{clip}: no frame could be read", fix="give a clip that plays, or a folder of pictures")
        results = {name: meter.result() for name, meter in self._meters.items()}
        alone = {name: meter.result() for name, meter in self._alone.items()}
        pairing = self._pairing
        return Comparison(
            a=self._a.name,
            b=self._b.name,
            clip=clip,
            frames=self._frames,
            size=self._size,
            equal_labels=100.0 * self._equal / self._pixels if self._pixels else None,
            layers=tuple(_parting(layer, results, alone.get(layer.a)) for layer in pairing.layers),
            only_a=pairing.only_a,
            only_b=pairing.only_b,
            logits=pairing.logits,
        )

    def _meter(self, layer: Layer) -> Meter:
        return Meter(layer.axis, self._factors.get(layer.a))

    def _labels(self, truth: Tensors, found: Tensors) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """The networks' own labels, else what their logits say."""
        if self.labels:
            return truth[_LABELS], found[_LABELS]
        logits = next((layer for layer in self._pairing.layers if layer.a == self._pairing.logits), None)
        return None if logits is None else (truth[logits.a].argmax(1), found[logits.b].argmax(1))

    def _same(self, layer: Layer, truth: Tensors, found: Tensors) -> tuple[NDArray[Any], NDArray[Any]]:
        one, two = truth[layer.a], found[layer.b]
        if one.shape != two.shape:
            raise GraphError(
                f"tensor {layer.a!r} is {list(one.shape)} in {self._a.name} and {list(two.shape)} in {self._b.name}",
                fix="compare two precisions of one model, exported for one frame size",
            )
        return one, two


def _scaled(value: NDArray[Any], factors: Channels | None, layer: Layer) -> NDArray[Any]:
    if factors is None:
        return value
    shape = [1] * value.ndim
    shape[layer.axis] = -1
    return np.asarray(value * factors.reshape(shape).astype(value.dtype))


def _parting(layer: Layer, results: Mapping[str, Distance], alone: Distance | None) -> LayerParting:
    result = results[layer.a]
    before = min((results[name] for name in layer.inputs), key=lambda found: found.sqnr_db, default=None)
    drop: float | None = None
    added = result.sqnr_db
    if before is not None and before.sqnr_db == -math.inf:
        added = math.inf  # it inherits what is broken already
    elif before is not None and math.isfinite(before.sqnr_db):
        drop = before.sqnr_db - result.sqnr_db if math.isfinite(result.sqnr_db) else None
        noise = result.noise - before.noise
        added = -10.0 * math.log10(noise) if noise > 0 else math.inf
        added = -math.inf if result.sqnr_db == -math.inf else added
    return LayerParting(layer.name, layer.op, layer.a, layer.inputs, result, drop, added, alone)
