from __future__ import annotations

from dataclasses import replace

import pytest

from fcnopt.evaluate.bench import BenchResult
from fcnopt.evaluate.latency import LatencySummary
from fcnopt.report.charts import DropScale, LatencyAxis, round_up


def with_latencies(result: BenchResult, *samples: list[float]) -> BenchResult:
    rows = [replace(r, latency=LatencySummary.of(s)) for r, s in zip(result.rows, samples, strict=False)]
    return replace(result, reference=rows[0], engines=tuple(rows[1:]))


def test_a_tenfold_speed_up_is_the_same_distance_anywhere(result: BenchResult) -> None:
    axis = LatencyAxis.of(with_latencies(result, [400.0, 600.0], [4.0, 6.0]))
    assert axis.low_ms < 4.0
    assert axis.high_ms > 600.0
    assert axis.place(50) - axis.place(5) == pytest.approx(axis.place(500) - axis.place(50))
    assert [axis.place(axis.low_ms), axis.place(axis.high_ms)] == pytest.approx([0.0, 100.0])
    assert [tick.text for tick in axis.ticks()] == ["5", "10", "20", "50", "100", "200", "500"]


def test_a_short_axis_has_finer_ticks(result: BenchResult) -> None:
    axis = LatencyAxis.of(with_latencies(result, [20.0, 21.0], [24.0, 26.0]))  # 17.4 to 29.9
    assert [tick.text for tick in axis.ticks()] == ["20", "25"]


def test_bars_lie_inside_and_cover_the_bins_with_frames(result: BenchResult) -> None:
    axis = LatencyAxis.of(result)
    for row in result.rows:
        bars = axis.bars(row.latency.histogram)
        assert len(bars) == sum(1 for count in row.latency.histogram.counts if count)
        assert max(height for _, _, height in bars) == 100.0
        assert all(left >= 0 and left + width <= 100.2 for left, width, _ in bars)


def with_drops(result: BenchResult, *drops: float | None) -> BenchResult:
    engine = result.engines[0]
    drop = replace(engine.drop, iou=tuple(drops), iou_intervals=(None,) * len(drops))
    return replace(result, engines=(replace(engine, drop=drop),))


def test_losses_are_right_of_zero_and_gains_left(result: BenchResult) -> None:
    changed = with_drops(result, 4.2, -1.3, 0.0, None)
    scale = DropScale.of(changed)
    assert (scale.gain, scale.loss) == (2.0, 5.0)
    zero = scale.place(0.0)
    loss, gain, nothing, absent = (scale.bar(changed.engines[0], c) for c in range(4))
    assert loss is not None
    assert gain is not None
    assert nothing is not None
    assert (loss.left, loss.left + loss.width) == pytest.approx((zero, scale.place(4.2)))
    assert (gain.left, gain.left + gain.width) == pytest.approx((scale.place(-1.3), zero))
    assert nothing.width == 0.0
    assert absent is None
    assert (loss.text, loss.low) == ("+4.20", None)


def test_whiskers_are_inside_the_scale(result: BenchResult) -> None:
    scale = DropScale.of(result)
    bars = [scale.bar(e, c) for e in result.engines for c in range(4)]
    ends = [end for bar in bars if bar is not None for end in (bar.low, bar.high) if end is not None]
    assert len(ends) == 16
    assert all(-1e-9 <= end <= 100 + 1e-9 for end in ends)


def test_small_differences_look_small(result: BenchResult) -> None:
    scale = DropScale.of(with_drops(result, 0.01, -0.01, 0.0, None))
    assert (scale.gain, scale.loss) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("value", "up"), [(1.0, 1.0), (1.1, 2.0), (2.5, 3.0), (7.3, 10.0), (0.03, 0.03), (99.0, 100.0)]
)
def test_scales_end_at_round_numbers(value: float, up: float) -> None:
    assert round_up(value) == pytest.approx(up)
