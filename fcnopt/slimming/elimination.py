r"""In which order the channels of a layer are least missed, and how the kept ones take over from the removed.

Channels x of a tensor have second moments M = E[x x^T] over positions. What is removed (R) is predicted from what is
kept (K) at the same position, best in least squares by

    x_R ~ A x_K,    A = M_RK M_KK^-1,

and since every reader is linear in x, its weights take that over: W_K + W_R A. What cannot be predicted is lost. With
G_c the loss's curvature along channel c (see `statistics`) the loss grows by

    1/2 sum_(c in R) G_c E[(x_c - A_c x_K)^2].

Channels are removed one at a time, each time the one that adds least. With P = M_KK^-1, taking out c adds

    1/2 (G_c + sum_(r in R) G_r A_rc^2) / P_cc,

P loses the rank one of P_c P_c^T / P_cc, and A_r changes by -A_rc P_c / P_cc: the update of the Optimal Brain Surgeon
(Hassibi and Stork, NIPS 1992), on channels in place of weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_RIDGE = 1e-4  # of the mean moment, so that channels that never fire leave M invertible

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """What is known of a tensor of C channels.

    Attributes:
        second: E[x x^T] over positions and frames, [C, C].
        curvature: Of the loss along each channel, [C], for a whole frame: positions are summed.
    """

    second: Array
    curvature: Array

    def __post_init__(self) -> None:
        count = len(self.curvature)
        if self.second.shape != (count, count):
            raise ValueError(f"moments {self.second.shape} do not fit {count} channels")


@dataclass(frozen=True)
class Elimination:
    """The order in which channels go.

    Attributes:
        order: All channels, the least missed first, [C].
        loss: Estimated loss with so many of them removed, [C]; the last channel stays.
    """

    order: NDArray[np.int64]
    loss: Array

    def kept(self, width: int) -> NDArray[np.int64]:
        """The channels that stay when `width` of them do, in their own order."""
        return np.sort(self.order[len(self.order) - width :])


def eliminate(moments: Moments) -> Elimination:
    """Find the order in which channels of a tensor are least missed."""
    count = len(moments.curvature)
    inverse = np.linalg.inv(_regular(moments.second))
    curvature = np.maximum(moments.curvature, 0.0)
    predicts = np.zeros((count, count))  # row r: how removed channel order[r] is made of those that are left
    removed_curvature = np.zeros(count)
    alive = np.ones(count, bool)
    order, loss = np.zeros(count, np.int64), np.zeros(count)
    for done in range(count - 1):
        rows = predicts[:done]
        share = curvature + removed_curvature[:done] @ (rows * rows)
        cost = np.where(alive, share / np.where(alive, np.diagonal(inverse), 1.0), np.inf)
        out = int(np.argmin(cost))
        order[done], loss[done + 1] = out, loss[done] + 0.5 * cost[out]
        step = inverse[out] / inverse[out, out]
        rows -= np.outer(rows[:, out], step)
        predicts[done] = -step
        inverse -= np.outer(inverse[:, out], step)
        alive[out] = False
        removed_curvature[done] = curvature[out]
        predicts[: done + 1, out] = inverse[out] = inverse[:, out] = 0.0
    order[-1] = int(np.flatnonzero(alive)[0])
    return Elimination(order, loss)


def predictor(moments: Moments, kept: NDArray[np.int64]) -> tuple[NDArray[np.int64], Array]:
    """The removed channels [R], and A [R, K], which makes them of the kept ones."""
    removed = np.setdiff1d(np.arange(len(moments.curvature)), kept)
    regular = _regular(moments.second)
    solved = np.linalg.solve(regular[np.ix_(kept, kept)], regular[np.ix_(kept, removed)])
    return removed.astype(np.int64), solved.T.astype(np.float64)


@dataclass(frozen=True)
class LowRank:
    """A layer y = W x as two: y ~ up (down W) x, with r channels between.

    The best such product for the inputs that occur, and not for white noise, projects y onto the principal axes of its
    own moments (Zhang et al., "Accelerating Very Deep Convolutional Networks", TPAMI 2016, section 3.1). Axes are
    those of D^(1/2) E[y y^T] D^(1/2) with D the curvatures, so that what matters to the loss is kept.

    Attributes:
        down: [C, C], rows are axes, the most important first; the first r of them make a network of rank r.
        up: [C, C], its inverse.
        loss: Estimated loss with rank r at place r, [C + 1].
    """

    down: Array
    up: Array
    loss: Array


def low_rank(moments: Moments) -> LowRank:
    """Factor a layer, given the moments of its output before bias and normalization."""
    curvature = np.maximum(moments.curvature, 0.0)
    root = np.sqrt(curvature + _RIDGE * (curvature.mean() or 1.0))
    values, axes = np.linalg.eigh(root[:, None] * moments.second * root)
    values, axes = np.maximum(values[::-1], 0.0), axes[:, ::-1]
    loss = 0.5 * np.concatenate([[values.sum()], values.sum() - np.cumsum(values)])
    return LowRank(axes.T * root, axes / root[:, None], np.maximum(loss, 0.0))


def _regular(second: Array) -> Array:
    diagonal = float(np.diagonal(second).mean()) or 1.0
    regular: Array = second + _RIDGE * diagonal * np.eye(len(second))
    return regular
