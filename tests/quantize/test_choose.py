from __future__ import annotations

import numpy as np
import pytest

from fcnopt.errors import CalibrationError
from fcnopt.graph.io import import_graph
from fcnopt.quantize.choose import Evidence, best, measure, warnings
from fcnopt.quantize.placement import place
from fcnopt.quantize.qdq import Grid
from tests.quantize.nets import fcn, images


def test_fewest_changed_labels_win_and_noise_breaks_ties() -> None:
    entries = [Evidence("minmax", 30.0, 0.98), Evidence("mse", 20.0, 0.99), Evidence("entropy", 21.0, 0.99)]
    assert best(entries).method == "entropy"


@pytest.mark.parametrize(("share", "lines"), [(1.0, 0), (0.9, 0), (0.899, 1), (0.5, 1)])
def test_user_is_warned_below_nine_labels_of_ten(share: float, lines: int) -> None:
    found = warnings([Evidence("minmax", 3.0, share)])
    assert len(found) == lines
    assert all(line.startswith(f"WARNING: int8 with ranges by minmax leaves only {share:.1%}") for line in found)


def test_method_that_changes_most_labels_is_refused() -> None:
    with pytest.raises(
        CalibrationError, match=r"by mse leaves only 49\.9% of the labels .* 50% are the least"
    ) as error:
        warnings([Evidence("mse", 1.0, 0.499)])
    for part in ("--precision fp16", "--calibration PATH", "--method auto"):
        assert part in error.value.fix
    with pytest.raises(CalibrationError) as error:
        warnings([Evidence("mse", 1.0, 0.499), Evidence("minmax", 1.0, 0.4)])
    assert "every --method was tried" in error.value.fix


def test_logits_that_are_not_numbers_are_refused(rng: np.random.Generator) -> None:
    model, frames = fcn(rng), images(rng, 2)
    placement = place(import_graph(model), "logits")
    broken = dict.fromkeys(placement.tensors, Grid(np.inf, 0, signed=True))
    with pytest.raises(CalibrationError, match="int8 with ranges by mse: 'logits' is not finite"):
        measure(model, placement, {"mse": broken}, frames, "logits", "tensorrt", lambda _: None)
