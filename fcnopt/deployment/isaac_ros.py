"""Isaac ROS: a launch file and parameters for its TensorRT node and U-Net decoder, and the adapter between them.

What the nodes take follows from their sources (isaac_ros_dnn_inference 4.3 to 4.5, isaac_ros_image_segmentation 4.4):

    camera -- Image --> adapter -- uint8 [1, H, W, 3] --> TensorRTNode -- uint8 [1, H, W] --> adapter
      adapter -- Image mono8 --> whoever wants labels
      adapter -- int32 [1, H, W, 1] --> UNetDecoderNode, `argmax` --> coloured Image

- Encoders (`DnnImageEncoderNode`, `ImageToTensorNode`) make float32 tensors only. The engine takes the camera's bytes.
- `TensorRTNode` takes a tensor by its name and checks neither type nor size: a wrong one would be read past its end.
  Uint8 outputs came with 4.3. It builds an engine of its own, with weak types, where `force_engine_update` is true (its
  default) or the engine's file is missing; without a model file it cannot.
- `UNetDecoderNode` takes class numbers as int32 or int64 [N, H, W, 1] of even sizes; scores, as softmax probabilities,
  in NHWC only. So none of an engine's outputs fits it as it is.
"""

from __future__ import annotations

import json
from pathlib import Path

from fcnopt.bundle import Bundle, write_text
from fcnopt.deployment.folder import render
from fcnopt.deployment.parts import Interface, copy_parts, described, interface_of, verified_graph, write_sums
from fcnopt.errors import UsageError

ENGINE = "engine.plan"
_TEMPLATES = Path(__file__).parent / "templates" / "isaac_ros"
_CODE = ("segmentation.launch.py", "fcnopt_adapter.py")


def write(bundle: Bundle, folder: Path) -> None:
    """Write the deployment into an empty folder.

    Raises:
        UsageError: The nodes cannot run this bundle.
        BundleError: The bundle is damaged.
    """
    if bundle.target.runtime != "tensorrt":
        raise UsageError(
            f"{bundle.path}: is for {bundle.target}, and isaac_ros_tensor_rt loads engines of TensorRT alone",
            fix="build one with --target tensorrt on the machine that shall run it",
        )
    interface = interface_of(bundle, verified_graph(bundle))
    height, width = _checked_size(bundle, interface)
    copy_parts(bundle, folder, {bundle.manifest.engine[0]: Path(ENGINE)})
    values = {
        **described(bundle),
        "interface": interface,
        "height": height,
        "width": width,
        "encoding": f"{bundle.manifest.spec.frame.color.lower()}8",
        "colors": [f"0x{r:02X}{g:02X}{b:02X}" for r, g, b in bundle.manifest.spec.classes.palette],
        "quoted": json.dumps,  # JSON's strings and lists are YAML's
        "files": _CODE,
        "engine": ENGINE,
    }
    for name in ("parameters.yaml", "README.md"):
        write_text(folder / name, render(_TEMPLATES / name, values))
    for name in _CODE:
        write_text(folder / name, (_TEMPLATES / f"{name}.in").read_text(encoding="utf-8"))
    write_sums(folder)


def _checked_size(bundle: Bundle, interface: Interface) -> tuple[int, int]:
    """Height and width of the engine's frames.

    Raises:
        UsageError: They are open or odd, or the engine wants several frames at once.
    """
    batch, height, width, _ = interface.frames.dims
    if height is None or width is None:
        raise UsageError(
            f"{bundle.path}: takes frames of any size, isaac_ros_tensor_rt runs engines of one size",
            fix="export the model again with --size HEIGHTxWIDTH",
        )
    if batch not in (1, None):
        raise UsageError(
            f"{bundle.path}: computes {batch} frames at once, and a camera's topic has one at a time",
            fix="build it again with --batch 1",
        )
    if height % 2 or width % 2:
        raise UsageError(
            f"{bundle.path}: frames are {height} x {width}, and UNetDecoderNode takes even sizes alone",
            fix=f"export the model again with --size {height + height % 2}x{width + width % 2}",
        )
    return height, width
