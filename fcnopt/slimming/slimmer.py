"""`slim`: from a checkpoint and frames to a narrow checkpoint that answers alike."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fcnopt.backends import Target, default_target
from fcnopt.backends.base import Progress
from fcnopt.bundle import sha256_of
from fcnopt.choices import read_classes, read_normalization
from fcnopt.errors import UsageError
from fcnopt.media.clips import Clip, open_clip
from fcnopt.media.labels import find_labels
from fcnopt.models.checkpoint import Loaded, load
from fcnopt.models.fcn import AT_ONCE_SCALES, FCN
from fcnopt.origin import ORIGIN_KEY, Origin
from fcnopt.slimming.cost import cost_model, measured_speedup, widths_of
from fcnopt.slimming.elimination import Elimination, LowRank, Moments, eliminate, low_rank
from fcnopt.slimming.frames import Frames, normalized, read_frames
from fcnopt.slimming.judging import Judge, Judged
from fcnopt.slimming.options import SlimOptions
from fcnopt.slimming.plan import Plan, fit_plan, make_plan
from fcnopt.slimming.recovery import Recovered, Recovery, pick_device, renormalize
from fcnopt.slimming.result import SlimResult
from fcnopt.slimming.state import Work, key_of, write_torch
from fcnopt.slimming.statistics import FC6_OUT, measure
from fcnopt.slimming.surgery import slimmed
from fcnopt.slimming.teacher import Teacher, ask
from fcnopt.spec import ClassSpec, FrameSpec, ModelSpec

_VERSION = 2
_TIMED = "as built"  # how networks are timed for a plan: plans that were chosen in another way are chosen anew


def slim(
    checkpoint: str | Path,
    frames: str | Path,
    output: str | Path | None = None,
    *,
    labels: str | Path | None = None,
    classes: str | Path | ClassSpec | None = None,
    options: SlimOptions | None = None,
    work: str | Path | None = None,
    say: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> SlimResult:
    """Make a network faster by taking channels out, and train back what that costs.

    Args:
        checkpoint: An FCN, as for `export`.
        frames: Folder of images, or a video: of the camera, and not those that accuracy is proved on afterwards.
        output: The checkpoint to write; None means engines/NAME-slim.pth.
        labels: Folder of label maps; None looks for one in the layout of known data sets, and does without.
        classes: A data set's name, a JSON file, or the spec; None guesses by their number.
        options: The rest.
        work: Folder of intermediate results, kept; None takes one beside the output, which goes when all is done. A
            run that was stopped goes on from it.
        say: Called with what is ahead, and where intermediate results are, once everything given is known to fit.
        progress: Called with the step and how much of it is done.

    Returns:
        The checkpoint, and whether it keeps the budget; it is written in both cases.

    Raises:
        CheckpointError: The checkpoint cannot be read, or is another network.
        UsageError: Options contradict the network or each other, or the speedup is out of reach.
        MediaError: Frames or label maps cannot be used.
        BackendError: Torch-Pruning is missing, or the runtime fails.
    """
    options = options or SlimOptions()
    report = progress or (lambda _step, _fraction: None)
    source = Path(checkpoint)
    path = _output_path(output, source)
    report("load the network", 0.0)
    loaded, network = _load(source, options)
    clip = open_clip(frames, labels or find_labels(Path(frames)), topic=options.topic)
    spec = _spec(loaded, network, clip, classes, options)
    target = Target.parse(options.target) if options.target else default_target()
    folder = Path(work) if work is not None else path.with_name(f".{path.stem}.slimming")
    if say is not None:
        say(_ahead(min(len(clip), options.max_frames), options, folder))
    report("read frames", 0.0)
    data = read_frames(clip, spec, limit=options.max_frames, holdout=options.holdout)
    run = _Run(network, source, spec, target, data, options, Work(folder), report)
    found = run.all()
    state = {name: tensor.contiguous().cpu() for name, tensor in found.network.state_dict().items()}
    claim = run.judge.claim(found.after, reference=str(source), clip=str(frames))
    origin = Origin(source.name, run.sha256, network.architecture.padding, _at_once(network), asdict(claim))
    write_torch(path, {"state_dict": state, ORIGIN_KEY: origin.to_json()})
    if work is None:
        shutil.rmtree(folder, ignore_errors=True)
    new = widths_of(found.network.architecture)
    return SlimResult(
        path,
        str(found.network.architecture),
        {name: (width, new[name]) for name, width in widths_of(network.architecture).items()},
        found.network.architecture.fc6_rank,
        (_weights(network), _weights(found.network)),
        found.speedup,
        found.measured,
        found.before,
        found.after,
        found.recovered,
        claim,
    )


@dataclass(frozen=True)
class _Found:
    network: FCN
    speedup: float
    measured: bool
    before: Judged
    after: Judged
    recovered: Recovered


class _Run:
    """One slimming, step by step; every step's result is kept in `work`."""

    def __init__(
        self,
        network: FCN,
        source: Path,
        spec: ModelSpec,
        target: Target,
        frames: Frames,
        options: SlimOptions,
        work: Work,
        report: Progress,
    ) -> None:
        self._device = pick_device(options.recovery)
        self._network = network.to(self._device)
        self._spec, self._target, self._frames, self._options = spec, target, frames, options
        self._work, self._report = work, report
        self.sha256 = sha256_of(source)
        architecture = network.architecture
        self._key = key_of(
            _VERSION, self.sha256, str(architecture), architecture.skip_scales, frames.sha256, spec.to_json()
        )
        # What is learned from frames belongs to the split too: of another one it may have seen what judges it.
        self._learned = key_of(self._key, frames.held_sha256)
        self.judge: Judge

    def all(self) -> _Found:
        """Every step."""
        self._report("ask the original", 0.0)
        norm = self._spec.frame.normalization
        teacher = ask(
            self._network,
            self._frames,
            norm,
            self._work,
            self._key,
            lambda done: self._report("ask the original", done),
        )
        self._report("judge the original", 0.0)
        self.judge = Judge(self._network, self._frames, self._spec, self._options.budget)
        moments = self._moments(teacher)
        self._report("order channels", 0.0)
        orders = {name: eliminate(entry) for name, entry in moments.items() if name != FC6_OUT}
        factors = low_rank(moments[FC6_OUT])
        plan, speedup, measured = self._plan(orders, moments, factors)
        narrow = slimmed(self._network, plan, orders, moments, factors).to(self._device)
        self._report("settle the narrow network", 0.0)
        renormalize(narrow, teacher, self._frames, self._spec, self._options.recovery)
        self._report("judge before recovery", 0.0)
        before = self.judge.judge(narrow)
        start = copy.deepcopy(narrow)
        key = key_of(self._learned, asdict(plan), asdict(self._options.recovery))
        training = Recovery(narrow, teacher, self._frames, self._spec, self._options.recovery, self._device)
        self._report("recover", 0.0)
        recovered = training.run(self._work, key, lambda done: self._report("recover", done))
        self._report("judge", 0.0)
        after = self.judge.judge(narrow)
        if after.miou < before.miou:  # too few steps to make good what the first ones spoil
            narrow, after = start, before
        return _Found(narrow, speedup, measured, before, after, recovered)

    def _moments(self, teacher: Teacher) -> dict[str, Moments]:
        count = min(self._options.statistics_frames, len(self._frames.train))
        key = key_of(self._learned, count)
        kept = self._work.load("statistics", key)
        if kept is None:
            self._report("measure channels", 0.0)
            begun = key_of(key, "begun", str(self._device.type))  # sums so far, until the result takes their place
            places = self._frames.train[np.linspace(0, len(self._frames.train) - 1, count).round().astype(int)]
            norm = self._spec.frame.normalization
            pixels = (normalized(self._frames.images[at : at + 1], norm).to(self._device) for at in places)
            found = measure(
                self._network,
                pixels,
                teacher.class_weights.to(self._device),
                progress=lambda done: self._report("measure channels", done / count),
                kept=self._work.load("statistics", begun),
                keep=lambda sums: self._work.save("statistics", begun, sums),
            )
            kept = {
                name: (torch.from_numpy(entry.second), torch.from_numpy(entry.curvature))
                for name, entry in found.items()
            }
            self._work.save("statistics", key, kept)
        return {name: Moments(second.numpy(), curvature.numpy()) for name, (second, curvature) in kept.items()}

    def _plan(
        self, orders: Mapping[str, Elimination], moments: Mapping[str, Moments], factors: LowRank
    ) -> tuple[Plan, float, bool]:
        """The plan, and its speedup; where the target runs here, widths are chosen until the measured one is met."""
        options = self._options
        multiple = options.multiple or (32 if self._target.form == "tensorrt" else 16)
        wanted = (options.speedup, multiple, str(self._target), _TIMED)
        key = key_of(self._learned, moments["fc6"].curvature.tolist(), *wanted)
        kept: dict[str, Any] | None = self._work.load("plan", key)
        if kept is not None:
            return Plan(**kept["plan"]), kept["speedup"], kept["measured"]
        self._report("time the network", 0.0)
        cpu = self._network.cpu()
        cost = cost_model(cpu, self._spec, self._target)
        losses = {name: order.loss for name, order in orders.items()}

        def plan_for(speedup: float) -> Plan:
            return make_plan(cost, losses, factors.loss, speedup=speedup, multiple=multiple)

        def measure(plan: Plan) -> float:
            return measured_speedup(cpu, slimmed(cpu, plan, orders, moments, factors), self._spec, self._target)

        if cost.measured:
            plan, speedup = fit_plan(options.speedup, plan_for, measure)
        else:
            plan = plan_for(options.speedup)
            speedup = plan.speedup
        self._network.to(self._device)
        self._work.save("plan", key, {"plan": asdict(plan), "speedup": speedup, "measured": cost.measured})
        return plan, speedup, cost.measured


def _ahead(frames: int, options: SlimOptions, folder: Path) -> str:
    """What takes time, and that a stop loses little of it."""
    recovery = options.recovery
    last = f"{recovery.minutes:g} minutes" if recovery.steps is None else f"{recovery.steps} steps"
    return (
        f"intermediate results are kept in {folder}/, from where a stopped run goes on; before the recovery of {last} "
        f"the network answers {frames} frames and its channels are measured"
    )


def _load(source: Path, options: SlimOptions) -> tuple[Loaded, FCN]:
    loaded = load(source, padding=options.padding, at_once=options.at_once)
    if loaded.origin is not None:
        raise UsageError(
            f"{source}: was slimmed already, from {loaded.origin.checkpoint}",
            fix="slim the original with a larger speedup",
        )
    assert isinstance(loaded.module, FCN)  # noqa: S101  (what `load` makes of FCN checkpoints)
    return loaded, loaded.module


def _spec(
    loaded: Loaded, network: FCN, clip: Clip, classes: str | Path | ClassSpec | None, options: SlimOptions
) -> ModelSpec:
    architecture = network.architecture
    known = ClassSpec.of_count(architecture.classes) if classes is None else read_classes(classes)
    if len(known) != architecture.classes:
        raise UsageError(
            f"the network tells {architecture.classes} classes apart, but {len(known)} class names were given",
            fix=f"give the {architecture.classes} classes it was trained for, in label order",
        )
    usual = "caffe" if architecture.padding == "caffe" else "imagenet"
    norm = read_normalization(options.normalize or usual)
    height, width = options.size or clip.size
    return ModelSpec(FrameSpec(height, width, "BGR", "stretch", norm), known, ("labels",), loaded.description)


def _output_path(output: str | Path | None, source: Path) -> Path:
    path = Path("engines", f"{source.stem}-slim.pth") if output is None else Path(output)
    if path.resolve() == source.resolve():
        raise UsageError(f"{path}: the result would replace the network itself", fix="give another output")
    if path.suffix not in (".pth", ".pt"):
        raise UsageError(f"{path}: a checkpoint's name ends in .pth", fix=f"use {path.with_suffix('.pth')}")
    return path


def _at_once(network: FCN) -> bool:
    return network.architecture.skip_scales == AT_ONCE_SCALES


def _weights(network: FCN) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
