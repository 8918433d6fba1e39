"""Train the embedded demo network: a narrow FCN-8s on synthetic street scenes that the demo does not use.

    python benchmarks/train_demo.py --steps 2200

The same steps and seed give the same network on the same kind of processor. Frames come from clips with seeds from
1000 on; the demo clip has seed 7 and its calibration frames seed 8, and neither is seen before the final score.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fcnopt.media import Frame
from fcnopt.media.synth import DEMO_SEED, FIRST_TRAINING_SEED, SceneOptions, SynthClip
from fcnopt.models.fcn import FCN, Architecture
from fcnopt.spec import NORMALIZATIONS, ClassSpec

CLASSES = ClassSpec.named("synth")
ARCHITECTURE = Architecture(
    finest_stride=8,
    classes=len(CLASSES),
    widths=(16, 32, 48, 64, 64),
    fc_widths=(128, 128),
    batch_norm=True,
)
OUT = Path(__file__).parents[1] / "fcnopt" / "assets" / "demo_fcn8s.pth"
MAX_BYTES = 4 << 20
CLIP_FRAMES = 60
# Thin and rare classes count more; in the order of the classes.
CLASS_WEIGHTS = {"marking": 2.0, "pavement": 1.2, "pedestrian": 2.5, "sign": 2.5}

Frames = list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]


@dataclass(frozen=True)
class Options:
    """What is trained, and for how long.

    Attributes:
        steps: Optimizer steps.
        minutes: Where given, as many steps as take about so long; printed, to be repeated with `steps`.
        clips: Streets that are rendered.
        frames: Frames of each of them.
        batch: Crops a step.
        crop: (height, width) of a crop.
        rate: Largest learning rate.
        seed: Of the initial weights and the order of crops.
        threads: That torch uses.
        out: Where the network goes.
    """

    steps: int = 2200
    minutes: float | None = None
    clips: int = 320
    frames: int = 5
    batch: int = 8
    crop: tuple[int, int] = (160, 256)
    rate: float = 4e-3
    seed: int = 0
    threads: int = 1
    out: Path = OUT


def render(options: Options) -> Frames:
    """Frames of many streets, spread over each drive."""
    pairs: Frames = []
    for number in range(options.clips):
        clip = SynthClip(SceneOptions(seed=FIRST_TRAINING_SEED + number, frames=CLIP_FRAMES))
        for index in np.linspace(0, CLIP_FRAMES - 1, options.frames).round():
            frame = clip.frame(int(index))
            assert frame.labels is not None  # noqa: S101 - a synthetic frame always has labels
            pairs.append((frame.image, frame.labels))
        if number % 50 == 49:
            print(f"rendered {number + 1} of {options.clips} clips", flush=True)
    return pairs


def augment(
    rng: np.random.Generator, image: NDArray[np.uint8], labels: NDArray[np.uint8], crop: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A random crop at a random scale, mirrored or not, in another light."""
    height, width = crop
    scale = float(np.exp(rng.uniform(np.log(0.85), np.log(1.5))))
    x = rng.uniform(0, max(0.0, scale * image.shape[1] - width))
    y = rng.uniform(0, max(0.0, scale * image.shape[0] - height))
    flip = -1.0 if rng.random() < 0.5 else 1.0
    warp = np.array([[flip * scale, 0, -x if flip > 0 else width - 1 + x], [0, scale, -y]])
    size = (width, height)
    warped = cv2.warpAffine(image, warp, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    truth = cv2.warpAffine(labels, warp, size, flags=cv2.INTER_NEAREST, borderValue=255)
    gain = rng.uniform(0.75, 1.3) * rng.uniform(0.94, 1.06, 3)
    curve = 255 * np.clip(np.arange(256)[:, None] / 255 * gain, 0, 1) ** rng.uniform(0.8, 1.25)
    lit = cv2.LUT(warped, curve.astype(np.uint8)[:, None, :])
    return np.asarray(lit, np.uint8), np.asarray(truth, np.uint8)


def to_input(images: NDArray[np.uint8]) -> Tensor:
    """BGR frames [N, H, W, 3] as the network's normalized input [N, 3, H, W]."""
    norm = NORMALIZATIONS["imagenet"]
    rgb = torch.from_numpy(np.ascontiguousarray(images[..., ::-1])).permute(0, 3, 1, 2).float()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (norm.mean, norm.std))
    return ((rgb * norm.scale - mean) / std).contiguous(memory_format=torch.channels_last)


def batches(frames: Frames, options: Options) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of crops; every frame once before any comes again."""
    rng = np.random.default_rng(options.seed)
    queue: list[int] = []
    while True:
        while len(queue) < options.batch:
            queue += rng.permutation(len(frames)).tolist()
        picked, queue = queue[: options.batch], queue[options.batch :]
        crops = [augment(rng, *frames[i], options.crop) for i in picked]
        images, labels = np.stack([c[0] for c in crops]), np.stack([c[1] for c in crops])
        yield to_input(images), torch.from_numpy(labels).long()


def train(model: FCN, frames: Frames, options: Options) -> None:
    """AdamW with a one-cycle learning rate, in bfloat16 where that is safe."""
    model.train()
    weights = torch.tensor([CLASS_WEIGHTS.get(name, 1.0) for name in CLASSES.names])
    loss_of = nn.CrossEntropyLoss(weights, ignore_index=255)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 1e-2}, {"params": rest, "weight_decay": 0.0}])
    source = batches(frames, options)

    def step() -> float:
        images, labels = next(source)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(images)
        loss: Tensor = loss_of(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        return loss.item()

    steps = options.steps if options.minutes is None else _steps_in(options.minutes, step, optimizer)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.rate, total_steps=steps, pct_start=0.15)
    started, mean = time.monotonic(), 0.0
    for number in range(1, steps + 1):
        mean += (step() - mean) * max(0.02, 1 / number)
        schedule.step()
        if number % 100 == 0:
            rate = number / (time.monotonic() - started)
            print(f"step {number}/{steps}  loss {mean:.4f}  {rate:.1f} steps/s", flush=True)


def _steps_in(minutes: float, step: Callable[[], float], optimizer: torch.optim.Optimizer) -> int:
    for group in optimizer.param_groups:
        group["lr"] = 1e-5
    started = time.monotonic()
    for _ in range(10):
        step()
    steps = int(minutes * 600 / (time.monotonic() - started))
    print(f"{steps} steps in about {minutes:g} minutes", flush=True)
    return steps


def score(model: FCN, clip: Iterable[Frame]) -> NDArray[np.float64]:
    """IoU of each class over labelled frames, 0 to 100, from one confusion matrix."""
    model.eval()
    count = len(CLASSES)
    confusion = np.zeros((count, count), np.int64)
    with torch.inference_mode():
        for frame in clip:
            assert frame.labels is not None  # noqa: S101 - a synthetic frame always has labels
            found = model(to_input(frame.image[None])).argmax(1)[0].numpy()
            confusion += np.bincount(
                (frame.labels.astype(np.int64) * count + found).ravel(), minlength=count * count
            ).reshape(count, count)
    hits = np.diag(confusion)
    return np.asarray(100 * hits / (confusion.sum(0) + confusion.sum(1) - hits), np.float64)


def save(model: FCN, path: Path) -> int:
    """Write the weights in half precision, batch-norm statistics in float; returns the size in bytes."""
    state = {}
    for name, value in model.state_dict().items():
        keep = "running" in name or not value.is_floating_point()
        state[name] = (value if keep else value.half()).contiguous().clone()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"arch": str(ARCHITECTURE), "state_dict": state}, path)
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise SystemExit(f"{path}: {size} bytes, more than the {MAX_BYTES} that may ship in the package")
    return size


def main() -> None:
    """Render, train, save, and score what was saved on the demo clip."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=Options.steps, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--minutes", type=float, help="as many steps as fit in about so many minutes")
    parser.add_argument("--clips", type=int, default=Options.clips, help="streets to render (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=Options.threads, help="torch threads (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=Options.seed)
    parser.add_argument("--out", type=Path, default=OUT, help="default: %(default)s")
    options = Options(**vars(parser.parse_args()))
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    torch.manual_seed(options.seed)
    model = FCN(ARCHITECTURE, dropout=0.1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    train(model, render(options), options)
    size = save(model, options.out)
    saved = torch.load(options.out, weights_only=True)["state_dict"]
    model.load_state_dict(saved)
    ious = score(model, SynthClip(SceneOptions(seed=DEMO_SEED)))
    for name, iou in zip(CLASSES.names, ious, strict=True):
        print(f"{name:>12}  {iou:5.1f}")
    print(f"{'mIoU':>12}  {ious.mean():5.1f}   on the demo clip; {options.out}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
