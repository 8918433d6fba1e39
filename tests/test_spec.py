"""ModelSpec: JSON round trip and refusals."""

from __future__ import annotations

import json

import pytest

from fcnopt.errors import UsageError
from fcnopt.spec import DATASETS, NORMALIZATIONS, ClassSpec, FrameSpec, ModelSpec, Normalization


def a_spec() -> ModelSpec:
    frame = FrameSpec(360, 480, "RGB", "letterbox", NORMALIZATIONS["caffe"])
    return ModelSpec(frame, ClassSpec.named("camvid"), ("labels", "logits"), "FCN-8s")


def test_json_round_trip_keeps_every_field() -> None:
    assert ModelSpec.from_json(a_spec().to_json()) == a_spec()


def test_every_data_set_has_distinct_names_and_colours() -> None:
    for name in DATASETS:
        classes = ClassSpec.named(name)
        assert len(set(classes.names)) == len(classes)
        assert len(set(classes.palette)) == len(classes)


@pytest.mark.parametrize(("count", "first"), [(11, "Sky"), (19, "road"), (21, "background"), (3, "class_0")])
def test_classes_are_guessed_from_their_number(count: int, first: str) -> None:
    classes = ClassSpec.of_count(count)
    assert len(classes) == count
    assert classes.names[0] == first


def test_another_schema_version_is_refused_by_number() -> None:
    data = json.loads(a_spec().to_json()) | {"version": 99}
    with pytest.raises(UsageError, match="schema version 99"):
        ModelSpec.from_json(json.dumps(data))


@pytest.mark.parametrize("field", ["frame", "classes", "outputs", "architecture"])
def test_a_missing_field_is_named(field: str) -> None:
    data = json.loads(a_spec().to_json())
    del data[field]
    with pytest.raises(UsageError, match=field):
        ModelSpec.from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", "[" * 100_000])
def test_what_is_not_a_spec_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="model spec"):
        ModelSpec.from_json(text)


def test_wrong_values_name_field_and_choices() -> None:
    with pytest.raises(UsageError, match=r"frame\.color: 'GRB' is not one of BGR, RGB"):
        FrameSpec(color="GRB")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"frame\.height: 0 is not a size"):
        FrameSpec(height=0)
    with pytest.raises(UsageError, match="zero"):
        Normalization(std=(1.0, 0.0, 1.0))
    with pytest.raises(UsageError, match="three finite numbers"):
        Normalization(mean=(float("nan"), 0.0, 0.0))
    with pytest.raises(UsageError, match="2 names but 1 colours"):
        ClassSpec(("a", "b"), ((0, 0, 0),))
    with pytest.raises(UsageError, match="must name labels"):
        ModelSpec(FrameSpec(), ClassSpec.of_count(2), ("logits",))
    with pytest.raises(UsageError, match="not a known data set"):
        ClassSpec.named("kitchen")
