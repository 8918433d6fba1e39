from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fcnopt.choices import read_classes, read_normalization
from fcnopt.errors import UsageError
from fcnopt.spec import DATASETS, NORMALIZATIONS, ClassSpec, Normalization


@pytest.mark.parametrize("name", list(DATASETS))
def test_a_data_set_is_known_by_name(name: str) -> None:
    assert read_classes(name) == ClassSpec.named(name)


def test_a_spec_is_taken_as_it_is() -> None:
    spec = ClassSpec.of_count(3)
    assert read_classes(spec) is spec


def written(folder: Path, content: Any) -> Path:
    path = folder / "classes.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_json_file_gives_names_palette_and_ignore_index(tmp_path: Path) -> None:
    content = {"names": ["Straße", "car"], "palette": [[1, 2, 3], [4, 5, 6]], "ignore_index": None}
    assert read_classes(written(tmp_path, content)) == ClassSpec(("Straße", "car"), ((1, 2, 3), (4, 5, 6)), None)


def test_a_json_file_needs_no_palette(tmp_path: Path) -> None:
    spec = read_classes(str(written(tmp_path, {"names": ["a", "b", "c"]})))
    assert spec.names == ("a", "b", "c")
    assert len(set(spec.palette)) == 3
    assert spec.ignore_index == 255


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a JSON file"),
        ([1], "expected an object with a list 'names'"),
        ({"names": "road"}, "expected an object with a list 'names'"),
        ({"names": ["a"], "colours": []}, "unknown entry 'colours'"),
        ({"names": ["a"], "palette": [[1, 2]]}, "palette is not a list of"),
        ({"names": ["a"], "palette": 3}, "palette is not a list of"),
        ({"names": ["a"], "palette": [[1, 2, 300]]}, r"not three values 0\.\.255"),
        ({"names": ["a", "b"], "palette": [[1, 2, 3]]}, "2 names but 1 colours"),
        ({"names": ["a"], "ignore_index": 300}, "ignore_index 300"),
        ({"names": []}, "0 names found"),
    ],
)
def test_a_wrong_file_is_a_usage_error(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_classes(written(tmp_path, content))


def test_an_unknown_name_or_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'kitty' is not a known data set"):
        read_classes("kitty")
    with pytest.raises(UsageError, match="no such file"):
        read_classes(tmp_path / "missing.json")


@pytest.mark.parametrize("name", list(NORMALIZATIONS))
def test_a_normalization_is_known_by_name(name: str) -> None:
    assert read_normalization(name) == NORMALIZATIONS[name]


def test_numbers_up_to_one_are_for_pixels_scaled_to_one() -> None:
    assert read_normalization("0.485,0.456,0.406/0.229,0.224,0.225") == Normalization()
    assert read_normalization("BGR: 0, 0, 0 / 1, 1, 1").scale == 1 / 255


def test_numbers_above_one_are_for_raw_pixels() -> None:
    assert read_normalization("bgr:104,117,123/1,1,1") == Normalization("BGR", 1.0, (104, 117, 123), (1, 1, 1))


@pytest.mark.parametrize("text", ["imagnet", "1,2,3", "1,2/1,2", "1,2,3/1,2,x", "GBR:0,0,0/1,1,1", "0,0,0/0,1,1", ""])
def test_a_wrong_normalization_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="normaliz"):
        read_normalization(text)
