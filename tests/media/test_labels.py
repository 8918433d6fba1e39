from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from fcnopt.errors import MediaError
from fcnopt.media import open_clip
from fcnopt.media.labels import check_label_map, find_labels, label_maps_in, load_labels, match_labels, read_label_map
from fcnopt.media.writer import write_image
from fcnopt.spec import ClassSpec
from tests.media.conftest import png_bytes

LABELS = np.arange(77, dtype=np.uint8).reshape(7, 11) % 12


def test_grey_png_is_read_as_stored(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_label_map(write_image(tmp_path / "grey.png", LABELS)), LABELS)


def test_palette_png_is_read_as_indices(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "palette.png"
    path.write_bytes(png_bytes(LABELS, 3, rng.integers(0, 256, 36, np.uint8).tobytes()))
    assert cv2.imread(str(path), cv2.IMREAD_UNCHANGED).shape == (7, 11, 3)  # what must not be taken for labels
    np.testing.assert_array_equal(read_label_map(path), LABELS)


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (np.zeros((7, 11, 3), np.uint8), "8-bit colour PNG"),
        (np.zeros((7, 11, 4), np.uint8), "8-bit colour PNG"),
        (np.zeros((7, 11), np.uint16), "16-bit grey PNG"),
    ],
)
def test_png_that_holds_no_labels_is_refused(tmp_path: Path, image: np.ndarray, found: str) -> None:
    path = write_image(tmp_path / "colours.png", image)
    with pytest.raises(MediaError, match=rf"colours\.png: expected one 8-bit label a pixel .* found a {found}"):
        read_label_map(path)


def test_label_map_that_is_no_png_or_damaged_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"a\.jpg: expected a PNG"):
        read_label_map(write_image(tmp_path / "a.jpg", LABELS))
    path = write_image(tmp_path / "cut.png", LABELS)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(MediaError, match=r"cut\.png: the file is cut off"):
        read_label_map(path)
    with pytest.raises(MediaError, match=r"none\.png: cannot be read: No such file"):
        read_label_map(tmp_path / "none.png")
    for kind, palette in ((0, b""), (3, bytes(36))):
        whole = png_bytes(LABELS, kind, palette)
        place = whole.index(b"IDAT") + 6
        (tmp_path / "bad.png").write_bytes(whole[:place] + b"\xff\xff\xff\xff" + whole[place + 4 :])
        with pytest.raises(MediaError, match=r"bad\.png: the PNG cannot be decoded"):
            read_label_map(tmp_path / "bad.png")


def test_fitting_label_map_passes() -> None:
    camvid = ClassSpec.named("camvid")
    check_label_map(LABELS, (7, 11), camvid)  # 0 to 10 and 11, the ignore index
    check_label_map(np.full((2, 2), 255, np.uint8), (2, 2), ClassSpec.named("synth"))


def test_label_map_of_another_size_is_refused() -> None:
    with pytest.raises(MediaError, match=r"m\.png: expected the frame's size 12x7 \(width x height\), found 11x7"):
        check_label_map(LABELS, (7, 12), source="m.png")


def test_unknown_label_values_are_refused_and_counted() -> None:
    labels = LABELS.copy()
    labels[0, :3] = (40, 40, 250)
    with pytest.raises(
        MediaError, match=r"m\.png: unknown label values 40, 250 in 3 pixels; .*classes 0 to 10"
    ) as caught:
        check_label_map(labels, (7, 11), ClassSpec.named("camvid"), source="m.png")
    assert "data set that the model was trained on" in caught.value.fix
    with pytest.raises(MediaError, match="unknown label values 255"):
        check_label_map(np.full((2, 2), 255, np.uint8), (2, 2), ClassSpec(("a",), ((0, 0, 0),), None))


def test_camvid_layout_is_found(tmp_path: Path) -> None:
    write_image(tmp_path / "val" / "a.png", np.zeros((4, 4, 3), np.uint8))
    assert find_labels(tmp_path / "val") is None
    write_image(tmp_path / "valannot" / "a.png", np.full((4, 4), 5, np.uint8))
    assert find_labels(tmp_path / "val") == tmp_path / "valannot"


def test_cityscapes_layout_is_found_and_ids_are_mapped(tmp_path: Path) -> None:
    images, truth = tmp_path / "leftImg8bit" / "val", tmp_path / "gtFine" / "val"
    for city in ("bonn", "aachen"):
        write_image(images / city / f"{city}_0_leftImg8bit.png", np.zeros((2, 3, 3), np.uint8))
        ids = np.array([[7, 26, 0], [33, 4, 8]], np.uint8)
        write_image(truth / city / f"{city}_0_gtFine_labelIds.png", ids)
        write_image(truth / city / f"{city}_0_gtFine_color.png", np.zeros((2, 3, 3), np.uint8))
        write_image(truth / city / f"{city}_0_gtFine_instanceIds.png", np.zeros((2, 3), np.uint16))
    train_ids = np.array([[0, 13, 255], [18, 255, 1]], np.uint8)
    write_image(truth / "bonn" / "bonn_0_gtFine_labelTrainIds.png", np.full((2, 3), 9, np.uint8))
    assert find_labels(images) == truth
    assert find_labels(images / "bonn") == truth / "bonn"
    aachen, bonn = open_clip(images, truth)
    np.testing.assert_array_equal(aachen.labels, train_ids)
    assert (bonn.labels == 9).all()  # train ids are preferred to ids
    assert [path.name for path in label_maps_in(truth / "aachen")] == ["aachen_0_gtFine_labelIds.png"]


def test_kitti_layout_is_found_and_ids_are_mapped(tmp_path: Path) -> None:
    image = write_image(tmp_path / "training" / "image_2" / "000000_10.png", np.zeros((1, 2, 3), np.uint8))
    write_image(tmp_path / "training" / "semantic" / "000000_10.png", np.array([[7, 6]], np.uint8))
    labels = find_labels(image.parent)
    assert labels == tmp_path / "training" / "semantic"
    (path,) = match_labels([image], labels)
    np.testing.assert_array_equal(load_labels(path), [[0, 255]])


@pytest.mark.shared
def test_camvid_label_maps_are_valid(shared: Path) -> None:
    maps = label_maps_in(shared / "data" / "camvid" / "valannot")
    assert len(maps) == 101
    for path in maps[::20]:
        check_label_map(load_labels(path), (360, 480), ClassSpec.named("camvid"), source=str(path))
