"""A canvas that street scenes are painted on: an image and its label map, seen through a simple camera."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from math import exp

import cv2
import numpy as np
from numpy.typing import NDArray

Colour = Sequence[float] | NDArray[np.float64]  # RGB, 0 to 255
Position = tuple[float, float, float]  # metres: to the right of the camera, above the ground, ahead of the camera
Span = tuple[float, float]  # from, to; in metres

NEAREST = 0.9  # metres ahead; nothing is projected from nearer
SHARPNESS = 3  # painted this much larger than wanted, then averaged: no ragged edges
_HAZE_METRES = 160.0  # how far one sees
_FAR = 30000.0  # pixels; projections are clipped here, within what OpenCV's fillPoly takes


class Label(IntEnum):
    """The classes that are painted, by their Cityscapes train id."""

    ROAD = 0
    SIDEWALK = 1
    BUILDING = 2
    FENCE = 4
    POLE = 5
    TRAFFIC_LIGHT = 6
    TRAFFIC_SIGN = 7
    VEGETATION = 8
    TERRAIN = 9
    SKY = 10
    PERSON = 11
    RIDER = 12
    CAR = 13
    BUS = 15
    BICYCLE = 18


class Canvas:
    """Painted from far to near: what comes later hides what came before, in the image and in the labels alike.

    Args:
        rng: source of all that varies.
        height, width: of the finished scene, in pixels.
        haze: colour that far things fade to.
    """

    def __init__(self, rng: np.random.Generator, height: int, width: int, haze: Colour) -> None:
        self.rng, self.haze = rng, haze
        self.height, self.width = height * SHARPNESS, width * SHARPNESS
        self.image: NDArray[np.uint8] = np.zeros((self.height, self.width, 3), np.uint8)
        self.label: NDArray[np.uint8] = np.full((self.height, self.width), Label.SKY, np.uint8)
        self.focal = self.width * rng.uniform(0.62, 0.78)
        self.eye = rng.uniform(1.35, 1.8)  # metres above the ground
        self.centre = self.width * rng.uniform(0.42, 0.58)
        self.horizon = self.height * rng.uniform(0.40, 0.48)
        self.sun = float(rng.choice([-1.0, 1.0]))  # the side from which it shines
        self.shade = rng.uniform(0.62, 0.85)  # brightness of faces that look away from the sun

    def scale(self, z: float) -> float:
        """Pixels per metre at this distance."""
        return self.focal / max(z, NEAREST)

    def project(self, points: Sequence[Position]) -> list[tuple[int, int]]:
        """Pixel coordinates of points, clipped to what OpenCV takes."""
        # Plain floats: numpy's overhead on two to four points would be most of the time that a scene takes.
        pixels = []
        for x, y, z in points:
            k = self.scale(z)
            right, down = self.centre + k * x, self.horizon + k * (self.eye - y)
            pixels.append((round(min(max(right, -_FAR), _FAR)), round(min(max(down, -_FAR), _FAR))))
        return pixels

    def seen(self, colour: Colour, z: float) -> tuple[float, ...]:
        """A colour as it looks from this far away."""
        clear = exp(-max(z, 0.0) / _HAZE_METRES)
        return tuple(min(max(c * clear + h * (1 - clear), 0.0), 255.0) for c, h in zip(colour, self.haze))

    def polygon(self, points: Sequence[Position], colour: Colour, label: Label) -> None:
        """A flat polygon in space."""
        pixels = np.array(self.project(points), np.int32)
        cv2.fillPoly(self.image, [pixels], self.seen(colour, min(p[2] for p in points)))
        cv2.fillPoly(self.label, [pixels], int(label))

    def ground(self, x: Span, z: Span, colour: Colour, label: Label, y: float = 0) -> None:
        """A rectangle on the ground, or level above it."""
        self.polygon([(x[0], y, z[0]), (x[0], y, z[1]), (x[1], y, z[1]), (x[1], y, z[0])], colour, label)

    def upright(self, x: Span, y: Span, z: float, colour: Colour, label: Label) -> None:
        """A rectangle that faces the camera."""
        self.polygon([(x[0], y[0], z), (x[0], y[1], z), (x[1], y[1], z), (x[1], y[0], z)], colour, label)

    def along(self, x: float, y: Span, z: Span, colour: Colour, label: Label) -> None:
        """A rectangle that runs along the street."""
        self.polygon([(x, y[0], z[0]), (x, y[1], z[0]), (x, y[1], z[1]), (x, y[0], z[1])], colour, label)

    def box(self, x: Span, y: Span, z: Span, colour: Colour, label: Label) -> float:
        """A box: its side, its top and its near face, as far as they can be seen. Returns the visible side's x."""
        c = np.array(colour)
        side = x[0] if x[0] > 0 else x[1]
        if x[0] > 0 or x[1] < 0:
            self.along(side, y, z, c * (1.05 if -np.sign(side) == self.sun else self.shade), label)
        if y[1] < self.eye:
            self.ground(x, z, c * 1.15, label, y[1])
        self.upright(x, y, z[0], c * 0.9, label)
        return side

    def disc(self, at: Position, radii: Span, colour: Colour, label: Label, line: int = -1) -> None:
        """An ellipse that faces the camera; radii in metres. With the width of a line in pixels its outline alone."""
        (centre,), k = self.project([at]), self.scale(at[2])
        axes = max(1, round(radii[0] * k)), max(1, round(radii[1] * k))
        cv2.ellipse(self.image, centre, axes, 0, 0, 360, self.seen(colour, at[2]), line)
        cv2.ellipse(self.label, centre, axes, 0, 0, 360, int(label), line)

    def ring(self, at: Position, radius: float, width: float, colour: Colour, label: Label) -> None:
        """A circle that faces the camera, such as a wheel; radius and width of its line in metres."""
        self.disc(at, (radius, radius), colour, label, max(1, round(width * self.scale(at[2]))))

    def rod(self, a: Position, b: Position, width: float, colour: Colour, label: Label) -> None:
        """A straight rod, at least one finished pixel wide."""
        line = max(SHARPNESS, round(width * self.scale(a[2])))
        p, q = self.project([a, b])
        cv2.line(self.image, p, q, self.seen(colour, a[2]), line)
        cv2.line(self.label, p, q, int(label), line)

    def shadow(self, at: Position, radii: Span, strength: float = 0.45) -> None:
        """Darken the ground under a thing; labels stay."""
        (left, bottom), (right, top) = self.project(
            [(at[0] - radii[0], 0, at[2] - radii[1]), (at[0] + radii[0], 0, at[2] + radii[1])]
        )
        mask = np.zeros((self.height, self.width), np.uint8)
        size = (max(1, (right - left) // 2), max(1, (bottom - top) // 2))
        cv2.ellipse(mask, ((left + right) // 2, (top + bottom) // 2), size, 0, 0, 360, 255, -1)
        y0, y1 = max(0, top - 1), max(0, bottom + 2)
        part = self.image[y0:y1]
        dark = (part * (1 - strength)).astype(np.uint8)
        part[:] = np.where(mask[y0:y1, :, None] > 0, dark, part)
