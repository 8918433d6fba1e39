"""Labels made visible: colours, blends, differences, a legend. All images are uint8 [H, W, 3], BGR."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from fcnopt.spec import ClassSpec

Image = NDArray[np.uint8]
Labels = NDArray[np.uint8]

_IGNORED = (0, 0, 0)  # of a label that is no class
_DIFFERENT = (60, 20, 255)  # BGR: a red that no photo of a street is full of
_BACKGROUND = (24, 24, 24)
_TEXT = (235, 235, 235)
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def colorize(labels: Labels, classes: ClassSpec) -> Image:
    """The palette's colours of a label map [H, W]; black where a label is no class."""
    table = np.full((256, 3), _IGNORED, np.uint8)
    table[: len(classes)] = np.asarray(classes.palette, np.uint8)[:, ::-1]
    return table[labels]


def blend(image: Image, labels: Labels, classes: ClassSpec, *, alpha: float = 0.5) -> Image:
    """The image with its labels' colours laid over it; `alpha` 1 shows the colours alone."""
    blended: Image = cv2.addWeighted(colorize(labels, classes), alpha, image, 1.0 - alpha, 0.0).astype(np.uint8)
    return blended


def difference(image: Image, labels: Labels, reference: Labels) -> Image:
    """The image in dim grey with the pixels whose labels differ in red."""
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) // 2 + 24
    shown: Image = np.repeat(grey[:, :, None], 3, axis=2)
    shown[labels != reference] = _DIFFERENT
    return shown


def legend(classes: ClassSpec, width: int) -> Image:
    """A strip with a swatch and the name of every class, in as many rows as `width` asks for."""
    scale, row, swatch, gap = 0.45, 22, 12, 14
    places, x, y = [], gap, 0
    for name in classes.names:
        text = name.encode("ascii", "replace").decode("ascii")
        (text_width, _), _ = cv2.getTextSize(text, _FONT, scale, 1)
        needed = swatch + 5 + text_width
        if x + needed > width and x > gap:
            x, y = gap, y + row
        places.append((x, y, text))
        x += needed + gap
    strip: Image = np.full((y + row + 4, width, 3), _BACKGROUND, np.uint8)
    for (left, top, text), (red, green, blue) in zip(places, classes.palette, strict=True):
        corner = (left, top + 7)
        cv2.rectangle(strip, corner, (left + swatch, top + 7 + swatch), (blue, green, red), cv2.FILLED)
        cv2.rectangle(strip, corner, (left + swatch, top + 7 + swatch), _TEXT, 1)
        cv2.putText(strip, text, (left + swatch + 5, top + 18), _FONT, scale, _TEXT, 1, cv2.LINE_AA)
    return strip
