"""Numbers and sentences that the terminal table and the HTML report share."""

from __future__ import annotations

from fcnopt.evaluate.result import BenchResult, EngineResult


def number(value: float | None, *, digits: int | None = None) -> str:
    """A figure with about three digits that count, or a dash where it is unknown."""
    if value is None:
        return "-"
    if digits is None:
        digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}"


def signed(points: float) -> str:
    """A difference in points with its sign; zero has none."""
    text = f"{points:+.2f}"
    return "0.00" if float(text) == 0 else text


def interval_text(interval: tuple[float, float] | None) -> str:
    """`-0.05..+0.31`, or nothing where there is no interval."""
    return "" if interval is None else f"{signed(interval[0])}..{signed(interval[1])}"


def interval_note(result: BenchResult) -> str:
    """What the intervals are over, or nothing where there are none."""
    block = result.interval_block_frames
    if block is None:
        return ""
    return f"95 % interval over {'single frames' if block == 1 else f'frames in blocks of {block}'}"


def unjudged_note(result: BenchResult) -> str:
    """Which classes' drops say little, or nothing where all can be judged. What is not in the truth has no drop."""
    pixels = result.truth_pixels or ()
    names = [n for n, why, count in zip(result.classes, result.unjudged, pixels, strict=False) if why and count]
    return f"too few pixels or frames to judge the drop of {', '.join(names)}" if names else ""


def verdicts(result: BenchResult) -> tuple[str, ...]:
    """One sentence an engine: how fast, what it costs, and where it costs most."""
    return tuple(_verdict(result, engine) for engine in result.engines)


def rounds_text(result: BenchResult, engine: EngineResult) -> str:
    """` (5.9 to 6.3 from round to round)`, the speedup's range, or nothing where there is none."""
    found = result.speedup_range(engine)
    return "" if found is None else f" ({found[0]:.1f} to {found[1]:.1f} from round to round)"


def _verdict(result: BenchResult, engine: EngineResult) -> str:
    drop = engine.drop
    change = f"{'loses' if drop.miou > 0 else 'gains'} {abs(drop.miou):.2f} points of mIoU"
    if abs(drop.miou) < 0.005:
        change = "keeps the mIoU"
    sure = ""
    if drop.miou_interval is not None:
        low, high = drop.miou_interval
        sure = f" (95 % interval of the drop {signed(low)} to {signed(high)})"
    worst = result.worst_class(engine)
    speed = f"{engine.speedup:.1f} times the FPS of {result.reference.name}{rounds_text(result, engine)}"
    if result.truth == "reference":
        least = f", {worst[0]} least ({100 - worst[1]:.2f})" if worst is not None and worst[1] >= 0.005 else ""
        return (
            f"{engine.name} runs at {speed}. {engine.equal_labels:.2f} % of its labels are the reference's; "
            f"{engine.accuracy.miou:.2f} mIoU{sure} against these{least}."
        )
    most = f"; {worst[0]} loses most, {signed(worst[1])}" if worst is not None and worst[1] >= 0.005 else ""
    return (
        f"{engine.name} runs at {speed} and {change}{sure}{most}. {engine.equal_labels:.2f} % of its labels are the "
        "reference's."
    )
