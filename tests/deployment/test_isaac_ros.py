"""Isaac ROS: parameters the nodes know, a launch description that can be built, conversions that check their input.

ROS is not here: its Python modules are stood in for by what the files use of them.
"""

from __future__ import annotations

import runpy
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fcnopt.deployment import deploy
from fcnopt.errors import UsageError
from tests.deployment.bundles import CLASSES, TENSORRT_ENGINE, make_bundle
from tests.deployment.ros import MODULES, Image, Node, Tensor, TensorList

# declare_parameter(...) in tensor_rt_node.cpp (4.3 to 4.5) and unet_decoder_node.cpp (4.4)
TENSOR_RT = {
    *("model_file_path", "engine_file_path", "custom_plugin_lib", "force_engine_update", "verbose"),
    *("input_tensor_names", "input_binding_names", "input_tensor_formats"),
    *("output_tensor_names", "output_binding_names", "output_tensor_formats"),
    *("max_workspace_size", "dla_core", "max_batch_size", "enable_fp16", "relaxed_dimension_check"),
}
DECODER = {"color_segmentation_mask_encoding", "color_palette", "network_output_type", "mask_width", "mask_height"}


@pytest.fixture
def ros(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, members in MODULES.items():
        module = types.ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def deployed(tmp_path: Path) -> Path:
    bundle = make_bundle(tmp_path, "tensorrt", "int8", outputs=("labels", "logits"))
    return deploy(bundle, to="isaac-ros", output=tmp_path / "out")


def parameters_of(folder: Path) -> dict[str, dict[str, Any]]:
    yaml = pytest.importorskip("ruamel.yaml", reason="no parser of YAML is installed")
    nodes = yaml.YAML(typ="safe").load(folder / "parameters.yaml")
    assert all(list(node) == ["ros__parameters"] for node in nodes.values())
    return {name: dict(node["ros__parameters"]) for name, node in nodes.items()}


def launched(folder: Path) -> list[Any]:
    description = runpy.run_path(str(folder / "segmentation.launch.py"))["generate_launch_description"]()
    return list(description.given[0])


def test_every_parameter_is_one_that_its_node_declares(deployed: Path) -> None:
    parameters = parameters_of(deployed)
    assert set(parameters) == {"tensor_rt_node", "unet_decoder_node", "fcnopt_adapter"}
    assert set(parameters["tensor_rt_node"]) <= TENSOR_RT
    assert set(parameters["unet_decoder_node"]) == DECODER


def test_the_engine_is_bound_whole_and_never_built_anew(deployed: Path) -> None:
    node = parameters_of(deployed)["tensor_rt_node"]
    assert node["force_engine_update"] is False
    assert node["model_file_path"] == "", "with a model the node would build an engine where it finds none"
    assert node["input_tensor_names"] == node["input_binding_names"] == ["frames"]
    assert node["output_tensor_names"] == node["output_binding_names"] == ["labels", "logits"]
    assert node["input_tensor_formats"] == node["output_tensor_formats"] == ["nitros_tensor_list_nhwc"]
    assert (deployed / "engine.plan").read_bytes() == TENSORRT_ENGINE


def test_the_decoder_gets_class_numbers_size_and_palette(deployed: Path) -> None:
    node = parameters_of(deployed)["unet_decoder_node"]
    assert node["network_output_type"] == "argmax"
    assert (node["mask_height"], node["mask_width"]) == (64, 96)
    assert node["color_palette"] == [r << 16 | g << 8 | b for r, g, b in CLASSES.palette]
    assert node["color_segmentation_mask_encoding"] in ("rgb8", "bgr8")


@pytest.mark.usefixtures("ros")
def test_the_launch_description_loads_both_nodes_with_their_parameters(deployed: Path) -> None:
    argument, container, adapter = launched(deployed)
    assert argument.given == ("image",)
    assert container.named["executable"] == "component_container_mt"
    engine, decoder = container.named["composable_node_descriptions"]
    assert engine.named["plugin"] == "nvidia::isaac_ros::dnn_inference::TensorRTNode"
    assert decoder.named["plugin"] == "nvidia::isaac_ros::unet::UNetDecoderNode"
    names = {node.named["name"] for node in (engine, decoder)} | {"fcnopt_adapter"}
    assert names == set(parameters_of(deployed)), "parameters are given by a node's name"
    file, last = engine.named["parameters"]
    assert Path(file) == deployed / "parameters.yaml"
    assert Path(last["engine_file_path"]).is_absolute()
    assert Path(last["engine_file_path"]).read_bytes() == TENSORRT_ENGINE
    command = adapter.named["cmd"]
    assert Path(command[1]) == deployed / "fcnopt_adapter.py"
    assert command[2:5] == ["--ros-args", "--params-file", str(deployed / "parameters.yaml")]
    assert command[6][0] == "image:="
    assert command[6][1].given == ("image",)


@pytest.mark.usefixtures("ros")
def test_each_topic_has_one_writer_and_one_reader(deployed: Path) -> None:
    node, _ = adapter_of(deployed)
    engine, decoder = launched(deployed)[1].named["composable_node_descriptions"]
    taken, given = (dict(engine.named["remappings"])[name] for name in ("tensor_pub", "tensor_sub"))
    assert list(node.published) == [taken, "labels", dict(decoder.named["remappings"])["tensor_sub"]]
    assert list(node.subscribed) == ["image", given]


def adapter_of(folder: Path) -> tuple[Any, dict[str, Any]]:
    """The adapter as it starts with the folder's parameters, and its module."""
    module = runpy.run_path(str(folder / "fcnopt_adapter.py"))
    Node.given = parameters_of(folder)["fcnopt_adapter"]
    return module["Adapter"](), module


def picture(frame: Any, encoding: str = "bgr8", padding: int = 0) -> Image:
    rows = np.pad(frame.reshape(frame.shape[0], -1), ((0, 0), (0, padding)), constant_values=9)
    height, width = frame.shape[:2]
    return Image(header="when", height=height, width=width, encoding=encoding, step=rows.shape[1], data=rows.tobytes())


@pytest.mark.usefixtures("ros")
@pytest.mark.parametrize(("encoding", "padding"), [("bgr8", 0), ("bgr8", 16), ("rgb8", 0), ("rgb8", 5)])
def test_an_image_becomes_the_tensor_that_the_engine_takes(encoding: str, padding: int, deployed: Path) -> None:
    node, _ = adapter_of(deployed)
    with np.load(deployed / "bundle" / "selftest.npz") as known:
        frame = known["frame"][0]
    sent = frame if encoding == "bgr8" else frame[:, :, ::-1].copy()
    node.subscribed["image"][1](picture(sent, encoding, padding))
    (given,) = node.published["frames_tensor"]
    (tensor,) = given.tensors
    assert given.header == "when"
    assert (tensor.name, tensor.data_type, tensor.shape.rank, tensor.shape.dims) == ("frames", 2, 4, [1, 64, 96, 3])
    assert tensor.strides == [64 * 96 * 3, 96 * 3, 3, 1]
    np.testing.assert_array_equal(np.frombuffer(tensor.data, np.uint8).reshape(64, 96, 3), frame)
    assert node.errors == []


@pytest.mark.usefixtures("ros")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 63}, "expected 64 x 96 bgr8 or rgb8, found 63 x 96"),
        ({"width": 64, "height": 96}, "found 96 x 64"),
        ({"encoding": "mono8"}, "found 64 x 96 mono8"),
        ({"encoding": "bgra8"}, "found 64 x 96 bgra8"),
        ({"step": 287}, "287 a row"),
        ({"data": b"short"}, "in 5 bytes"),
    ],
)
def test_an_image_that_does_not_fit_is_reported_and_never_reaches_the_engine(
    change: dict[str, Any], message: str, deployed: Path
) -> None:
    node, _ = adapter_of(deployed)
    image = picture(np.zeros((64, 96, 3), np.uint8))
    vars(image).update(change)
    node.subscribed["image"][1](image)
    assert node.published["frames_tensor"] == []
    assert len(node.errors) == 1
    assert message in node.errors[0]


@pytest.mark.usefixtures("ros")
def test_labels_become_an_image_and_what_the_decoder_takes(deployed: Path) -> None:
    node, module = adapter_of(deployed)
    with np.load(deployed / "bundle" / "selftest.npz") as known:
        labels = known["labels"]
    scores = module["to_tensor"]("logits", np.zeros((1, 3, 64, 96), np.float32), 9)
    answer = TensorList(header="when", tensors=[scores, module["to_tensor"]("labels", labels, 2)])
    node.subscribed["labels_tensor"][1](answer)
    (image,), (mask,) = node.published["labels"], node.published["mask_tensor"]
    assert (image.header, image.encoding, image.height, image.width, image.step) == ("when", "mono8", 64, 96, 96)
    np.testing.assert_array_equal(np.frombuffer(image.data, np.uint8).reshape(64, 96), labels[0])
    (tensor,) = mask.tensors
    assert (tensor.data_type, tensor.shape.dims) == (5, [1, 64, 96, 1]), "UNetDecoderNode: int32, NHWC"
    np.testing.assert_array_equal(np.frombuffer(tensor.data, np.int32).reshape(1, 64, 96), labels)
    assert tensor.strides == [64 * 96 * 4, 96 * 4, 4, 4]
    assert mask.header == "when"


@pytest.mark.usefixtures("ros")
@pytest.mark.parametrize(("name", "kind", "size"), [("other", 2, 6144), ("labels", 9, 6144), ("labels", 2, 6143)])
def test_an_answer_that_is_no_label_map_is_reported(name: str, kind: int, size: int, deployed: Path) -> None:
    node, _ = adapter_of(deployed)
    node.subscribed["labels_tensor"][1](
        TensorList(header="", tensors=[Tensor(name=name, data_type=kind, data=b"x" * size)])
    )
    assert node.published["labels"] == node.published["mask_tensor"] == []
    assert "expected 'labels', uint8, 6144 bytes" in node.errors[0]


@pytest.mark.parametrize(
    ("target", "dims", "message", "fix"),
    [
        ("openvino", (1, 64, 96), "engines of TensorRT alone", "--target tensorrt"),
        ("tensorrt-rtx:sm86", (1, 64, 96), "engines of TensorRT alone", "--target tensorrt"),
        ("tensorrt", (4, 64, 96), "computes 4 frames at once", "--batch 1"),
        ("tensorrt", (1, None, None), "any size", "--size"),
        ("tensorrt", (1, 63, 96), "even sizes alone", "--size 64x96"),
    ],
)
def test_what_the_nodes_could_not_run_is_refused(
    target: str, dims: tuple[int | None, int | None, int | None], message: str, fix: str, tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path, target, "fp32", dims=dims)
    with pytest.raises(UsageError, match=message) as caught:
        deploy(bundle, to="isaac-ros", output=tmp_path / "out")
    assert fix in caught.value.fix
    assert [path.name for path in tmp_path.iterdir()] == ["net"], "something was left"


def test_an_engine_for_any_number_of_frames_takes_one(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, "tensorrt", "fp16", dims=(None, 64, 96))
    folder = deploy(bundle, to="isaac-ros", output=tmp_path / "out")
    assert parameters_of(folder)["tensor_rt_node"]["max_batch_size"] == 1


def test_the_files_are_clean_code(deployed: Path) -> None:
    files = [deployed / "segmentation.launch.py", deployed / "fcnopt_adapter.py"]
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--no-cache",
        "--line-length=120",
        "--select=E,F,I,B,W,UP",
        *files,
    ]
    assert subprocess.run(command, check=False).returncode == 0
