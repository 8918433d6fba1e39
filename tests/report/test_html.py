from __future__ import annotations

import base64
import json
from dataclasses import replace
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from fcnopt.evaluate.bench import BenchResult
from fcnopt.report.html import render
from fcnopt.report.words import number, signed
from tests.report.conftest import measured

VOID = {"meta", "br", "img", "rect", "link", "input"}


class Page(HTMLParser):
    """The page's cells by row and field, its pictures, text, and every address it names."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.images: list[tuple[str, str]] = []
        self.tags: list[str] = []
        self.fields: dict[tuple[str, str], list[str]] = {}
        self.text: list[str] = []
        self.scripts: list[dict[str, str | None]] = []
        self.script = ""
        self._open: list[str] = []
        self._row = ""
        self._field: str | None = None
        self.feed(text)
        self.close()
        assert self._open == [], f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.tags.append(tag)
        if tag not in VOID:
            self._open.append(tag)
        self.addresses += [
            v or "" for k, v in attributes if k in ("src", "href", "action", "data", "srcset", "xlink:href")
        ]
        if tag == "img":
            self.images.append((found.get("class") or "", found.get("src") or ""))
        if tag == "script":
            self.scripts.append(found)
        if tag == "tr":
            self._row = found.get("data-engine") or found.get("data-class") or ""
        self._field = found.get("data-field")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID, attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        self._field = None

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            self.script += data
        elif self._open and self._open[-1] != "style":
            self.text.append(data)
            if self._field is not None:
                self.fields.setdefault((self._row, self._field), []).append(data.strip())


@pytest.fixture(scope="module")
def page(result: BenchResult) -> Page:
    return Page(render(result))


def test_it_needs_nothing_from_outside(result: BenchResult, page: Page) -> None:
    text = render(result)
    assert page.addresses
    assert all(address.startswith("data:image/") for address in page.addresses)
    assert "http:" not in text
    assert "https:" not in text
    assert "url(" not in text
    assert "@import" not in text
    assert "link" not in page.tags
    assert [script["type"] for script in page.scripts] == ["application/json"]  # data, nothing that runs


def test_the_summary_shows_the_results_numbers(result: BenchResult, page: Page) -> None:
    for row in result.rows:
        shown = {field: values for (name, field), values in page.fields.items() if name == row.name}
        expected = {
            "fps": number(row.fps),
            "speedup": f"{row.speedup:.2f}",
            "fps_inference": number(row.fps_inference),
            "p50_ms": number(row.latency.p50_ms),
            "p99_ms": number(row.latency.p99_ms),
            "max_ms": number(row.latency.max_ms),
            "miou": f"{row.accuracy.miou:.2f}",
            "pixel_accuracy": f"{row.accuracy.pixel_accuracy:.2f}",
        }
        if row is not result.reference:
            expected |= {"drop": signed(row.drop.miou), "equal_labels": f"{row.equal_labels:.2f}"}
        assert shown == {field: [value] for field, value in expected.items()}


def test_the_class_table_shows_iou_and_drop_of_every_engine(result: BenchResult, page: Page) -> None:
    for place, name in enumerate(result.classes):
        assert page.fields[name, "iou"] == [f"{row.accuracy.iou[place]:.2f}" for row in result.rows]
        assert page.fields[name, "drop"] == [signed(engine.drop.iou[place] or 0.0) for engine in result.engines]


def test_the_class_table_says_which_classes_have_too_few_pixels(result: BenchResult, page: Page) -> None:
    assert [page.fields[name, "pixels"] for name in result.classes] == [["2,304"]] * 4
    assert [page.fields[name, "unjudged"] for name in result.classes] == [["too few pixels to judge"]] * 4
    many = Page(render(replace(result, truth_pixels=(20_000, 20_000, 3, 0))))
    assert {name for name, field in many.fields if field == "unjudged"} == {"pole", "sky"}
    assert "There are too few pixels or frames to judge the drop of pole." in "".join(many.text)
    unknown = Page(render(replace(result, truth_pixels=None, truth_blocks=None)))
    assert not [field for _, field in unknown.fields if field in ("pixels", "unjudged")]


def test_pictures_of_every_sample_are_inside_and_whole(result: BenchResult, page: Page) -> None:
    kinds = ["image", "truth", "reference", "engine", "difference", "engine", "difference"]
    assert [kind for kind, _ in page.images] == kinds * len(result.samples)
    assert len(result.samples) == 3
    for kind, source in page.images:
        head, data = source.split(",", 1)
        assert head == f"data:image/{'jpeg' if kind in ('image', 'difference') else 'png'};base64"
        picture = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
        assert picture.shape == (24, 32, 3)


def test_label_pictures_have_the_palettes_colours(result: BenchResult, page: Page) -> None:
    reference = [source for kind, source in page.images if kind == "reference"]
    for sample, source in zip(result.samples, reference, strict=True):
        data = np.frombuffer(base64.b64decode(source.split(",", 1)[1]), np.uint8)
        picture = cv2.imdecode(data, cv2.IMREAD_COLOR)[:, :, ::-1]
        np.testing.assert_array_equal(picture, np.array(result.palette, np.uint8)[sample.reference])


def test_words_are_escaped_and_facts_are_plain(page: Page) -> None:
    text = "".join(page.text)
    for words in (
        "fcnopt bench fake.mp4 --labels 'a & b'",
        "EPYC <9B45>",
        "avx512, vnni",
        "name: H100, memory_mib: 81559",
        "openvino 2026.4",
        "2026-11-22T09:00:00+00:00",
        "label maps of 12 frames",
        "latency, ms",
    ):
        assert words in text


def test_captions_say_what_the_interval_is_over(result: BenchResult, page: Page) -> None:
    assert "".join(page.text).count("95 % interval over frames in blocks of 3") == 2  # the summary's and the classes'
    without = "".join(Page(render(replace(result, interval_block_frames=None))).text)
    assert "95 % interval" not in without.split("Summary")[1]


def test_the_page_carries_its_data(result: BenchResult, page: Page) -> None:
    assert json.loads(page.script) == result.to_dict()


def test_without_label_maps_it_says_what_the_truth_is() -> None:
    page = Page(render(measured(labelled=False)))
    text = "".join(page.text)
    assert "no label maps: the reference's labels are the truth" in text
    assert "a drop is 100 minus that agreement" in text
    assert "truth" not in [kind for kind, _ in page.images]


def test_a_result_read_from_json_has_a_page_without_pictures(result: BenchResult) -> None:
    page = Page(render(BenchResult.from_json(result.to_json())))
    assert page.images == []
    assert page.fields["openvino int8", "miou"] == [f"{result.engines[0].accuracy.miou:.2f}"]


def test_one_frame_has_a_page() -> None:
    page = Page(render(measured(frames=1)))
    assert ("openvino int8", "drop") in page.fields


def test_it_has_a_light_and_a_dark_scheme(result: BenchResult) -> None:
    text = render(result)
    assert "prefers-color-scheme: dark" in text
    assert "light dark" in text
