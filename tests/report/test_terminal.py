from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from fcnopt.evaluate.bench import BenchResult
from fcnopt.report.terminal import print_bench
from fcnopt.report.words import interval_text, number, signed, verdicts
from tests.report.conftest import measured


def printed(result: BenchResult, *, width: int = 100, per_class: bool = False) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_bench(result, per_class=per_class, console=console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_fits_100_columns_with_all_figures(result: BenchResult) -> None:
    table = printed(result).split("openvino int8 runs at")[0]
    assert max(map(len, table.splitlines())) <= 100
    assert "…" not in table
    for row in result.rows:
        wanted = [
            row.name,
            number(row.fps),
            f"{row.speedup:.2f}",
            number(row.latency.p50_ms),
            f"{row.accuracy.miou:.2f}",
        ]
        (line,) = [text for text in table.splitlines() if text.strip().startswith(row.name)]
        assert [w for w in wanted if w not in line] == []
    engine = result.engines[0]
    assert interval_text(engine.drop.miou_interval) in table
    assert f"{engine.equal_labels:.2f}" in table


def test_the_first_line_says_clip_and_truth(result: BenchResult) -> None:
    assert printed(result).splitlines()[0] == "fake.mp4: 12 frames, 32x24; truth: labels of 12 frames"
    unlabelled = printed(measured(labelled=False, keep=0))
    assert unlabelled.splitlines()[0] == "fake.mp4: 12 frames, 32x24; truth: the reference's labels"
    assert "note: The clip has no label maps" in unlabelled


def test_a_note_says_what_the_interval_is_over(result: BenchResult) -> None:
    assert "note: 95 % interval over frames in blocks of 3" in printed(result).splitlines()
    single = replace(result, interval_block_frames=1)
    assert "note: 95 % interval over single frames" in printed(single).splitlines()
    assert "95 % interval over" not in printed(replace(result, interval_block_frames=None))


def test_classes_are_printed_on_request(result: BenchResult) -> None:
    text = printed(result, per_class=True)
    (line,) = [t for t in text.splitlines() if re.match(r" ?sky ", t)]
    expected = [f"{result.reference.accuracy.iou[3]:.2f}"]
    for engine in result.engines:
        expected += [f"{engine.accuracy.iou[3]:.2f}", signed(engine.drop.iou[3] or 0.0)]
    assert line.split("  too few")[0].split()[1:] == [*expected, "2,304"]
    assert line.rstrip().endswith("too few pixels to judge")
    assert not [t for t in printed(result).splitlines() if re.match(r" ?sky ", t)]


def test_classes_that_can_be_judged_have_no_remark(result: BenchResult) -> None:
    many = replace(result, truth_pixels=(20_000, 20_000, 3, 0))
    text = printed(many, per_class=True)
    lines = {
        line.split()[0]: line.rstrip() for line in text.splitlines() if "," in line or " 3 " in line or " 0 " in line
    }
    assert lines["road"].endswith("20,000")
    assert lines["pole"].endswith("3   too few pixels to judge")
    assert lines["sky"].endswith("0   not in the truth")
    assert "note: too few pixels or frames to judge the drop of pole" in text.splitlines()
    judged = printed(replace(result, truth_pixels=(20_000,) * 4), per_class=True)
    assert "to judge" not in judged
    unknown = printed(replace(result, truth_pixels=None, truth_blocks=None), per_class=True)
    assert "of truth" not in unknown
    assert "to judge" not in unknown


def test_it_is_plain_off_a_terminal(result: BenchResult, capsys: pytest.CaptureFixture[str]) -> None:
    print_bench(result)
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert "openvino int8" in text


def test_precision_has_a_column_where_names_do_not_tell_it(result: BenchResult) -> None:
    assert "precision" not in printed(result)
    renamed = replace(result, engines=(replace(result.engines[0], name="mine"),))
    assert "precision" in printed(renamed, width=120)


def test_without_labels_the_verdict_speaks_of_agreement_not_of_loss(result: BenchResult) -> None:
    text = verdicts(replace(result, truth="reference"))[0]
    assert " against these" in text
    assert "loses" not in text
    assert f"{result.engines[0].accuracy.miou:.2f} mIoU" in text


def test_verdicts_say_speed_loss_and_worst_class(result: BenchResult) -> None:
    engine = result.engines[0]
    worst = result.worst_class(engine)
    assert worst is not None
    text = verdicts(result)[0]
    least, most = result.speedup_range(engine) or (0.0, 0.0)
    assert least <= most
    assert text.startswith(
        f"openvino int8 runs at {engine.speedup:.1f} times the FPS of torch fp32 ({least:.1f} to {most:.1f} from round "
        "to round) and loses "
    )
    assert f"{engine.drop.miou:.2f} points of mIoU (95 % interval of the drop " in text
    assert f"{worst[0]} loses most, {signed(worst[1])}. {engine.equal_labels:.2f} % of its labels" in text
    assert " and gains " in verdicts(result)[1]  # it is right where the reference is wrong


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (0.0, "0.00"), (3.14159, "3.14"), (31.4159, "31.4"), (3141.59, "3142")]
)
def test_numbers_have_about_three_digits(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.001, "0.00"), (-0.004, "0.00"), (1.5, "+1.50"), (-0.25, "-0.25")])
def test_differences_have_a_sign_unless_zero(value: float, text: str) -> None:
    assert signed(value) == text
