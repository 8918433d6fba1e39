from __future__ import annotations

import math
from collections.abc import Set as AbstractSet

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcnopt.quantize.search import Sensitivity, _worth, shortest

ORDER = tuple("abcdefghijklmn")


def free(_floats: AbstractSet[str]) -> float:
    return 0.0


@given(st.integers(0, len(ORDER)))
def test_the_shortest_beginning_that_keeps_the_budget_is_found_in_few_runs(needed: int) -> None:
    asked: list[frozenset[str]] = []

    def keeps(floats: frozenset[str]) -> bool:
        asked.append(floats)
        return floats >= frozenset(ORDER[:needed])

    assert shortest(ORDER, keeps, free) == frozenset(ORDER[:needed])
    assert len(asked) <= 3 + 2 * math.ceil(math.log2(len(ORDER)))


def test_nothing_is_left_float_where_nothing_needs_to_be() -> None:
    asked: list[frozenset[str]] = []
    assert shortest(ORDER, lambda floats: asked.append(floats) is None, free) == frozenset()
    assert asked == [frozenset()]


def test_a_budget_that_all_float_layers_miss_has_no_answer() -> None:
    assert shortest(ORDER, lambda _: False, free) is None
    assert shortest((), lambda _: False, free) is None


def test_unneeded_expensive_layers_are_quantized_again_but_never_the_last() -> None:
    costs = {"a": 1.0, "b": 5.0, "c": 3.0, "d": 9.0}

    def cost(floats: AbstractSet[str]) -> float:
        return sum(costs[name] for name in floats)

    # d decides, and a helps: b and c lie before d in the order for nothing
    found = shortest(("a", "b", "c", "d"), lambda floats: {"a", "d"} <= floats, cost)
    assert found == {"a", "d"}
    assert shortest(("d",), lambda floats: "d" in floats, cost) == {"d"}


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (Sensitivity("a", 0.1, 0.5, 1.0), Sensitivity("b", 0.1, 0.5, 2.0)),
        (Sensitivity("a", 0.1, 0.01, -1.0), Sensitivity("b", 0.1, 0.5, 2.0)),
        (Sensitivity("a", 0.1, 0.01, 9.0), Sensitivity("b", 0.1, -0.1, -9.0)),
    ],
)
def test_gain_for_the_time_decides_and_what_buys_nothing_comes_last(better: Sensitivity, worse: Sensitivity) -> None:
    assert _worth(better) > _worth(worse)
