"""The embedded demo clip: a synthetic dash camera with exact labels and depth, a pure function of its options."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from fcnopt.errors import UsageError
from fcnopt.media.base import Clip, Frame
from fcnopt.media.synth import sensor
from fcnopt.media.synth.canvas import Canvas
from fcnopt.media.synth.renderer import Renderer, light_over_time
from fcnopt.media.synth.world import World
from fcnopt.media.writer import write_image, write_video

DEMO_SEED = 7
CALIBRATION_SEED = 8
FIRST_TRAINING_SEED = 1000


T = TypeVar("T", np.uint8, np.float32)


@dataclass(frozen=True)
class SceneOptions:
    """What is rendered.

    Attributes:
        seed: Of everything: the street, its people, the weather, the noise.
        frames: Length of the clip.
        height: Rows, at least 32.
        width: Columns, at least 32.
        fps: Frames per second.
        noise: Strength of the sensor noise, 0 to switch it off.
        blur: Whether the shutter blurs motion.
    """

    seed: int = DEMO_SEED
    frames: int = 90
    height: int = 192
    width: int = 320
    fps: float = 15.0
    noise: float = 1.0
    blur: bool = True

    def __post_init__(self) -> None:
        if self.seed < 0 or self.frames < 1 or min(self.height, self.width) < 32 or self.fps <= 0 or self.noise < 0:
            raise UsageError(
                f"synthetic scene: {self!r} is out of range",
                fix="use a seed >= 0, frames >= 1, a size of at least 32x32, fps > 0 and noise >= 0",
            )


class SynthClip(Clip):
    """A drive down a street, rendered as it is asked for; classes are `ClassSpec.named("synth")`.

    Args:
        options: What is rendered; the default is the demo clip.
    """

    labelled = True

    def __init__(self, options: SceneOptions | None = None) -> None:
        self.options = options or SceneOptions()
        self.name = f"synth-{self.options.seed}"
        self.size = (self.options.height, self.options.width)
        self.fps = self.options.fps
        self._renderer: Renderer | None = None
        self._noise: NDArray[np.float32] | None = None
        self._lens = sensor.vignette(self.size)

    def __len__(self) -> int:
        return self.options.frames

    def __iter__(self) -> Iterator[Frame]:
        for index in range(len(self)):
            yield self.frame(index)

    def frame(self, index: int) -> Frame:
        """One frame with its labels; the same for the same options and index, in whatever order it is asked for."""
        canvas = self._draw(index)
        time_s = index / self.fps
        options, renderer = self.options, self._scene()
        _, gain, temperature = light_over_time(options.seed, time_s)
        inverse_depth = _at_pixels(canvas.inverse_depth)
        small = cv2.resize(canvas.pixels, (options.width, options.height), interpolation=cv2.INTER_AREA)
        image = sensor.add_haze(np.asarray(small, np.uint8)[..., :3], inverse_depth, renderer.haze_bgr)
        drive = renderer.world.drive
        camera = drive.camera(time_s, self.size)
        if options.blur:
            image = sensor.motion_blur(image, inverse_depth, camera, drive.camera(time_s + 1 / self.fps, self.size))
        exposure = sensor.Exposure(
            gain, temperature + renderer.world.warmth, 3.2 * options.noise, renderer.haze_bgr,
            sensor.sun_pixel(camera, renderer.world.sun),
        )  # fmt: skip
        return Frame(
            index, time_s, sensor.develop(image, exposure, self._lens, self._grain(index)), _at_pixels(canvas.labels)
        )

    def depth(self, index: int) -> NDArray[np.float32]:
        """float32 [H, W]: metres along the optical axis at every pixel of frame `index`, inf in the sky."""
        inverse_depth = _at_pixels(self._draw(index).inverse_depth)
        with np.errstate(divide="ignore"):
            return (1 / inverse_depth).astype(np.float32)

    def write_video(self, path: str | Path) -> Path:
        """Write the clip as H.264 in high quality; returns `path`.

        Raises:
            MediaError: The file cannot be written.
        """
        return write_video(path, (frame.image for frame in self), self.fps)

    def write_images(self, folder: str | Path) -> Path:
        """Write one PNG a frame, `000000.png` and so on; returns `folder`.

        Raises:
            MediaError: A file cannot be written.
        """
        folder = Path(folder)
        for frame in self:
            write_image(folder / f"{frame.index:06d}.png", frame.image)
        return folder

    def write_labels(self, folder: str | Path) -> Path:
        """Write one 8-bit PNG of labels a frame, `000000.png` and so on; returns `folder`.

        Raises:
            MediaError: A file cannot be written.
        """
        folder = Path(folder)
        for index in range(len(self)):
            write_image(folder / f"{index:06d}.png", _at_pixels(self._draw(index).labels))
        return folder

    def _scene(self) -> Renderer:
        if self._renderer is None:
            options = self.options
            world = World.from_seed(options.seed, options.frames / options.fps)
            self._renderer = Renderer(world, options.seed, (2 * options.height, 2 * options.width))
        return self._renderer

    def _grain(self, index: int) -> NDArray[np.float32]:
        """Noise of one frame: a part of a larger sheet, from another place each time."""
        height, width = self.size
        if self._noise is None:
            sheet = np.random.default_rng([self.options.seed, 3])
            self._noise = sheet.standard_normal((2 * height, 2 * width, 3), np.float32)
        top, left = np.random.default_rng([self.options.seed, 4, index]).integers((height, width)).tolist()
        return self._noise[top : top + height, left : left + width]

    def _draw(self, index: int) -> Canvas:
        """The frame at twice its size: four samples a pixel for the colours, one of them for label and depth."""
        if not 0 <= index < len(self):
            raise UsageError(f"{self.name}: no frame {index}", fix=f"ask for a frame from 0 to {len(self) - 1}")
        time_s = index / self.fps
        renderer = self._scene()
        sun_level, _, _ = light_over_time(self.options.seed, time_s)
        return renderer.draw(renderer.world.drive.camera(time_s, renderer.size), time_s, sun_level)


def _at_pixels(plane: NDArray[T]) -> NDArray[T]:
    """The sample of each pixel that label and depth are taken from."""
    return np.ascontiguousarray(plane[1::2, 1::2])
