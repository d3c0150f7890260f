"""What street scenes are painted with: a canvas seen through a simple camera, and the things in a street.

Each thing is painted at ``x`` metres to the right of the camera and ``z`` metres ahead. Whatever does not matter to
its class is drawn at random, colours above all.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from math import copysign, exp

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Colour = Sequence[float] | NDArray[np.float64]  # RGB, 0 to 255
Position = tuple[float, float, float]  # metres: to the right of the camera, above the ground, ahead of the camera
Span = tuple[float, float]  # from, to; in metres

SHARPNESS = 3  # painted this much larger than wanted, then averaged: no ragged edges
NEAR = 1.0  # metres; nothing is projected from nearer
_SIGHT = 160.0  # metres; what is farther off is mostly haze
_BLACK, _GLASS, _METAL, WHITE = (20, 20, 22), (46, 56, 68), (104, 106, 108), (238, 238, 232)
_RED, _AMBER, _GREEN, _BLUE = (226, 34, 36), (250, 200, 50), (40, 216, 110), (30, 84, 190)


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
    """An image and its label map, seen through a camera; painted from far to near, later things hide earlier ones."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int], above: Colour, haze: Colour) -> None:
        height, width = (SHARPNESS * side for side in size)
        self.rng, self.haze = rng, haze
        self.focal, self.eye = width * rng.uniform(0.62, 0.78), rng.uniform(1.35, 1.8)  # pixels; metres above ground
        self.centre, self.horizon = width * rng.uniform(0.42, 0.58), height * rng.uniform(0.40, 0.48)
        fade = np.clip(np.arange(height) / self.horizon, 0, 1)[:, None, None]
        clouds = cv2.resize(rng.random((6, 8)), (width, height), interpolation=cv2.INTER_CUBIC)
        cover = np.clip(clouds * 2.2 - rng.uniform(0.9, 1.6), 0, 0.8)[..., None]
        sky = np.array(above) * (1 - fade) + np.array(haze) * fade
        self.image: Image = (sky * (1 - cover) + 1.1 * np.mean(haze) * cover).astype(np.uint8)
        self.label: Image = np.full((height, width), Label.SKY, np.uint8)

    def pixel(self, at: Position) -> tuple[int, int]:
        """Where a point is seen, kept within what OpenCV takes."""
        scale = self.focal / max(at[2], NEAR)
        x, y = self.centre + scale * at[0], self.horizon + scale * (self.eye - at[1])
        return round(min(max(x, -3e4), 3e4)), round(min(max(y, -3e4), 3e4))

    def length(self, metres: float, z: float) -> int:
        """Pixels of a length that far away, at least one of the finished scene."""
        return max(SHARPNESS, round(metres * self.focal / max(z, NEAR)))

    def seen(self, colour: Colour, z: float) -> list[float]:
        """A colour as it looks from that far away."""
        clear = exp(-z / _SIGHT)
        return [min(max(c * clear + h * (1 - clear), 0), 255) for c, h in zip(colour, self.haze)]

    def polygon(self, points: Sequence[Position], colour: Colour, label: Label | None) -> None:
        """A flat polygon in space; without a label it is a shadow, and labels stay."""
        pixels = np.array([self.pixel(p) for p in points], np.int32)
        cv2.fillPoly(self.image, [pixels], self.seen(colour, points[0][2]))
        if label is not None:
            cv2.fillPoly(self.label, [pixels], int(label))

    def ground(self, x: Span, z: Span, colour: Colour, label: Label | None, y: float = 0) -> None:
        """A rectangle on the ground, or level above it."""
        self.polygon([(x[0], y, z[0]), (x[0], y, z[1]), (x[1], y, z[1]), (x[1], y, z[0])], colour, label)

    def front(self, x: Span, y: Span, z: float, colour: Colour, label: Label) -> None:
        """A rectangle that faces the camera."""
        self.polygon([(x[0], y[0], z), (x[0], y[1], z), (x[1], y[1], z), (x[1], y[0], z)], colour, label)

    def side(self, x: float, y: Span, z: Span, colour: Colour, label: Label) -> None:
        """An upright rectangle that runs along the street."""
        self.polygon([(x, y[0], z[0]), (x, y[1], z[0]), (x, y[1], z[1]), (x, y[0], z[1])], colour, label)

    def box(self, x: Span, y: Span, z: Span, colour: Colour, label: Label) -> float:
        """A box: its side, its top and its front, as far as they can be seen. Returns the visible side's x."""
        paint = np.array(colour)
        side = x[0] if x[0] > 0 else x[1]
        if x[0] > 0 or x[1] < 0:
            self.side(side, y, z, paint * 0.75, label)
        if y[1] < self.eye:
            self.ground(x, z, paint * 1.15, label, y[1])
        self.front(x, y, z[0], paint, label)
        return side

    def disc(self, at: Position, radius: float, colour: Colour, label: Label, stretch: float = 1) -> None:
        """An ellipse that faces the camera, stretched upwards."""
        axes = self.length(radius, at[2]), self.length(radius * stretch, at[2])
        cv2.ellipse(self.image, self.pixel(at), axes, 0, 0, 360, self.seen(colour, at[2]), -1)
        cv2.ellipse(self.label, self.pixel(at), axes, 0, 0, 360, int(label), -1)

    def rod(self, a: Position, b: Position, width: float, colour: Colour, label: Label) -> None:
        """A straight rod."""
        line = self.length(width, a[2])
        cv2.line(self.image, self.pixel(a), self.pixel(b), self.seen(colour, a[2]), line)
        cv2.line(self.label, self.pixel(a), self.pixel(b), int(label), line)

    def colour(self, tint: float = 35) -> NDArray[np.float64]:
        """Some colour, the more colourful the larger the tint."""
        drawn: NDArray[np.float64] = np.clip(self.rng.uniform(25, 230) + self.rng.normal(0, tint, 3), 8, 245)
        return drawn


def building(c: Canvas, x: float, z: Span) -> None:
    height, storey, wall = c.rng.uniform(6, 19), c.rng.uniform(2.7, 3.4), c.colour(20)
    glass, every = np.array(_GLASS) + c.rng.uniform(0, 110), c.rng.uniform(2.2, 3.6)
    outer = x + copysign(12, x)
    c.box((min(x, outer), max(x, outer)), (0, height), z, wall, Label.BUILDING)
    for y in np.arange(0.9, height - 1.8, storey):
        for left in np.arange(z[0] + 0.8, z[1] - 1.2, every):
            c.side(x, (y, y + storey * 0.55), (left, left + 1.2), glass, Label.BUILDING)
        for offset in (1, 4.4, 7.8):
            middle = x + copysign(offset + 0.7, x)
            c.front((middle - 0.7, middle + 0.7), (y, y + storey * 0.55), z[0], glass, Label.BUILDING)


def tree(c: Canvas, x: float, z: float) -> None:
    height, radius = c.rng.uniform(4, 8.5), c.rng.uniform(1.2, 2.3)
    leaves = (62, 98, 44) + c.rng.normal(0, 18, 3)
    c.rod((x, 0, z), (x, height * 0.6, z), 0.28, (84, 66, 50), Label.VEGETATION)  # the trunk too, as in Cityscapes
    for light in np.linspace(0.6, 1.3, 24 if z < 40 else 8):
        dx, dy = c.rng.normal(0, radius * 0.5, 2)
        c.disc((x + dx, height - radius + dy, z), radius * c.rng.uniform(0.25, 0.5), leaves * light, Label.VEGETATION)


def lamp(c: Canvas, x: float, z: float) -> None:
    c.rod((x, 0, z), (x, 7, z), 0.2, _METAL, Label.POLE)
    c.rod((x, 7, z), (x - copysign(1.6, x), 7.2, z), 0.16, _METAL, Label.POLE)


def sign(c: Canvas, x: float, z: float) -> None:
    y, r = c.rng.uniform(2.4, 3.2), c.rng.uniform(0.42, 0.6)
    c.rod((x, 0, z), (x, y, z), 0.13, _METAL, Label.POLE)
    shape = c.rng.integers(3)
    corners = (3, 4, 16)[shape]
    turns = (np.arange(corners) + (corners == 4) / 2) / corners * 2 * np.pi  # a square stands on its side
    for size, colour in ((1.2 * r, (_RED, _BLUE, _RED)[shape]), (0.7 * r, (_AMBER, WHITE, WHITE)[shape])):
        edge = [(x + size * np.sin(turn), y + size * np.cos(turn), z) for turn in turns]
        c.polygon(edge, colour, Label.TRAFFIC_SIGN)


def traffic_light(c: Canvas, x: float, z: float) -> None:
    y, on = c.rng.uniform(2.5, 3.2), c.rng.integers(3)
    c.rod((x, 0, z), (x, y, z), 0.16, _METAL, Label.POLE)
    c.front((x - 0.42, x + 0.42), (y - 0.2, y + 1.5), z, _BLACK, Label.TRAFFIC_LIGHT)
    for i, colour in enumerate((_GREEN, _AMBER, _RED)):
        shown = np.array(colour) * (1.0 if i == on else 0.28)
        c.disc((x, y + 0.15 + 0.47 * i, z), 0.22, shown, Label.TRAFFIC_LIGHT)


def person(c: Canvas, x: float, z: float) -> None:
    tall, step, trousers = c.rng.uniform(1.55, 1.9), c.rng.uniform(0.05, 0.3), c.colour(10)
    for side in (-1, 1):
        c.rod((x + side * step, 0, z), (x + side * 0.08, tall * 0.5, z), 0.19, trousers, Label.PERSON)
    _torso(c, (x, tall * 0.66, z), (x, tall * 0.93, z), Label.PERSON)


def cyclist(c: Canvas, x: float, z: float) -> None:
    bicycle(c, x, z)
    way = c.rng.choice([-1, 1])
    c.rod((x - way * 0.18, 0.98, z), (x + way * 0.1, 0.4, z), 0.2, c.colour(10), Label.RIDER)
    c.rod((x, 1.35, z), (x + way * 0.5, 1.05, z), 0.14, c.colour(), Label.RIDER)
    _torso(c, (x, 1.25, z), (x + way * 0.22, 1.72, z), Label.RIDER)


def _torso(c: Canvas, chest: Position, head: Position, label: Label) -> None:
    c.disc(chest, 0.27, c.colour(), label, stretch=1.3)
    c.disc(head, 0.15, np.array((206, 160, 130)) * c.rng.uniform(0.4, 1.05), label)


def bicycle(c: Canvas, x: float, z: float) -> None:
    frame = c.colour()
    for side in (-1, 1):
        hub = (x + side * 0.56, 0.36, z)
        c.disc(hub, 0.37, _BLACK, Label.BICYCLE)
        c.disc(hub, 0.27, _METAL, Label.BICYCLE)  # what shows through a wheel is bicycle too, as in Cityscapes
        c.rod(hub, (x - side * 0.1, 0.85, z), 0.08, frame, Label.BICYCLE)
    c.rod((x - 0.45, 0.84, z), (x + 0.45, 0.84, z), 0.09, frame, Label.BICYCLE)


def car(c: Canvas, x: float, z: float) -> None:
    _vehicle(c, x, (z, z + c.rng.uniform(3.8, 4.6)), (0.85, c.rng.uniform(1.35, 1.75)), 0.9, 0.9, Label.CAR)


def bus(c: Canvas, x: float, z: float) -> None:
    _vehicle(c, x, (z, z + c.rng.uniform(8.5, 12)), (1.4, 3.1), 1.25, 0, Label.BUS)


def _vehicle(c: Canvas, x: float, z: Span, cabin: Span, half: float, bonnet: float, label: Label) -> None:
    """A chassis on wheels, and a cabin with windows on it, its ends that much shorter."""
    wide, paint = (x - half, x + half), c.colour()
    c.ground((x - half - 0.3, x + half + 0.3), (z[0] - 0.4, z[1]), (34, 34, 38), None)
    side = c.box(wide, (0.22, cabin[0]), z, paint, label)
    for at in (z[0] + 0.8, z[1] - 0.8) if abs(x) > half else ():
        c.disc((side, 0.32, at), 0.16, _BLACK, label, stretch=2)
    for end in (-1, 1):
        middle = x + end * (half - 0.2)
        c.front((middle - 0.13, middle + 0.13), (0, 0.3), z[0], _BLACK, label)
        c.front((middle - 0.18, middle + 0.18), (0.55, 0.75), z[0], _RED if x > 0 else WHITE, label)
    z = z[0] + bonnet * 0.4, z[1] - bonnet
    side = c.box(wide, cabin, z, paint, label)
    glass = cabin[0] + 0.08, cabin[0] + 0.75 * (cabin[1] - cabin[0])
    c.front((x - half + 0.12, x + half - 0.12), glass, z[0], _GLASS, label)
    for at in np.arange(z[0] + 0.2, z[1] - 1, 1.4) if abs(x) > half else ():
        c.side(side, glass, (at, at + 1.2), _GLASS, label)
