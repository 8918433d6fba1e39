from __future__ import annotations

import pytest

from fcnopt.graph.passes.windows import Window, area, clipped, hull, is_empty


@pytest.mark.parametrize("extent", [1, 3, 4])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("before", [-2, 0, 1, 5])
def test_windows_agree_with_counting(before: int, stride: int, extent: int) -> None:
    window, length = Window(extent, stride, before), 12
    for first in range(9):
        for end in range(first + 1, 10):
            reads = [o for o in range(length) if o * stride - before < end and o * stride - before + extent > first]
            low, high = window.reached_from((first, end), length)
            assert set(reads) <= set(range(low, high))
            if reads:
                assert (reads[0], reads[-1] + 1) == (low, high)
                assert window.read_by((low, high)) == (low * stride - before, (high - 1) * stride - before + extent)


def test_boxes() -> None:
    one, two = ((2, 6), (0, 4)), ((4, 9), (1, 3))
    assert clipped(one, two) == ((4, 6), (1, 3))
    assert hull(one, two) == ((2, 9), (0, 4))
    assert area(one) == 16
    assert is_empty(clipped(one, ((6, 7), (0, 4))))
    assert not is_empty(one)
