from __future__ import annotations

import io
import itertools
import json
import math
import re
from dataclasses import replace

import pytest
from rich.console import Console

from fcnopt.evaluate.distance import Distance
from fcnopt.evaluate.pairing import Unmatched
from fcnopt.evaluate.parting_result import Comparison, LayerParting
from fcnopt.report.parting import Scale, factors_text, figures, print_comparison, render, rows, sentences
from tests.report.test_html import Page


def layer(name: str, sqnr_db: float, added_db: float, **more: object) -> LayerParting:
    result = Distance(sqnr_db, 1234.5678, 0.9999999, factors=more.pop("factors", None))  # type: ignore[arg-type]
    inputs = () if name == "conv1" else ("above",)
    return LayerParting(name, "Conv", f"{name}_out", inputs, result, more.get("drop"), added_db, more.get("alone"))  # type: ignore[arg-type]


@pytest.fixture
def found() -> Comparison:
    layers = (
        layer("conv1", math.inf, math.inf),
        layer("conv<2>", 42.123, 42.123),
        layer("conv3", 21.0, 21.04, drop=21.12, factors=(0.25, 0.25)),
        layer("conv4", 22.5, math.inf, drop=-1.5, factors=(0.1, 3.21)),
        layer("conv5", 20.1, 23.8, drop=2.4),
        layer("score", 15.0, 16.6, drop=5.1),
    )
    only_a = (Unmatched("up", "B has no tensor 'up'"),)
    return Comparison("a.onnx", "net-int8", "street", 16, (360, 480), 99.6251, layers, only_a, (), "score_out")


def printed(found: Comparison, **options: int) -> str:
    console = Console(file=io.StringIO(), width=100)
    print_comparison(found, console=console, **options)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_all_layers_stand_in_order_and_the_worst_are_marked(found: Comparison) -> None:
    text = printed(found)
    assert max(map(len, text.split("99.63 %")[0].splitlines())) <= 100
    assert text.startswith("net-int8 against a.onnx on street: 16 frames, 480x360\n")
    names = ["conv1", "conv<2>", "conv3", "conv4", "conv5", "score"]
    lines = {name: next(line for line in text.splitlines() if re.search(rf"(^|\s){name}\s", line)) for name in names}
    positions = [text.index(lines[name]) for name in names]
    assert positions == sorted(positions)
    marks = {name: line.split()[0] for name, line in lines.items() if line.split()[0].isdigit()}
    assert marks == {"score": "1", "conv3": "2", "conv5": "3"}
    assert lines["conv3"].split() == [
        "2",
        "conv3",
        "Conv",
        "conv3_out",
        "21.0",
        "21.1",
        "21.0",
        "1235",
        "0.999999",
        "x",
        "0.25",
    ]
    assert lines["conv4"].split()[3:] == ["22.5", "-1.5", "none", "1235", "0.999999", "x", "0.1..3.21"]
    assert lines["conv1"].split()[3:] == ["exact", "none", "1235", "1.000000"]


def test_top_prints_the_worst_first(found: Comparison) -> None:
    text = printed(found, top=2)
    assert text.index("score_out") < text.index("conv3_out")
    assert "conv5_out" not in text


def test_sentences_say_labels_blame_and_what_was_left_out(found: Comparison) -> None:
    assert sentences(found) == (
        "99.63 % of the labels are equal.",
        "Most noise of their own, estimated from drops: score (16.6 dB), conv3 (21.0 dB), conv5 (23.8 dB).",
        "Run with --alone to measure each layer's own noise.",
        "6 of 7 layers were matched by name.",
        "Not compared, their noise shows in the next layer: up (B has no tensor 'up').",
    )
    same = replace(found, layers=found.layers[:1], only_a=(), only_b=(Unmatched("new", "x"),), equal_labels=None)
    assert sentences(replace(same, notes=("mind the gap",))) == (
        "No layer adds any noise: the two compute the same.",
        "1 of 1 layers were matched by name.",
        "Only in net-int8: new.",
        "Note: mind the gap",
    )


def test_alone_replaces_the_estimate_everywhere(found: Comparison) -> None:
    alone = tuple(
        replace(entry, alone=Distance(30.0 + place, 0.0, 1.0)) for place, entry in enumerate(reversed(found.layers))
    )
    measured = replace(found, layers=alone[::-1])
    text = printed(measured)
    assert "alone" in text
    assert "added" not in text
    assert "Most noise of their own, alone in their precision: score (30.0 dB), conv5 (31.0 dB)" in text
    assert "--alone" not in text
    assert "only this layer in the precision of net-int8" in render(measured)


def test_broken_layers_lead(found: Comparison) -> None:
    result = Distance(-math.inf, 1.0, 0.5, non_finite=7)
    broken = replace(found.layers[3], result=result, added_db=-math.inf)
    text = sentences(replace(found, layers=(*found.layers[:3], broken, *found.layers[4:])))
    assert "conv4 (broken), score (16.6 dB), conv3 (21.0 dB)" in text[1]
    assert "Numbers that are not finite first appear in conv4." in text


def test_figures_have_digits_that_count() -> None:
    assert factors_text(Distance(1.0, 0.0, 1.0)) == ""
    small = LayerParting("n", "Conv", "t", (), Distance(50.04, 0.0001234, 0.5), None, math.inf)
    assert figures(small) == ("50.0", "", "none", "0.000123", "0.500000")
    assert figures(replace(small, alone=Distance(math.inf, 0.0, 1.0), drop_db=-0.04))[1:3] == ("0.0", "exact")
    huge = replace(small, result=Distance(-math.inf, 3.2e9, 0.5))
    assert figures(huge) == ("broken", "", "none", "3.2e+09", "0.500000")


def test_the_axis_holds_all_values_and_ends_at_80_db(found: Comparison) -> None:
    scale = Scale.of(found)
    assert (scale.low, scale.high) == (0, 50)
    assert [tick.text for tick in scale.ticks()] == ["0", "10", "20", "30", "40", "50"]
    assert (scale.place(0), scale.place(25), scale.place(math.inf), scale.place(-math.inf)) == (0, 50, 100, 0)
    exact = replace(found, layers=(layer("a", 132.0, 140.0), layer("b", -13.0, 5.0)))
    assert (Scale.of(exact).low, Scale.of(exact).high) == (-20, 80)
    assert Scale.of(exact).ticks()[-1].text == "80+"


def test_the_line_of_one_row_meets_that_of_the_next(found: Comparison) -> None:
    shown = rows(found, Scale.of(found))
    assert (shown[0].above, shown[-1].below) == (None, None)
    for one, two in itertools.pairwise(shown):
        assert one.below == two.above == pytest.approx((one.at + two.at) / 2)
    assert [row.rank for row in shown] == [None, None, 2, None, 3, 1]
    assert (shown[5].at, shown[5].own_at) == pytest.approx((30.0, 33.2))


def test_the_page_needs_nothing_else_and_holds_the_data(found: Comparison) -> None:
    text = render(replace(found, command="fcnopt compare 'a & b'", date="2026-11-22T09:00:00+00:00"))
    page = PartingPage(text)
    assert page.addresses == []
    assert (
        json.loads(page.script)
        == replace(found, command="fcnopt compare 'a & b'", date="2026-11-22T09:00:00+00:00").to_dict()
    )
    assert page.rows == ["conv1", "conv<2>", "conv3", "conv4", "conv5", "score"]
    assert "&lt;2&gt;" in text
    assert text.count('class="worst"') == 3
    assert text.count("<svg") == text.count('class="dot"') == 6
    assert text.count('<i class="own" style="left') == 4  # two layers add nothing
    assert len(re.findall(r'<line x1="[\d.]+" y1="\d+" x2="[\d.]+" y2="\d+"/>', text)) == 10
    assert 'class="own" style="left: 33.20%" title="added: 16.6"' in text
    assert "x 0.1..3.21" in text


def test_the_page_leaves_out_what_is_not_there(found: Comparison) -> None:
    plain = replace(found, layers=tuple(replace(x, result=replace(x.result, factors=None)) for x in found.layers))
    text = render(plain)
    assert "scaled" not in text.split("<script")[0]
    assert "<code>" not in text


class PartingPage(Page):
    """The page with the names of its rows."""

    def __init__(self, text: str) -> None:
        self.rows: list[str] = []
        super().__init__(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        super().handle_starttag(tag, attributes)
        if tag == "tr" and (name := dict(attributes).get("data-layer")):
            self.rows.append(name)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag == "line", attrs
