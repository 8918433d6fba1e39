from __future__ import annotations

import copy
import io
import itertools
import json
import re
from typing import Any

import pytest
from rich.console import Console

from fcnopt.report.search import SIZE, headlines, panels, print_search, render_search, rows, sentences
from tests.report.test_html import Page

HOSTILE = '</script><b id="x">&conv'


def candidate(
    floats: list[str], ms: float, drop: float, high: float | None, equal: float, **more: Any
) -> dict[str, Any]:
    interval = None if high is None else [drop - 0.07, high]
    found = {"floats": floats, "ms": ms, "macs_share": 0.98, "miou_drop": drop, "interval": interval}
    found |= {"worst_class": "Pole", "worst_class_drop": 0.3, "equal_labels": equal, "kept": False, "chosen": False}
    return found | {"reasons": [f"reason {len(floats)}"]} | more


def layer(node: str, gain: float, cost_ms: float, precision: str = "int8", source: str = "table") -> dict[str, Any]:
    found = {"node": node, "macs_share": 0.114, "cost_ms": cost_ms, "divergence": 2e-4, "gain": gain}
    return found | {"source": source, "precision": precision}


@pytest.fixture
def search() -> dict[str, Any]:
    kept = {"kept": True}
    return {
        "budget": {"max_miou_drop": 0.1, "max_class_drop": 0.5, "on": "interval", "min_pixels": 10000},
        "validation": {"clip": "camvid/train-b", "frames": 101, "sha256": "00", "truth": "labels"},
        "cost": {
            "target": "tensorrt-rtx:sm86",
            "family": "sm86",
            "source": "table",
            "quantized_ms": 1.9,
            "float_ms": 3.8,
            "fallback": "fp16",
            "precision": "int8",
        },
        "layers": [
            layer("conv1_2", 0.18, 0.31, "fp16"),
            layer(HOSTILE, -0.02, -0.004, source="measured"),
            layer("fc6", -0.0001, 0.5),
        ],
        "candidates": [  # not in the order of times
            candidate(["conv1_2", "fc6", "fc7"], 2.2, 0.02, 0.08, 99.81, **kept, chosen=True),
            candidate([], 1.9, 0.14, 0.3, 99.4),
            candidate(["conv1_2", "fc6", "fc7", "fc8"], 2.3, 0.05, 0.12, 99.7),
            candidate(["conv1_2", HOSTILE], 1.95, 0.09, 0.2, 99.6),
        ],
        "frames_needed": 340,
    }


def unkept(search: dict[str, Any]) -> dict[str, Any]:
    found = copy.deepcopy(search)
    for entry in found["candidates"]:
        entry |= {"kept": False, "chosen": False}
    return found


def printed(search: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=100, markup=False)
    print_search(search, console=console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_candidates_are_sorted_by_time_and_say_what_they_buy_over_the_one_before(search: dict[str, Any]) -> None:
    found = rows(search)
    assert [row.number for row in found] == [1, 2, 3, 4]
    assert [row.name for row in found] == [
        "none (all INT8)",
        f"conv1_2, {HOSTILE}",
        "conv1_2 + 2 more",
        "conv1_2 + 3 more",
    ]
    assert found[0].cells == (
        "1.90",
        "2.00",
        "+0.14",
        "+0.07..+0.30",
        "+0.30",
        "Pole",
        "99.40",
        "98.0",
        *[""] * 3,
        "no",
    )
    assert [row.cells[8:] for row in found[1:]] == [
        ("+0.05", "+0.20", "0.05", "no"),
        ("+0.07", "+0.21", "0.25", "chosen"),
        ("-0.03", "-0.11", "0.1", "no"),
    ]
    assert [row.front for row in found] == [True, True, True, False]


def test_candidates_are_judged_by_what_the_budget_is_on(search: dict[str, Any]) -> None:
    assert [row.lost for row in rows(search)] == [0.3, 0.2, 0.08, 0.12]
    search["budget"]["on"] = "mean"
    assert [row.lost for row in rows(search)] == [0.14, 0.09, 0.02, 0.05]
    skewed = search | {"budget": search["budget"] | {"on": "interval"}}
    skewed["candidates"] = [candidate([], 1.9, 0.14, 0.1, 99.4)]  # an interval that ends below the mean
    assert rows(skewed)[0].lost == 0.14


def test_the_outcome_is_said_in_words(search: dict[str, Any]) -> None:
    assert headlines(search) == (
        "Looked for the fastest INT8 for tensorrt-rtx:sm86 that loses at most 0.1 points of mIoU and 0.5 of any class "
        "with 10,000 pixels or more, by the upper end of the 95 % interval.",
        "Judged on 101 frames of camvid/train-b; truth: label maps.",
    )
    assert sentences(search) == (
        "Chosen: conv1_2, fc6, fc7 in FP16, the rest INT8. 2.20 ms a frame, 1.73 times as fast as all FP16; mIoU drop "
        "+0.02 (-0.05..+0.08), 99.81 % equal labels.",
        "Against all INT8 it buys +0.12 points of mIoU and +0.41 % of the labels for 0.3 ms.",
        "Why: reason 3.",
        "Times are estimates by the table for sm86, not measured.",
        "About 340 frames like these 101 would make the interval narrow enough to keep the budget with a faster "
        "candidate, if the mean drop stays what it is.",
    )


def test_budgets_without_a_class_limit_and_on_the_mean_are_said(search: dict[str, Any]) -> None:
    search["budget"] |= {"max_class_drop": None, "on": "mean"}
    search["validation"] |= {"frames": 1, "truth": "reference"}
    assert headlines(search) == (
        "Looked for the fastest INT8 for tensorrt-rtx:sm86 that loses at most 0.1 points of mIoU, on the mean.",
        "Judged on 1 frame of camvid/train-b; truth: the FP32 reference's labels.",
    )


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("table", "Times are estimates by the table for sm86, not measured."),
        ("measured", "Times are sums of what layers took on the machine that searched."),
        (
            "mixed",
            "Times are sums of what layers took on the machine that searched; layers that could not be timed are "
            "estimates by the table for sm86.",
        ),
    ],
)
def test_it_says_where_the_times_come_from(search: dict[str, Any], source: str, text: str) -> None:
    search["cost"]["source"] = source
    assert text in sentences(search)
    assert text in printed(search)


def test_a_budget_that_cannot_be_kept_names_the_closest_and_what_would_help(search: dict[str, Any]) -> None:
    missed = unkept(search)
    said = sentences(missed)
    assert said[0].startswith("No candidate keeps the budget. The one that comes closest in mIoU: conv1_2, fc6, fc7 in")
    assert said[-1].endswith("narrow enough to keep the budget, if the mean drop stays what it is.")
    missed["frames_needed"] = None
    assert sentences(missed)[-1].startswith("Times are")  # means are within the budget: nothing is claimed
    for entry in missed["candidates"]:
        entry["miou_drop"] += 0.1
    assert sentences(missed)[-1] == "More frames would not help: every candidate's mean drop is over the budget."
    text = render_search(missed, "net")
    assert 'class="ring"' not in text
    assert 'class="mark missed"' in text
    assert "chosen" not in [row.cells[-1] for row in rows(missed)]


def test_one_candidate_without_interval_class_or_layers_is_shown(search: dict[str, Any]) -> None:
    bare = {"worst_class": None, "worst_class_drop": None, "kept": True, "chosen": True, "reasons": []}
    one = search | {"candidates": [candidate([], 1.9, 0.0, None, 100.0, **bare)], "layers": [], "frames_needed": None}
    assert sentences(one) == (
        "Chosen: all layers INT8. 1.90 ms a frame, 2.00 times as fast as all FP16; mIoU drop 0.00, 100.00 % equal "
        "labels.",
        "No layer's gain was measured: there was nothing to search.",
        "Times are estimates by the table for sm86, not measured.",
    )
    assert "gain in" in printed(search)
    assert "gain in" not in printed(one)
    drop, differ = panels(one, rows(one))
    assert [mark.whisker for mark in (*drop.marks, *differ.marks)] == [None, None]
    assert all(0 < mark.x < SIZE[0] and 0 < mark.y < SIZE[1] for mark in (*drop.marks, *differ.marks))
    page = Page(text := render_search(one, "net"))
    assert text.count('<circle class="ring"') == 2
    assert "no interval" in page.text
    assert "Layers" not in page.text


def test_the_terminal_tables_fit_100_columns(search: dict[str, Any]) -> None:
    text = printed(search)
    lines = text[text.index("truth: label maps.") : text.index("Chosen:")].splitlines()
    assert max(map(len, lines)) <= 100
    assert "…" not in text
    (chosen,) = [line for line in lines if "chosen" in line]
    assert chosen.split()[:2] == ["3", "conv1_2"]
    assert chosen.split()[-8:] == ["2.20", "+0.02", "+0.30", "99.81", "98.0", "+0.07", "0.25", "chosen"]
    of_layer = {line.split()[0]: line.split()[1:] for line in lines if " table " in line or " measured " in line}
    assert of_layer["conv1_2"] == ["11.40", "18.0", "0.31", "58.1", "table", "FP16"]
    assert of_layer["fc6"] == ["11.40", "0.0", "0.5", "0.0", "table", "INT8"]
    assert next(line for line in lines if "&conv" in line).split()[-6:] == [
        "11.40",
        "-2.0",
        "-0.004",
        "free",
        "measured",
        "INT8",
    ]


def test_names_cannot_break_the_page_and_it_needs_nothing_else(search: dict[str, Any]) -> None:
    text = render_search(search, HOSTILE)
    page = Page(text)  # fails where tags are not closed
    assert HOSTILE not in text
    assert 'id="x"' not in text
    assert "b" not in page.tags
    assert page.addresses == []
    assert [script["type"] for script in page.scripts] == ["application/json"]
    assert json.loads(page.script) == search
    assert page.tags.count("svg") == 2
    assert page.text.count("conv1_2, fc6, fc7, fc8") == 1  # unfolds under its short name
    assert "Why: reason 3." in page.text


def test_the_front_goes_through_what_nothing_beats(search: dict[str, Any]) -> None:
    drop, differ = panels(search, rows(search))
    for panel in (drop, differ):
        corners = [(float(x), float(y)) for x, y in re.findall(r"H([\d.]+) V([\d.]+)", panel.front)]
        best = panel.marks[:3]
        assert corners == [(pytest.approx(mark.x, abs=0.06), pytest.approx(mark.y, abs=0.06)) for mark in best]
        assert [mark.x for mark in panel.marks] == sorted(mark.x for mark in panel.marks)
    assert drop.limit is not None
    assert [mark.y > drop.limit for mark in drop.marks] == [False, False, True, False]  # down is less
    assert differ.limit is None
    assert all(mark.whisker and mark.whisker[1] == mark.y < mark.whisker[2] < mark.whisker[0] for mark in drop.marks)
    assert [mark.whisker for mark in differ.marks] == [None] * 4


def test_ticks_are_round_and_inside(search: dict[str, Any]) -> None:
    drop, differ = panels(search, rows(search))
    assert [tick.text for tick in drop.across] == ["1.9", "2.0", "2.1", "2.2", "2.3"]
    assert [tick.text for tick in drop.up] == ["0.0", "0.1", "0.2", "0.3"]
    for panel in (drop, differ):
        assert all(0 < tick.at < SIZE[0] for tick in panel.across)
        assert all(0 < tick.at < SIZE[1] for tick in panel.up)


def test_labels_never_touch_and_the_chosen_one_has_its_name(search: dict[str, Any]) -> None:
    crowd = [candidate([f"a_long_name_of_a_layer_{n}"] * 3, 2.2 + 0.001 * n, 0.02, 0.08, 99.81) for n in range(12)]
    search["candidates"] += crowd
    for panel in panels(search, rows(search)):
        labels = [mark.label for mark in panel.marks if mark.label]
        assert len(labels) >= 4
        (chosen,) = [mark.label for mark in panel.marks if mark.row.entry["chosen"]]
        assert chosen is not None
        assert chosen.text.endswith("conv1_2 + 2 more")
        spans = []
        for label in labels:
            wide = 6 * len(label.text)
            left = label.x if label.anchor == "start" else label.x - wide
            spans.append((left, left + wide, label.y - 10, label.y + 2))
            assert left >= 0
            assert left + wide <= SIZE[0]
        for one, two in itertools.combinations(spans, 2):
            assert one[1] <= two[0] or two[1] <= one[0] or one[3] <= two[2] or two[3] <= one[2]
