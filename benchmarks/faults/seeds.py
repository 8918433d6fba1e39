"""Whole files of every kind that fcnopt reads, small ones: what hostile ones are made from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

import fcnopt
from fcnopt.builder import build
from fcnopt.bundle import Bundle
from fcnopt.exporter import ExportOptions, export
from fcnopt.media.synth import SceneOptions, SynthClip
from fcnopt.media.writer import write_video
from fcnopt.settings import BuildSettings
from fcnopt.slimming.state import write_torch

HEIGHT, WIDTH = 64, 96
FRAMES = 8  # of the clips
_PICTURES = 20  # what slimming takes at least, and some
SEEDS = (
    "net.pth", "net.safetensors", "old.pth", "state.pt", "net.onnx", "clip.mp4", "clip.mkv", "clip.avi", "picture.png",
    "picture.jpg", "picture.bmp", "picture.ppm", "picture.webp", "labels.png", "calib/net.json", "classes.json",
    "result.json", "engines/net/manifest.json", "engines/net/recipe.json", "engines/net/selftest.npz",
)  # fmt: skip
"""What `make_seeds` makes, below its folder; robot logs too where their packages are there."""


def small_network(path: Path) -> Path:
    """A checkpoint of an FCN-8s with few random weights."""
    import torch

    from fcnopt.models.fcn import FCN, Architecture

    torch.manual_seed(0)
    network = FCN(Architecture(8, 5, batch_norm=True, widths=(16, 16, 24, 24, 32), fc_widths=(32, 32))).eval()
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif tensor.dim() == 4 and not name.startswith("upscore"):
            tensor.normal_(std=(2 / tensor[0].numel()) ** 0.5)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), path)
    return path


def scene_images(count: int = FRAMES) -> Iterator[NDArray[np.uint8]]:
    """A rendered street, uint8 [64, 96, 3] each."""
    for frame in SynthClip(SceneOptions(seed=7, frames=count, height=HEIGHT, width=WIDTH)):
        yield frame.image


def make_seeds(folder: Path, *, precision: str = "int8", target: str = "onnxruntime") -> Path:
    """Write all of them, where they are not there yet; a bundle of the small network among them."""
    if (folder / "whole").exists():
        return folder
    checkpoint = small_network(folder / "net.pth")
    _checkpoints(folder, checkpoint)
    _pictures(folder)
    export(checkpoint, folder / "net.onnx", options=ExportOptions(size=(HEIGHT, WIDTH)))
    place = BuildSettings(folder=folder / "engines", calib=folder / "calib", name="net", method="minmax", max_frames=2)
    build(folder / "net.onnx", precision=precision, target=target, calibration=folder / "images", settings=place)  # type: ignore[arg-type]  # checked there
    bundle = folder / "engines" / "net"
    (folder / "classes.json").write_text(json.dumps(asdict(Bundle.read(bundle).manifest.spec.classes)), "utf-8")
    result = fcnopt.bench(folder / "clip.mp4", engines=bundle, reference=folder / "net.onnx", max_frames=4)
    (folder / "result.json").write_text(result.to_json(), "utf-8")
    (folder / "whole").touch()
    return folder


def _checkpoints(folder: Path, checkpoint: Path) -> None:
    import torch
    from safetensors.torch import save_file

    state = torch.load(checkpoint, weights_only=True)
    torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)
    save_file(dict(state), folder / "net.safetensors")
    write_torch(folder / "state.pt", {"key": "k", "content": {"step": 3, "weights": list(state.values())[:4]}})


def _pictures(folder: Path) -> None:
    images = list(scene_images(_PICTURES))
    (folder / "images").mkdir(exist_ok=True)
    for index, image in enumerate(images):
        cv2.imwrite(str(folder / "images" / f"{index}.png"), image)
    for suffix in ("png", "jpg", "bmp", "ppm", "webp"):
        cv2.imwrite(str(folder / f"picture.{suffix}"), images[0])
    cv2.imwrite(str(folder / "labels.png"), images[0][..., 0] % 5)
    del images[FRAMES:]
    write_video(folder / "clip.mp4", images, 10.0)
    remuxed(folder / "clip.mp4", folder / "clip.mkv")
    as_mjpeg(images, folder / "clip.avi")
    _logs(folder, images)


def remuxed(source: Path, target: Path) -> Path:
    """The same packets in another container."""
    import av

    with av.open(str(source)) as before, av.open(str(target), "w") as after:
        stream = after.add_stream_from_template(before.streams.video[0])
        for packet in before.demux(before.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                after.mux(packet)
    return target


def as_mjpeg(images: list[NDArray[np.uint8]], target: Path) -> Path:
    """Motion JPEG, as cheap cameras record it."""
    import av

    with av.open(str(target), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.height, stream.width, stream.pix_fmt = *images[0].shape[:2], "yuvj420p"
        for image in images:
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return target


def _logs(folder: Path, images: list[NDArray[np.uint8]]) -> None:
    """An MCAP file and a ROS 2 bag of JPEGs, where the packages that write them are installed."""
    try:
        from faults.logfiles import write_bag, write_mcap
    except ImportError:
        return
    write_mcap(folder / "clip.mcap", images)
    shutil.rmtree(folder / "bag", ignore_errors=True)
    write_bag(folder / "bag", images)
