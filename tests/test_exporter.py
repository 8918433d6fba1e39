from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray

from fcnopt.errors import CheckpointError, GraphError, MediaError, UsageError
from fcnopt.exporter import ExportOptions, ExportResult, _default_size, export
from fcnopt.graph import io
from fcnopt.models.convert import to_onnx
from fcnopt.models.fcn import FCN
from fcnopt.models.sources import OnnxSource, Source
from fcnopt.models.verify import normalize, random_frames
from fcnopt.spec import NORMALIZATIONS, ClassSpec
from tests.models.networks import tiny


def saved(network: torch.nn.Module, folder: Path, name: str = "net.pth") -> Path:
    torch.save({"model_state_dict": network.state_dict()}, folder / name)
    return folder / name


def run(path: Any, frames: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    session = ort.InferenceSession(str(Path(path)), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, {"frames": frames}), strict=True))


def logits_of(network: torch.nn.Module, result: ExportResult, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    with torch.inference_mode():
        logits: NDArray[np.float32] = network(torch.from_numpy(normalize(frames, result.spec))).numpy()
    return logits


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An FCN-32s as anybody's ONNX file: quick to export, for tests of everything but the conversion."""
    model = to_onnx(tiny(32, batch_norm=True), (33, 47), dynamic=False, opset=18)
    return io.save(model, tmp_path_factory.mktemp("bare") / "bare.onnx")


def test_one_call_gives_a_file_with_everything_in_it(tmp_path: Path) -> None:
    network = tiny(batch_norm=True, classes=11)
    steps: list[str] = []
    options = ExportOptions(size=(33, 47), outputs=("labels", "confidence", "logits"))
    result = export(
        saved(network, tmp_path), tmp_path / "out.onnx", options=options, progress=lambda step, _: steps.append(step)
    )
    model = io.load(result.path)
    assert io.read_spec(model) == result.spec
    assert result.spec.classes == ClassSpec.named("camvid")
    assert (result.spec.frame.height, result.spec.frame.width) == (33, 47)
    assert result.architecture == "FCN-8s VGG16 BN, 11 classes, padding same"
    assert steps == ["load the network", "convert to ONNX", "verify", "save", "save"]
    frames = random_frames(1, 33, 47)
    out, want = run(result, frames), logits_of(network, result, frames)
    assert {name: array.shape for name, array in out.items()} == {
        "labels": (1, 33, 47),
        "confidence": (1, 33, 47),
        "logits": (1, 11, 33, 47),
    }
    assert np.abs(out["logits"] - want).max() < 1e-5 * np.abs(want).max()
    np.testing.assert_array_equal(out["labels"], want.argmax(1))
    assert Counter(node.op_type for node in model.graph.node)["BatchNormalization"] == 15
    assert "padding same, since the network has batch norm" in result.notes
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.pth", "out.onnx"]


def test_the_result_tells_what_was_done(bare: Path, tmp_path: Path) -> None:
    result = export(bare, tmp_path / "out.onnx")
    text = result.describe()
    assert f"wrote {tmp_path / 'out.onnx'}" in text
    assert "takes frames uint8 [1, 33, 47, 3] BGR, gives labels" in text
    assert "verified on 2 random frames: maximum relative error of the logits" in text
    assert "note: normalization imagenet" in text
    assert "note: class names are those of no data set, by their number, 5" in text
    assert result.verification.max_relative_error < 1e-5
    assert result.verification.equal_labels == 1.0


@pytest.mark.parametrize(("batch", "expected"), [("N", 1), (4, 4)])
def test_the_batch_that_the_result_tells_is_the_files(
    bare: Path, tmp_path: Path, batch: int | str, expected: int
) -> None:
    model = io.load(bare)
    for value in (*model.graph.input, *model.graph.output):
        dim = value.type.tensor_type.shape.dim[0]
        dim.Clear()
        dim.MergeFrom(onnx.TensorShapeProto.Dimension(**{"dim_param" if batch == "N" else "dim_value": batch}))
    result = export(io.save(model, tmp_path / "theirs.onnx"), tmp_path / "out.onnx")
    assert result.batch == expected
    assert f"takes frames uint8 [{expected}, 33, 47, 3] BGR" in result.describe()
    assert run(result, random_frames(expected, 33, 47))["labels"].shape == (expected, 33, 47)
    shape = onnx.load(result.path).graph.input[0].type.tensor_type.shape
    assert [dim.dim_value for dim in shape.dim] == [expected, 33, 47, 3]


@pytest.fixture(scope="module", params=["same", "caffe"])
def dynamic(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[FCN, ExportResult]:
    folder = tmp_path_factory.mktemp(request.param)
    network = tiny(batch_norm=request.param == "same", padding=request.param)
    options = ExportOptions(size=(40, 56), dynamic=True, padding=request.param, outputs=("labels", "logits"))
    return network, export(saved(network, folder), folder / "out.onnx", options=options)


@pytest.mark.parametrize("shape", [(1, 33, 47), (2, 97, 131), (1, 360, 480), (3, 32, 64), (1, 1, 5)])
def test_a_dynamic_export_takes_any_size(dynamic: tuple[FCN, ExportResult], shape: tuple[int, int, int]) -> None:
    network, result = dynamic
    frames = random_frames(*shape)
    out, want = run(result, frames), logits_of(network, result, frames)
    assert np.abs(out["logits"] - want).max() < 1e-5 * np.abs(want).max()
    assert (out["labels"] == want.argmax(1)).mean() > 0.999


def test_a_dynamic_export_says_so(dynamic: tuple[FCN, ExportResult]) -> None:
    _, result = dynamic
    assert (result.spec.frame.height, result.spec.frame.width) == (None, None)
    assert "uint8 [N, H, W, 3]" in result.describe()
    shape = onnx.load(result.path).graph.output[0].type.tensor_type.shape
    assert [dim.dim_param for dim in shape.dim] == ["N", "H", "W"]


def assert_parses(result: ExportResult) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    logger = trt.Logger(trt.Logger.ERROR)
    definition = trt.Builder(logger).create_network(0)
    parser = trt.OnnxParser(definition, logger)
    parsed = parser.parse(result.path.read_bytes())
    assert parsed, [parser.get_error(i).desc() for i in range(parser.num_errors)]
    outputs = [definition.get_output(i) for i in range(definition.num_outputs)]
    assert [output.name for output in outputs] == list(result.spec.outputs)
    assert outputs[0].dtype == trt.uint8


def test_tensorrt_rtx_parses_a_dynamic_export(dynamic: tuple[FCN, ExportResult]) -> None:
    assert_parses(dynamic[1])


def test_tensorrt_rtx_parses_a_static_export(tmp_path: Path) -> None:
    options = ExportOptions(size=(33, 47), padding="caffe", outputs=("labels", "confidence", "logits"))
    result = export(saved(tiny(), tmp_path), tmp_path / "out.onnx", options=options)
    assert_parses(result)
    assert result.spec.frame.normalization == NORMALIZATIONS["caffe"]
    assert "normalization caffe, the usual one for this network" in result.notes


def test_tensorrt_rtx_parses_a_network_with_same_padding(bare: Path, tmp_path: Path) -> None:
    options = ExportOptions(outputs=("labels", "confidence"))
    assert_parses(export(bare, tmp_path / "out.onnx", options=options))


def test_the_spec_is_what_was_asked_for(bare: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text(json.dumps({"names": list("abcde")}))
    options = ExportOptions.parse(
        size="33x47", outputs="labels,logits", normalize="unit", color="RGB", resize="letterbox"
    )
    result = export(bare, tmp_path / "out.onnx", classes=tmp_path / "classes.json", options=options)
    frame = result.spec.frame
    assert (frame.color, frame.resize, frame.normalization) == ("RGB", "letterbox", NORMALIZATIONS["unit"])
    assert result.spec.classes.names == tuple("abcde")
    assert result.spec.outputs == ("labels", "logits")
    assert result.notes == ()


def test_given_frames_are_verified_on(bare: Path, tmp_path: Path) -> None:
    result = export(bare, tmp_path / "out.onnx", frames=random_frames(3, 33, 47))
    assert (result.verification.frames, result.verification.count) == ("given frames", 3)
    with pytest.raises(UsageError, match=r"frames: uint8 \[1, 40, 47, 3\], expected uint8 \[N, 33, 47, 3\]"):
        export(bare, tmp_path / "out.onnx", frames=random_frames(1, 40, 47))


def test_a_folder_of_pictures_is_verified_on_in_the_models_size(bare: Path, tmp_path: Path) -> None:
    import cv2

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index, frame in enumerate(random_frames(10, 40, 60)):
        assert cv2.imwrite(str(pictures / f"{index}.png"), frame)
    result = export(bare, tmp_path / "out.onnx", frames=pictures)
    assert str(result.verification).startswith("8 frames of pictures: ")
    assert result.verification.equal_labels == 1.0
    with pytest.raises(MediaError, match="nowhere"):
        export(bare, tmp_path / "out.onnx", frames=tmp_path / "nowhere")


def test_the_default_output_is_in_engines(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = export(bare)
    assert result.path == Path("engines/bare.onnx")
    assert result.path.is_file()


def test_a_model_that_disagrees_is_not_written(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file gets other weights than the network has, as a wrong conversion would give it."""

    def wrong(self: OnnxSource, *_: Any) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "fc6.weight")
        values = onnx.numpy_helper.to_array(tensor) * np.float32(1.01)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, "fc6.weight"))
        return model

    monkeypatch.setattr(OnnxSource, "convert", wrong)
    with pytest.raises(GraphError, match="no file was written"):
        export(bare, tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


USER_CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, n_class=3):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, n_class, 1))

    def forward(self, x):
        return {"out": self.net(x)}

class Small(Net):
    def forward(self, x):
        return self.net(x)[:, :, ::2, ::2]

class Picky(Net):
    def forward(self, x):
        return self.net(x).reshape(x.shape[0], -1, x.shape[2] // 8 * 8, x.shape[3])
"""


@pytest.fixture
def user_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    name = "user_" + "".join(c if c.isalnum() else "_" for c in request.node.name)
    (tmp_path / f"{name}.py").write_text(USER_CODE)
    monkeypatch.chdir(tmp_path)
    return name


def test_any_module_can_be_exported(user_net: str, tmp_path: Path) -> None:
    from fcnopt.models.user import load_user_module

    network = load_user_module(f"{user_net}:Net", classes=4).module
    options = ExportOptions(size=(24, 40), module=f"{user_net}:Net", outputs=("labels", "logits"))
    result = export(saved(network, tmp_path), "out.onnx", classes=ClassSpec.of_count(4), options=options)
    frames = random_frames(1, 24, 40)
    with torch.inference_mode():
        want = network(torch.from_numpy(normalize(frames, result.spec)))["out"].numpy()
    np.testing.assert_allclose(run(result, frames)["logits"], want, rtol=0, atol=1e-5 * np.abs(want).max())
    assert result.architecture == f"{user_net}:Net"


def test_any_module_can_be_exported_dynamically(user_net: str) -> None:
    options = ExportOptions(size=(24, 40), module=f"{user_net}:Net", dynamic=True)
    result = export(None, options=options)
    assert result.path == Path("engines/Net.onnx")
    assert len(result.spec.classes) == 3
    assert run(result, random_frames(2, 17, 9))["labels"].shape == (2, 17, 9)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("Small", (24, 40), r"gives \[1, 3, 12, 20\] for an input of \[1, 3, 24, 40\]"),
        ("Picky", (33, 40), r"Picky fails on an input of \[1, 3, 33, 40\]"),
    ],
)
def test_a_module_with_other_logits_is_refused(user_net: str, name: str, size: Any, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        export(None, options=ExportOptions(size=size, module=f"{user_net}:{name}"))


def test_somebody_elses_onnx_gets_everything_put_in(bare: Path, tmp_path: Path) -> None:
    options = ExportOptions(normalize="unit", outputs=("labels", "logits"))
    result = export(bare, tmp_path / "out.onnx", options=options)
    assert (result.spec.frame.height, result.spec.frame.width) == (33, 47)
    frames = random_frames(1, 33, 47)
    want = logits_of(tiny(32, batch_norm=True), result, frames)
    np.testing.assert_allclose(run(result, frames)["logits"], want, rtol=0, atol=1e-5 * np.abs(want).max())
    with pytest.raises(UsageError, match="was exported by fcnopt already"):
        export(result.path, tmp_path / "again.onnx")
    with pytest.raises(UsageError, match="takes 33 x 47 only, it cannot be made dynamic"):
        export(bare, tmp_path / "again.onnx", options=ExportOptions(dynamic=True))
    with pytest.raises(UsageError, match="would replace the network itself"):
        export(bare, bare)
    with pytest.raises(UsageError, match="needs no module, padding or at_once"):
        export(bare, options=ExportOptions(padding="same"))
    assert [p.name for p in tmp_path.iterdir()] == ["out.onnx"]


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"size": "360"}, "'360' is not HEIGHTxWIDTH"),
        ({"size": "0x480"}, "is not \\(height, width\\)"),
        ({"size": "-3x480"}, "is not HEIGHTxWIDTH"),
        ({"padding": "valid"}, "padding: 'valid' is unknown"),
        ({"normalize": "imagnet"}, "normalize: 'imagnet'"),
        ({"color": "GRB"}, r"frame\.color: 'GRB'"),
        ({"resize": "crop"}, r"frame\.resize: 'crop'"),
        ({"outputs": "labels,depth"}, "outputs: 'depth'"),
        ({"outputs": "logits"}, "must name labels"),
        ({"opset": 9}, "opset: 9 is not supported"),
        ({"module": "a:B", "padding": "same"}, "not of a:B"),
    ],
)
def test_wrong_options_are_usage_errors(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ExportOptions.parse(**choices)


def test_a_wrong_class_count_is_a_usage_error(bare: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tells 5 classes apart, but 11 class names were given") as error:
        export(bare, tmp_path / "out.onnx", classes="camvid")
    assert error.value.exit_code == 2
    assert not (tmp_path / "out.onnx").exists()


def test_an_output_must_be_an_onnx_file(bare: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"ends in \.onnx"):
        export(bare, tmp_path / "out.engine")


def test_an_output_that_cannot_be_written_leaves_nothing(bare: Path, tmp_path: Path) -> None:
    (tmp_path / "out.onnx").mkdir()
    with pytest.raises(GraphError, match="cannot be written"):
        export(bare, tmp_path / "out.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["out.onnx"]
    assert list((tmp_path / "out.onnx").iterdir()) == []


@pytest.mark.parametrize(
    ("classes", "size"), [("camvid", (360, 480)), ("cityscapes", (512, 1024)), ("voc", (480, 640)), (None, (480, 640))]
)
def test_the_default_size_is_the_data_sets(classes: str | None, size: tuple[int, int]) -> None:
    class Known(Source):
        classes = 7

        def run(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
            return pixels

        def convert(self, size: tuple[int, int], dynamic: bool, opset: int) -> onnx.ModelProto:
            raise NotImplementedError

    spec = None if classes is None else ClassSpec.named(classes)
    assert _default_size(Known(), spec) == size


def test_without_a_checkpoint_the_demo_network_is_exported(tmp_path: Path) -> None:
    result = export(None, tmp_path / "demo.onnx")
    assert result.spec.classes == ClassSpec.named("synth")
    assert (result.spec.frame.height, result.spec.frame.width) == (192, 320)


def test_an_incomplete_package_says_how_to_get_the_demo_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fcnopt.models.sources.resources.files", lambda _: tmp_path)
    with pytest.raises(CheckpointError, match="the embedded demo network is missing") as error:
        export(None, tmp_path / "demo.onnx")
    assert "benchmarks/train_demo.py" in error.value.fix


@pytest.mark.shared
def test_the_real_network_labels_real_frames(shared: Path, tmp_path: Path) -> None:
    import cv2

    folder = shared / "data" / "camvid"
    images = sorted((folder / "val").glob("*.png"))[::60]
    assert images
    frames = np.stack([cv2.imread(str(path)) for path in images])
    result = export(shared / "models" / "fcn8s_vgg16bn_camvid.pth", tmp_path / "net.onnx", frames=frames[:1])
    assert result.spec.frame.height == 360
    session = ort.InferenceSession(str(result.path), providers=["CPUExecutionProvider"])
    labels = np.concatenate([session.run(["labels"], {"frames": frame[None]})[0] for frame in frames])
    truth = np.stack([cv2.imread(str(folder / "valannot" / path.name), cv2.IMREAD_GRAYSCALE) for path in images])
    known = truth != result.spec.classes.ignore_index
    assert (labels == truth)[known].mean() > 0.9


def test_the_demo_network_exports_with_open_axes(tmp_path: Path) -> None:
    result = export(None, tmp_path / "demo.onnx", options=ExportOptions(dynamic=True))
    assert (result.spec.frame.height, result.spec.frame.width) == (None, None)
    assert result.verification.equal_labels > 0.999
