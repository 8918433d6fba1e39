"""The fastest assignment of precisions that keeps an accuracy budget.

Every quantized layer is left float once, alone, and the divergence at the logits that goes away with it is measured on
calibration frames (`choose.Judge`). Layers are then left float in the order of what they buy for the time they cost
(`cost.Costs`), as many as the budget needs: assignments are the beginnings of this order, and the shortest that keeps
the budget on validation frames is found by doubling and bisection. Last, layers of it that turn out to be unneeded are
quantized again, the most expensive first.

This is the greedy road of mixed precision by sensitivity (Dong et al., "HAWQ-V2", NeurIPS 2020; Wu, Judd et al.,
"Integer Quantization for Deep Learning Inference", 2020, partial quantization). It does not promise the best of all
assignments; it needs some twenty runs where there are 2^layers of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from fcnopt.quantize.choose import Evidence
from fcnopt.quantize.cost import Costs
from fcnopt.quantize.tune import Tuned

_MOST_RETURNS = 4  # validations spent on quantizing layers again

Keeps = Callable[[frozenset[str]], bool]
"""Whether an assignment, given by the layers left float, keeps the budget."""
Store = dict[str, Evidence]
"""Evidence of layers left float alone, by layer: what an earlier, interrupted search measured."""


@dataclass(frozen=True)
class Sensitivity:
    """What leaving one layer float buys and costs.

    Attributes:
        layer: Its first output.
        divergence: At the logits, with this layer float and all others quantized.
        gain: The share of the divergence that goes away; negative where it grows by chance, -1 at least.
        cost_ms: Estimated time.
    """

    layer: str
    divergence: float
    gain: float
    cost_ms: float


def sensitivities(
    tuned: Tuned,
    costs: Costs,
    known: Store,
    save: Callable[[], None],
    progress: Callable[[float], None],
) -> tuple[Sensitivity, ...]:
    """Measure every layer, and order them by what they buy for the time.

    Args:
        tuned: The quantized network.
        costs: Of its layers.
        known: Filled as measurements come in.
        save: Called after each.
        progress: Called with the fraction done.

    Returns:
        Those that buy something for nothing first, those that buy nothing last.
    """
    whole = tuned.chosen.divergence
    layers = tuned.plan.placement.layers
    found = []
    for count, layer in enumerate(layers, start=1):
        if layer not in known:
            known[layer] = tuned.judge(layer, tuned.plan.without(frozenset({layer})).graph())
            save()
        left = known[layer].divergence
        gain = max((whole - left) / whole, -1.0) if whole > 0 else 0.0
        found.append(Sensitivity(layer, left, gain, costs.fallback_ms(layer)))
        progress(count / len(layers))
    return tuple(sorted(found, key=_worth, reverse=True))


def shortest(order: Sequence[str], keeps: Keeps, cost_ms: Callable[[AbstractSet[str]], float]) -> frozenset[str] | None:
    """The fewest layers from the beginning of `order` to be left float, less those that turn out to be unneeded.

    Args:
        order: Layers, the most worthwhile first.
        keeps: Asked for some 2 log2(len(order)) assignments; answers are taken to change once, from no to yes.
        cost_ms: Time of an assignment, to quantize the most expensive layers again first.

    Returns:
        None where not even all layers left float keep the budget.
    """
    low, high = 0, 1  # with `low` layers the budget is known not to be kept
    if keeps(frozenset()):
        return frozenset()
    while not keeps(frozenset(order[:high])):
        if high >= len(order):
            return None
        low, high = high, min(2 * high, len(order))
    while high - low > 1:
        middle = (low + high) // 2
        if keeps(frozenset(order[:middle])):
            high = middle
        else:
            low = middle
    return _returned(frozenset(order[:high]), order[high - 1], keeps, cost_ms)


def _returned(
    floats: frozenset[str], last: str, keeps: Keeps, cost_ms: Callable[[AbstractSet[str]], float]
) -> frozenset[str]:
    """Quantize again what is not needed; the last one is, as without it the budget was not kept."""
    saved = {layer: cost_ms(floats) - cost_ms(floats - {layer}) for layer in floats - {last}}
    for layer in sorted(saved, key=lambda name: saved[name], reverse=True)[:_MOST_RETURNS]:
        if saved[layer] > 0 and keeps(floats - {layer}):
            floats -= {layer}
    return floats


def _worth(entry: Sensitivity) -> float:
    """Gain a millisecond; free gains before all, and what buys nothing after all."""
    if entry.gain <= 0:
        return entry.gain
    return entry.gain / max(entry.cost_ms, 1e-6)
