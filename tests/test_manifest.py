"""Manifests: claims of accuracy are checked as they are read, and older manifests still are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fcnopt.errors import BundleError
from fcnopt.manifest import AccuracyClaim, Manifest
from fcnopt.spec import ClassSpec, FrameSpec, ModelSpec

CLAIM = AccuracyClaim(
    reference="fcn8s.onnx",
    clip="camvid/val",
    frames=101,
    frames_sha256="ab" * 32,
    truth="labels",
    miou_drop=0.03,
    miou_drop_interval=(-0.02, 0.08),
    worst_class="pole",
    worst_class_drop=0.21,
    equal_labels=99.81,
    date="2026-11-22T09:00:00+00:00",
    budget={"max_miou_drop": 0.1, "max_class_drop": None, "on": "interval", "min_pixels": 10_000},
)
BARE = AccuracyClaim("r", "c", 1, "ff", "reference", 0, None, None, None, 100, "2026-11-22")


def manifest(accuracy: AccuracyClaim | None = None) -> Manifest:
    return Manifest(
        name="net",
        created="2026-11-22T09:00:00+00:00",
        fcnopt="0.1.0",
        spec=ModelSpec(FrameSpec(8, 8), ClassSpec(("a", "b"), ((0, 0, 0),) * 2)),
        target="onnxruntime",
        precision="int8",
        device="cpu",
        runtime="onnxruntime",
        engine=("model.onnx",),
        files={"model.onnx": "0" * 64},
        sources={"model": "fcn8s.onnx", "model_sha256": "0" * 64},
        min_agreement=0.9,
        accuracy=accuracy,
    )


def read(data: dict[str, Any]) -> Manifest:
    return Manifest.from_json(json.dumps(data), Path("manifest.json"))


@pytest.mark.parametrize("claim", [None, CLAIM, BARE])
def test_a_claim_comes_back_as_it_was_written(claim: AccuracyClaim | None) -> None:
    written = manifest(claim)
    again = Manifest.from_json(written.to_json(), Path("manifest.json"))
    assert again == written
    assert again.accuracy == claim


def test_a_manifest_of_the_first_version_is_read_and_claims_nothing() -> None:
    data = json.loads(manifest().to_json())
    assert data["schema"] == 2
    del data["accuracy"], data["checksum"]
    old = read(data | {"schema": 1})
    assert old == manifest()
    assert old.accuracy is None


def test_another_version_is_refused_by_number() -> None:
    with pytest.raises(BundleError, match="schema version 3, this fcnopt reads 1 to 2"):
        read(json.loads(manifest().to_json()) | {"schema": 3})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": "all"}, "accuracy: frames is 'all'"),
        ({"reference": None}, "accuracy: reference is None"),
        ({"miou_drop": "none"}, "accuracy: miou_drop is 'none'"),
        ({"equal_labels": None}, "accuracy: equal_labels is None"),
        ({"worst_class": 3}, "accuracy: worst_class is 3"),
        ({"worst_class_drop": "x"}, "accuracy: worst_class_drop is 'x'"),
        ({"truth": "guess"}, "accuracy: truth is 'guess'"),
        ({"miou_drop_interval": [1.0]}, "miou_drop_interval is"),
        ({"miou_drop_interval": [0, "x"]}, "miou_drop_interval is"),
        ({"miou_drop_interval": 5}, "not a bundle manifest"),
        ({"budget": []}, r"accuracy: budget is \[\]"),
        ({"budget": {"max_miou_drop": "x"}}, "max_miou_drop of the budget is no number"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_damaged_claim_is_refused_with_what_is_wrong(change: dict[str, Any], message: str) -> None:
    data = json.loads(manifest(CLAIM).to_json())
    data["accuracy"] |= change
    with pytest.raises(BundleError, match=message):
        read(data)


@pytest.mark.parametrize("claim", [{}, [], "none", 5])
def test_what_is_no_claim_is_refused(claim: Any) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json: not a bundle manifest"):
        read(json.loads(manifest().to_json()) | {"accuracy": claim})


def test_a_change_of_any_byte_is_found() -> None:
    """Numbers and words that the reader takes as well are changed too: one that is wrong must not be believed."""
    whole = manifest(CLAIM).to_json().encode()
    assert Manifest.from_json(whole.decode(), Path("manifest.json")) == manifest(CLAIM)
    for place in range(len(whole)):
        changed = whole[:place] + bytes((whole[place] ^ 1,)) + whole[place + 1 :]
        with pytest.raises(BundleError, match=r"manifest\.json: (not a bundle manifest|schema version)"):
            Manifest.from_json(changed.decode(), Path("manifest.json"))


def test_one_that_was_edited_and_written_anew_is_refused() -> None:
    with pytest.raises(BundleError, match="it was changed since it was written"):
        read(json.loads(manifest().to_json()) | {"min_agreement": 0.1})
