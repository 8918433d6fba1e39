"""The narrow network: channels taken out, fc6 factored, what can be predicted of the removed taken over by the kept.

Which layers a channel runs through (its batch norm, the next convolution, a score that reads the same pool) is found
by Torch-Pruning's dependency graph, which also narrows them (Fang et al., "DepGraph: Towards Any Structural Pruning",
CVPR 2023). It traces one forward pass through autograd.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fcnopt.errors import BackendError
from fcnopt.models.encoders import BLOCKS
from fcnopt.models.fcn import FCN
from fcnopt.slimming.elimination import Elimination, LowRank, Moments, predictor
from fcnopt.slimming.plan import Plan

_TRACED = (1, 3, 64, 64)


def slimmed(
    network: FCN,
    plan: Plan,
    eliminations: Mapping[str, Elimination],
    moments: Mapping[str, Moments],
    factors: LowRank,
) -> FCN:
    """Build the network of a plan from the original.

    Args:
        network: The original; unchanged.
        plan: Its widths and rank.
        eliminations: By convolution, which channels go first.
        moments: By convolution, how kept channels predict removed ones.
        factors: Of fc6.

    Returns:
        In evaluation mode, its weights frozen.

    Raises:
        BackendError: Torch-Pruning is missing.
    """
    factored = network if plan.rank is None else with_low_rank(network, factors, plan.rank)
    kept = {name: eliminations[name].kept(width) for name, width in plan.widths.items()}
    takeovers = {
        name: predictor(moments[name], keep)[1] for name, keep in kept.items() if len(keep) < len(moments[name].second)
    }
    return narrowed(factored, kept, takeovers)


def narrowed(
    network: FCN, kept: Mapping[str, NDArray[np.int64]], takeovers: Mapping[str, NDArray[np.float64]] | None = None
) -> FCN:
    """A network with only the kept channels.

    Args:
        network: Unchanged.
        kept: By convolution, the channels that stay, ascending; a layer that is not named keeps all.
        takeovers: By convolution, [removed, kept]: how removed channels are made of kept ones. Without, the result
            answers as the network does when removed channels are set to zero where they are read.

    Raises:
        BackendError: Torch-Pruning is missing.
    """
    tp = _torch_pruning()
    work = copy.deepcopy(network).cpu().float().eval().requires_grad_(True)
    widths: dict[str, int] = {}
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")  # its shape inference calls layers with what has no batch axis
        graph = tp.DependencyGraph().build_dependency(work, torch.zeros(_TRACED))
        for name, keep in kept.items():
            layer = work.get_submodule(name)
            count = len(layer.weight)  # type: ignore[arg-type]  # a convolution's
            removed = np.setdiff1d(np.arange(count), keep)
            widths[name] = len(keep)
            if not len(removed):
                continue
            group = graph.get_pruning_group(layer, tp.prune_conv_out_channels, removed.tolist())
            if takeovers is not None and name in takeovers:
                for reader in _readers(group):
                    _take_over(reader.weight, keep, removed, takeovers[name])
            group.prune()
    return _rebuilt(network, work, widths)


def with_low_rank(network: FCN, factors: LowRank, rank: int) -> FCN:
    """The network with fc6 as two convolutions, `rank` channels between them.

    fc6's weight W (out, in, kH, kW) becomes down W, of (rank, in, kH, kW), then up, of (out, rank, 1, 1).
    """
    state = network.state_dict()
    weight = state["fc6.weight"].cpu().double()
    basis = torch.tensordot(torch.from_numpy(factors.down[:rank].copy()), weight, dims=([1], [0]))
    up = torch.from_numpy(factors.up[:, :rank].copy())[:, :, None, None]
    state = {**state, "fc6_basis.weight": basis.float(), "fc6.weight": up.float()}
    result = FCN(replace(network.architecture, fc6_rank=rank))
    result.load_state_dict(state)
    return result.eval().requires_grad_(False)


def _rebuilt(network: FCN, work: FCN, widths: Mapping[str, int]) -> FCN:
    old = network.architecture
    convs = {name: widths.get(name, width) for name, width in old.conv_widths.items()}
    blocks = tuple({width for name, width in convs.items() if name[4] == str(at)} for at in range(1, BLOCKS + 1))
    uniform = all(len(block) == 1 for block in blocks)
    architecture = replace(
        old,
        widths=tuple(next(iter(block)) for block in blocks) if uniform else tuple(convs.values()),
        fc_widths=(widths.get("fc6", old.fc_widths[0]), widths.get("fc7", old.fc_widths[1])),
    )
    result = FCN(architecture)
    result.load_state_dict(work.state_dict())
    return result.eval().requires_grad_(False)


def _readers(group: Any) -> list[nn.Conv2d]:
    """The convolutions of a pruning group that read the pruned channels."""
    return [
        dep.target.module
        for dep, _ in group
        if isinstance(dep.target.module, nn.Conv2d) and dep.handler.__name__ == "prune_in_channels"
    ]


def _take_over(
    weight: Tensor, kept: NDArray[np.int64], removed: NDArray[np.int64], predicts: NDArray[np.float64]
) -> None:
    """W_K + W_R A for a weight (out, in, kH, kW)."""
    with torch.no_grad():
        gone = weight[:, torch.from_numpy(removed)].double()
        added = torch.einsum("orhw,rk->okhw", gone, torch.from_numpy(predicts))
        weight[:, torch.from_numpy(kept)] += added.to(weight.dtype)


def _torch_pruning() -> Any:
    try:
        import torch_pruning
    except ImportError as error:
        raise BackendError(
            "torch-pruning is not installed; slimming needs it", fix="pip install 'fcnopt[slim]'"
        ) from error
    return torch_pruning
