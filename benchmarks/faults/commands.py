"""Commands that write something, each in a folder of its own, and what may be there when one of them was cut short."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import fcnopt
from faults.case import Fault
from fcnopt.bundle import MANIFEST, SIGNATURE, Bundle
from fcnopt.graph import io
from fcnopt.media import open_clip
from fcnopt.quantize.rangefile import RangeFile
from fcnopt.quantize.recipe import Recipe
from fcnopt.signing import new_key

NOTHING, WHOLE = "nothing there", "whole"
_OUT = "out/net.onnx"
_RUN_FRAMES = 8
_HIDDEN_ENDS = (".partial", ".old", ".tmp")
"""Of what a command that was killed leaves behind."""


@dataclass(frozen=True)
class Inputs:
    """What commands work on; copied into a folder for each of them.

    Attributes:
        checkpoint: The trained network.
        model: It, exported.
        bundle: It, built.
        clip: A video.
        images: Folder of frames to calibrate on.
        target: A CPU target.
        size: HEIGHTxWIDTH of its frames.
        precision: To build in.
    """

    checkpoint: Path
    model: Path
    bundle: Path
    clip: Path
    images: Path
    target: str = "onnxruntime"
    size: str = "64x96"
    precision: str = "int8"

    def to_dict(self) -> dict[str, str]:
        """Ready for JSON; `Inputs.of` is the way back."""
        return {name: str(value) for name, value in vars(self).items()}

    @classmethod
    def of(cls, data: dict[str, str]) -> Inputs:
        """What `to_dict` made."""
        words = ("target", "size", "precision")
        return cls(**{name: value if name in words else Path(value) for name, value in data.items()})  # type: ignore[arg-type]  # by name


@dataclass(frozen=True)
class Command:
    """A command of fcnopt's.

    Attributes:
        name: For the table.
        inputs: What it works on.
        words: Its arguments; run in the folder that was made ready.
        look: Says what is there: `NOTHING` or `WHOLE`; raises `Fault` for anything else.
        ready: Makes the folder ready.
        result: Below the folder; removed, the command begins anew.
    """

    name: str
    inputs: Inputs
    words: tuple[str, ...]
    look: Callable[[Path], str]
    ready: Callable[[Path], None]
    result: str

    def line(self) -> list[str]:
        """The whole command line."""
        return [sys.executable, "-m", "fcnopt.cli", *self.words]

    def forget(self, folder: Path) -> None:
        """Remove its result, and what it would begin from."""
        for path in (folder / self.result, folder / "calib", folder / ".slim.slimming"):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def leftovers(self, folder: Path) -> list[str]:
        """What killed runs left, below the folder."""
        hidden = (p for p in folder.rglob(".*") if p.suffix in _HIDDEN_ENDS or ".part" in p.suffixes)
        return sorted(str(p.relative_to(folder)) for p in hidden)


def looked(look: Callable[[Path], str], folder: Path) -> tuple[str, str]:
    """What is there, and what is wrong with it."""
    try:
        return look(folder), ""
    except Fault as fault:
        return "half", str(fault)
    except Exception as error:  # noqa: BLE001  (whatever it is, it does not load)
        return "half", f"{type(error).__name__}: {str(error)[:300]}"


def commands(inputs: Inputs) -> dict[str, Command]:
    """All of them, by name."""
    calibration = (
        ("--calibration", "images", "--method", "minmax", "--max-frames", "2") if inputs.precision == "int8" else ()
    )
    make = (
        "build",
        "net.onnx",
        "--precision",
        inputs.precision,
        "--target",
        inputs.target,
        "--name",
        "new",
        *calibration,
    )
    slim = (
        *("slim", "net.pth", "--frames", "images", "-o", "slim.pth", "--speedup", "1.05", "--minutes", "0.1"),
        *("--size", inputs.size, "--max-miou-drop", "100", "--target", inputs.target),
    )

    def one(name: str, words: tuple[str, ...], look: Callable[[Path], str], wanted: str, result: str) -> Command:
        ready = partial(_copied, inputs, wanted.split())
        return Command(name, inputs, words, look, ready, result)

    run = ("run", "clip.mp4", "--engine", "engines/net", "--overwrite", "--max-frames", str(_RUN_FRAMES), "-o")
    bench = (
        *("bench", "clip.mp4", "--engine", "engines/net", "--reference", "net.onnx", "--max-frames", "4"),
        *("--record", "--overlay", "overlay.mp4"),
    )
    every = (
        one("build", make, _build, "model images", "engines/new"),
        one("export", ("export", "net.pth", "-o", _OUT, "--size", inputs.size), _export, "checkpoint", _OUT),
        one("optimize", ("optimize", "net.onnx", "-o", _OUT), _export, "model", _OUT),
        one("slim", slim, _slim, "checkpoint images", "slim.pth"),
        one("sign", ("sign", "engines/net", "--key", "key"), _sign, "bundle key", f"engines/net/{SIGNATURE}"),
        one("deploy", ("deploy", "engines/net", "--to", "docker", "-o", "deployed"), _deploy, "bundle", "deployed"),
        one("run, video", (*run, "labels.mkv"), partial(_run, "labels.mkv"), "bundle clip", "labels.mkv"),
        one("run, PNGs", (*run, "labels"), partial(_run, "labels"), "bundle clip", "labels"),
        one("run, MCAP", (*run, "labels.mcap"), partial(_run, "labels.mcap"), "bundle clip", "labels.mcap"),
        one("bench --record --overlay", bench, _bench, "bundle clip model", "result.json"),
    )
    return {command.name: command for command in every}


def _copied(inputs: Inputs, wanted: Sequence[str], folder: Path) -> None:
    """Links to files that nobody changes; copies of what is changed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, source, place in (
        ("checkpoint", inputs.checkpoint, "net.pth"),
        ("model", inputs.model, "net.onnx"),
        ("clip", inputs.clip, "clip.mp4"),
        ("images", inputs.images, "images"),
    ):
        if name in wanted:
            (folder / place).symlink_to(source.resolve())
    if "bundle" in wanted:
        shutil.copytree(inputs.bundle, folder / "engines" / "net")
    if "key" in wanted:
        new_key(folder / "key")


def _build(folder: Path) -> str:
    for kept in (folder / "calib").glob("[!.]*.json"):
        if kept.name.endswith(".recipe.json"):
            Recipe.load(kept)
        else:
            RangeFile.load(kept)
    place = folder / "engines" / "new"
    if not place.exists():
        return NOTHING
    fcnopt.load(place).close()
    return WHOLE


def _export(folder: Path) -> str:
    path = folder / _OUT
    if not path.exists():
        return NOTHING
    if io.read_spec(io.load(path)) is None:
        raise Fault(f"{path.name} has no spec")
    return WHOLE


def _slim(folder: Path) -> str:
    import torch

    from fcnopt.models.checkpoint import load

    for state in (folder / ".slim.slimming").glob("[!.]*.pt"):
        torch.load(state, weights_only=True)
    if not (folder / "slim.pth").exists():
        return NOTHING
    load(folder / "slim.pth")
    return WHOLE


def _sign(folder: Path) -> str:
    bundle = folder / "engines" / "net"
    if not (bundle / SIGNATURE).exists():
        Bundle.read(bundle).verify()
        return NOTHING
    Bundle.read_trusted(bundle, [folder / "key.pub"]).verify()
    return WHOLE


def _deploy(folder: Path) -> str:
    place = folder / "deployed"
    if not place.exists():
        return NOTHING
    if not (place / "README.md").is_file():
        raise Fault(f"{place.name} has no README.md")
    (manifest,) = place.rglob(MANIFEST)
    Bundle.read(manifest.parent).verify()
    return WHOLE


def _run(place: str, folder: Path) -> str:
    output = folder / place
    if not output.exists():
        return NOTHING
    clip = open_clip(output, topic="/fcnopt/labels" if output.suffix == ".mcap" else None)
    if sum(1 for _ in clip.images()) != _RUN_FRAMES:
        raise Fault(f"{place} has {len(clip)} frames, not {_RUN_FRAMES}")
    return WHOLE


def _bench(folder: Path) -> str:
    bundle = Bundle.read(folder / "engines" / "net")
    bundle.verify()
    return WHOLE if bundle.manifest.measurements else NOTHING
