"""What is printed of claims and verdicts."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from fcnopt.bundle import MANIFEST, Bundle
from fcnopt.evaluate.budget import Budget, Verdict, judge
from fcnopt.graph.stats import GraphStats
from fcnopt.inspection import Inspection
from fcnopt.report.summaries import claim_text, print_built, print_inspection, print_verdict
from tests.evaluate.test_budget import THREE, counted, even, uneven_loss
from tests.test_manifest import BARE, CLAIM, manifest

LINE = (
    "mIoU drop +0.03 (-0.02..+0.08), worst class pole +0.21, 99.81 % equal labels; against label maps on 101 frames of "
    "camvid/val, 2026-11-22; budget 0.1 on the interval"
)


def on_paper() -> Console:
    return Console(file=io.StringIO(), width=100, markup=False)


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def verdict_text(verdict: Verdict, *, per_class: bool = False) -> list[str]:
    console = on_paper()
    print_verdict(verdict, per_class=per_class, console=console)
    return text_of(console).splitlines()


def test_a_claim_is_one_line() -> None:
    assert claim_text(CLAIM) == LINE
    assert claim_text(replace(CLAIM, budget={"max_miou_drop": 0.1, "max_class_drop": 0.5, "on": "mean"})).endswith(
        "budget 0.1, 0.5 a class on the mean"
    )
    assert claim_text(BARE) == (
        "mIoU drop 0.00, 100.00 % equal labels; against the FP32 reference's labels on 1 frame of c, 2026-11-22"
    )


def test_inspect_and_build_show_the_claim_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text("{}")
    stats = GraphStats(nodes=1, parameters=0, parameter_bytes=0, macs=0, activation_bytes=0, ops={"Conv": 1})
    for made, lines in ((manifest(CLAIM), 1), (manifest(), 0)):
        console = on_paper()
        print_inspection(Inspection(Path("engines/net"), made.spec, stats, made), console=console)
        assert text_of(console).splitlines().count(f"  claims     {LINE}") == lines
        console = on_paper()
        print_built(Bundle(tmp_path, made), console=console)
        assert text_of(console).splitlines().count(f"accuracy: {LINE}") == lines


@pytest.mark.parametrize(
    ("precision", "words"),
    [
        ("int8", "calibrated on 64 frames, 480x360, from calib"),
        ("fp16", "which nodes stay FP32 was judged on 64 frames, 480x360, from calib"),
    ],
)
def test_frames_are_said_to_be_for_what_they_were_used_for(tmp_path: Path, precision: str, words: str) -> None:
    (tmp_path / MANIFEST).write_text("{}")
    stats = GraphStats(nodes=1, parameters=0, parameter_bytes=0, macs=0, activation_bytes=0, ops={"Conv": 1})
    bare = manifest()
    sources = {**bare.sources, "calibration": "64 frames, 480x360, from calib", "frames": 64}
    made = replace(bare, precision=precision, sources=sources)  # type: ignore[arg-type]
    console = on_paper()
    print_built(Bundle(tmp_path, made), console=console)
    assert words in text_of(console).splitlines()
    console = on_paper()
    print_inspection(Inspection(Path("engines/net"), made.spec, stats, made, 4), console=console)
    assert f"  {words}" in text_of(console).splitlines()
    assert "  batch      4 frames at once" in text_of(console).splitlines()


def test_a_kept_and_a_missed_budget_are_told_apart() -> None:
    reference, engine = even(40), uneven_loss(40)
    measured = judge(reference, engine, THREE, None)
    assert verdict_text(measured) == []
    assert measured.interval is not None
    (kept,) = verdict_text(judge(reference, engine, THREE, Budget(5.0)))
    assert kept.startswith("budget kept: mIoU drop ")
    close = judge(reference, engine, THREE, Budget((measured.drop + measured.interval[1]) / 2))
    missed, more = verdict_text(close)
    assert missed.startswith("budget missed: mIoU drop ")
    assert close.frames_needed is not None
    assert more.startswith(f"40 frames are too few to tell: about {close.frames_needed:,} would do")
    assert len(verdict_text(judge(reference, engine, THREE, Budget(0.0)))) == 1, "no number of frames would do"


@pytest.mark.parametrize(("pixels", "remark"), [(20_000, ""), (10, "too few pixels to judge"), (0, "not in the truth")])
def test_every_class_is_shown_on_request(pixels: int, remark: str) -> None:
    truth = np.full((8, 3), 20_000)
    truth[:, 2] = pixels
    verdict = judge(counted(truth), counted(truth, truth // 10), THREE, Budget(20.0))
    lines = verdict_text(verdict, per_class=True)
    (line,) = [text for text in lines if text.strip().startswith("pole")]
    drop = "+10.00 +10.00..+10.00" if pixels else "-"
    assert " ".join(line.split()) == f"pole {drop} {8 * pixels:,} {remark}".strip()
    assert not [text for text in verdict_text(verdict) if text.strip().startswith("pole ")]
