"""Which widths meet a time at the least estimated loss.

From the original's widths on, the move with the least loss per millisecond saved is taken until the time is met. A move
narrows one layer to any smaller multiple, or lowers the rank of fc6. Looking at all smaller widths, and not at the next
one only, finds moves that pay only when they are large: fc6 of low rank is slower than fc6 until its rank is well below
its width.

The model of the time is measured at the original's widths, and the narrower a network the further from it. What the
model is asked for is therefore fitted until the speedup that is *measured* is the one wanted: a network twice as fast
as wanted has lost twice the channels it had to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fcnopt.errors import UsageError
from fcnopt.slimming.cost import CostModel

_SHORT, _OVER = 0.99, 1.06  # measured speedup over the wanted one: timers are no better, and steps are of many channels
_PLANS = 7


@dataclass(frozen=True)
class Plan:
    """The widths of the network to be.

    Attributes:
        widths: Output channels by convolution.
        rank: Of fc6; None for one convolution.
        loss: Estimated divergence from the original before recovery, in nats a pixel.
        ms: Estimated time.
        original_ms: The original's, by the same model.
    """

    widths: Mapping[str, int]
    rank: int | None
    loss: float
    ms: float
    original_ms: float

    @property
    def speedup(self) -> float:
        """Estimated."""
        return self.original_ms / self.ms


@dataclass(frozen=True)
class _Move:
    plan: Plan
    price: float  # loss per millisecond


def make_plan(
    cost: CostModel,
    losses: Mapping[str, NDArray[np.float64]],
    rank_loss: NDArray[np.float64],
    *,
    speedup: float,
    multiple: int,
) -> Plan:
    """Choose widths.

    Args:
        cost: Of the network.
        losses: By convolution: estimated loss with so many channels removed, [C].
        rank_loss: Estimated loss with fc6 of rank r at place r, [C + 1].
        speedup: To be met by the model.
        multiple: Widths are multiples of it, unless a layer keeps all its channels.

    Raises:
        UsageError: No widths are fast enough; says what is possible.
    """
    original = cost.total_ms(cost.widths)
    goal = original / speedup
    plan = Plan(dict(cost.widths), None, 0.0, original, original)
    while plan.ms > goal:
        moves = list(_moves(plan, cost, losses, rank_loss, multiple))
        if not moves:
            raise UsageError(
                f"speedup {speedup:g} cannot be met: with every layer at {multiple} channels the network is "
                f"{plan.speedup:.2f} times as fast",
                fix=f"ask for less than {plan.speedup:.1f}",
            )
        plan = min(moves, key=lambda move: move.price).plan
    return _tidied(plan, cost, losses, rank_loss)


def fit_plan(wanted: float, plan_for: Callable[[float], Plan], measure: Callable[[Plan], float]) -> tuple[Plan, float]:
    """The plan that is measured to be as fast as wanted, with the least to spare of those tried.

    Args:
        wanted: Speedup.
        plan_for: The plan that meets a speedup by the model; raises `UsageError` where none does.
        measure: The speedup of a plan.

    Returns:
        The plan and its measured speedup: the fastest one tried, where none is as fast as wanted.

    Raises:
        UsageError: The model knows of no plan for `wanted`.
    """
    slow, fast = (1.0, 1.0), (math.inf, math.inf)  # (asked of the model, measured): too slow, fast enough
    asked, found = wanted, list[tuple[float, Plan]]()
    for _ in range(_PLANS):
        try:
            plan = plan_for(asked)
        except UsageError:
            if not found:
                raise
            break
        speedup = measure(plan)
        found.append((speedup, plan))
        if _SHORT * wanted <= speedup <= _OVER * wanted:
            break
        if speedup < wanted:
            slow = max(slow, (asked, speedup))
        else:
            fast = min(fast, (asked, speedup))
        asked = _between(slow, fast, wanted) if math.isfinite(fast[0]) else asked * wanted / speedup
    enough = [pair for pair in found if pair[0] >= _SHORT * wanted]
    speedup, plan = min(enough, key=lambda pair: pair[0]) if enough else max(found, key=lambda pair: pair[0])
    return plan, speedup


def _between(slow: tuple[float, float], fast: tuple[float, float], wanted: float) -> float:
    """What to ask for, when what is measured is a power of it between two that were tried."""
    share = math.log(wanted / slow[1]) / math.log(fast[1] / slow[1])
    return math.exp(math.log(slow[0]) + share * math.log(fast[0] / slow[0]))


def _moves(
    plan: Plan,
    cost: CostModel,
    losses: Mapping[str, NDArray[np.float64]],
    rank_loss: NDArray[np.float64],
    multiple: int,
) -> Iterator[_Move]:
    for name, width in plan.widths.items():
        for narrower in range((width - 1) // multiple * multiple, 0, -multiple):
            widths = {**plan.widths, name: narrower}
            yield from _priced(replace(plan, widths=widths), plan, cost, losses, rank_loss)
    rank = plan.rank or plan.widths["fc6"]
    for lower in range((rank - 1) // multiple * multiple, 0, -multiple):
        yield from _priced(replace(plan, rank=lower), plan, cost, losses, rank_loss)


def _priced(
    changed: Plan,
    plan: Plan,
    cost: CostModel,
    losses: Mapping[str, NDArray[np.float64]],
    rank_loss: NDArray[np.float64],
) -> Iterator[_Move]:
    """The move, if it saves time."""
    ms = cost.total_ms(changed.widths, changed.rank)
    if ms < plan.ms:
        loss = _loss(changed, cost, losses, rank_loss)
        yield _Move(replace(changed, ms=ms, loss=loss), (loss - plan.loss) / (plan.ms - ms))


def _loss(
    plan: Plan, cost: CostModel, losses: Mapping[str, NDArray[np.float64]], rank_loss: NDArray[np.float64]
) -> float:
    total = sum(float(losses[name][cost.widths[name] - width]) for name, width in plan.widths.items())
    return total + (float(rank_loss[plan.rank]) if plan.rank is not None else 0.0)


def _tidied(
    plan: Plan, cost: CostModel, losses: Mapping[str, NDArray[np.float64]], rank_loss: NDArray[np.float64]
) -> Plan:
    """Without a rank that later moves have made useless."""
    if plan.rank is None or cost.total_ms(plan.widths) > cost.total_ms(plan.widths, plan.rank):
        return plan
    whole = replace(plan, rank=None)
    return replace(whole, loss=_loss(whole, cost, losses, rank_loss), ms=cost.total_ms(plan.widths))
