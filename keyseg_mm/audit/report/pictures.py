"""Photos and label maps as base64 PNGs, so that a report is one file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

_WIDEST = 480  # pixels of a panel: a report is read, not measured
#: For classes beyond a data set's palette: hues that are far apart, at two brightnesses.
_SPARE = [[int(97 * i) % 256, int(57 * i + 80) % 256, int(151 * i + 160) % 256] for i in range(256)]


def png(labels: Tensor) -> str:
    """A label map (H, W) as a base64 PNG of one byte for each pixel."""
    return _encode(labels.clamp(0, 255).cpu().numpy().astype(np.uint8))


def unpng(text: str) -> NDArray[np.uint8]:
    """The label map of :func:`png`."""
    array = cv2.imdecode(np.frombuffer(base64.b64decode(text), np.uint8), cv2.IMREAD_UNCHANGED)
    return np.asarray(array, dtype=np.uint8)


def colour_png(picture: NDArray[Any], how: int = cv2.INTER_AREA) -> str:
    """An RGB picture (H, W, 3) as a base64 PNG, made no wider than a report shows it in one of OpenCV's ways."""
    height, width = picture.shape[:2]
    if width > _WIDEST:
        size = (_WIDEST, max(1, round(height * _WIDEST / width)))
        picture = cv2.resize(np.ascontiguousarray(picture), size, interpolation=how)
    return _encode(np.ascontiguousarray(picture[..., ::-1]))


def painted(text: str, palette: Sequence[Sequence[int]], ignore_index: int = 255) -> str:
    """A label map of :func:`png` in its classes' colours, as a base64 PNG; ignored pixels are black."""
    labels = unpng(text)
    colours = np.array([*palette, *_SPARE[len(palette) :]], dtype=np.uint8)[:256]
    if ignore_index < 256:
        colours[ignore_index] = 0
    return colour_png(colours[labels], cv2.INTER_NEAREST)


def _encode(array: NDArray[Any]) -> str:
    done, data = cv2.imencode('.png', array)
    if not done:
        raise RuntimeError('a picture could not be encoded as PNG')
    return base64.b64encode(data.tobytes()).decode('ascii')
