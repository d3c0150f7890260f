"""Painted street scenes: small, labelled as Cityscapes is, for the demo, for proofs and for whoever has no data.

A scene is a street seen from a car; its width, houses, trees, traffic and light are drawn at random. Colours are random
too, so that a model has to learn shapes and context to label them.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from math import copysign
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from keyseg_mm.errors import KeysegError

HEIGHT, WIDTH = 96, 192  # pixels; twice as wide as high, as Cityscapes' are
SPLITS = ('train', 'val')
TOWN = 'demotown'
_FAR = 80.0  # metres; the end of the street
_EYE = 1.6  # metres above the ground
_DARK, _GREY, _RED, _WHITE = (30, 32, 36), (110, 112, 114), (220, 40, 40), (238, 238, 232)

Image = NDArray[np.uint8]
Colour = Sequence[float] | NDArray[np.float64]  # RGB, 0 to 255
Span = tuple[float, float]  # from, to; in metres


class Label(IntEnum):
    """The classes that are painted, by their Cityscapes train id."""

    ROAD = 0
    SIDEWALK = 1
    BUILDING = 2
    POLE = 5
    TRAFFIC_SIGN = 7
    VEGETATION = 8
    TERRAIN = 9
    SKY = 10
    PERSON = 11
    CAR = 13


def make_scene(seed: int, split: str, index: int) -> tuple[Image, Image]:
    """One scene; the same arguments always give the same.

    Returns:
        RGB image (HEIGHT, WIDTH, 3) and label map (HEIGHT, WIDTH) of Cityscapes train ids.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    canvas = _Canvas(rng)
    _paint_street(canvas, rng)
    light = rng.uniform(0.6, 1.1) * rng.uniform(0.9, 1.1, 3)
    light = light * (1 + np.linspace(-1, 1, WIDTH)[:, None] * rng.uniform(-0.15, 0.15))  # the sun is on one side
    blotches = cv2.resize(rng.normal(0, 1, (HEIGHT // 4, WIDTH // 4)), (WIDTH, HEIGHT))
    rough = (blotches + rng.normal(0, 1, canvas.label.shape)) * (canvas.label != Label.SKY)
    image = cv2.GaussianBlur(canvas.image + 7 * rough[..., None], (3, 3), 0.6) * light
    image += rng.normal(0, 3, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), canvas.label


def write_scenes(root: Path, seed: int, counts: dict[str, int]) -> None:
    """Write so many scenes of each split, as Cityscapes lays them out: leftImg8bit/SPLIT/TOWN and gtFine/SPLIT/TOWN.

    Raises:
        KeysegError: a file could not be written.
    """
    for split, count in counts.items():
        for index in range(count):
            image, label = make_scene(seed, split, index)
            for kind, pixels in (('leftImg8bit', image[..., ::-1]), ('gtFine_labelTrainIds', label)):
                folder = root / kind.partition('_')[0] / split / TOWN
                path = folder / f'{TOWN}_{index:06d}_000019_{kind}.png'  # town, sequence, frame
                path.parent.mkdir(parents=True, exist_ok=True)
                if not cv2.imwrite(str(path), np.ascontiguousarray(pixels)):
                    raise KeysegError(f'could not write {path}')


class _Canvas:
    """An image and its label map; points are metres right of the camera, above the ground, and ahead."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.focal, self.centre = WIDTH * rng.uniform(0.6, 0.8), WIDTH * rng.uniform(0.42, 0.58)
        self.horizon = HEIGHT * rng.uniform(0.4, 0.48)
        sky = np.linspace(rng.uniform((70, 90, 110), (170, 180, 220)), rng.uniform(180, 240, 3), HEIGHT)
        self.image: Image = np.repeat(sky[:, None], WIDTH, axis=1).astype(np.uint8)
        self.label: Image = np.full((HEIGHT, WIDTH), Label.SKY, np.uint8)

    def polygon(self, points: Sequence[tuple[float, float, float]], colour: Colour, label: Label) -> None:
        """A flat polygon in space, which hides what was painted before."""
        x, y, z = np.array(points, float).T
        scale = self.focal / np.maximum(z, 1.0)
        seen = np.stack([self.centre + scale * x, self.horizon + scale * (_EYE - y)], axis=1)
        pixels = [seen.clip(-3e4, 3e4).round().astype(np.int32)]
        cv2.fillPoly(self.image, pixels, [float(min(max(c, 0), 255)) for c in colour])
        cv2.fillPoly(self.label, pixels, int(label))

    def ground(self, x: Span, z: Span, colour: Colour, label: Label) -> None:
        """A rectangle on the ground."""
        self.polygon([(x[0], 0, z[0]), (x[0], 0, z[1]), (x[1], 0, z[1]), (x[1], 0, z[0])], colour, label)

    def front(self, x: Span, y: Span, z: float, colour: Colour, label: Label) -> None:
        """A rectangle that faces the camera."""
        self.polygon([(x[0], y[0], z), (x[0], y[1], z), (x[1], y[1], z), (x[1], y[0], z)], colour, label)

    def side(self, x: float, y: Span, z: Span, colour: Colour, label: Label) -> None:
        """An upright rectangle that runs along the street."""
        self.polygon([(x, y[0], z[0]), (x, y[1], z[0]), (x, y[1], z[1]), (x, y[0], z[1])], colour, label)

    def disc(self, x: float, y: float, z: float, radius: Span, colour: Colour, label: Label) -> None:
        """An ellipse that faces the camera; its radius to the right and upwards."""
        turns = np.linspace(0, 2 * np.pi, 12)
        self.polygon([(x + radius[0] * np.sin(t), y + radius[1] * np.cos(t), z) for t in turns], colour, label)


def _paint_street(c: _Canvas, rng: np.random.Generator) -> None:
    """Everything below and in front of the sky, from far to near."""
    half, walk = rng.uniform(3.6, 5.6), rng.uniform(1.8, 3.4)
    middle = -rng.uniform(0.2, 0.55) * half  # the camera drives on the right
    c.ground((-400, 400), (1, 900), (96, 110, 62) + rng.normal(0, 16, 3), Label.TERRAIN)
    wide = (middle - half - walk, middle + half + walk)
    c.ground(wide, (1, 900), rng.uniform(105, 185) + rng.normal(0, 9, 3), Label.SIDEWALK)
    c.ground((middle - half, middle + half), (1, 900), rng.uniform(70, 125) + rng.normal(0, 4, 3), Label.ROAD)
    for z in np.arange(rng.uniform(1, 6), _FAR, 6):
        c.ground((middle - 0.1, middle + 0.1), (z, z + 3), _WHITE, Label.ROAD)
    queue = []
    for way in (-1, 1):
        kerb = middle + way * half
        for z in np.arange(rng.uniform(0, 10), _FAR, rng.uniform(11, 14)):
            queue.append((z, kerb + way * (walk + rng.uniform(0, 3)), _house if rng.random() < 0.7 else _tree))
        for thing, often, beside in (  # how many, and how far beside the kerb
            (_sign, 2.5, (0.4, 0.8)),
            (_person, 2.5, (0.5, walk)),
            (_tree, 1.0, (walk, walk + 2)),
            (_car, 3.0, (-1.2, -1.0)),
            (_car, 1.0, (-half / 2, -half / 2)),
        ):
            for _ in range(rng.poisson(often)):
                queue.append((rng.uniform(5, 40), kerb + way * rng.uniform(*beside), thing))
    for z, x, thing in sorted(queue, key=lambda item: -item[0]):
        thing(c, rng, x, z)


def _house(c: _Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    height, wall, end = rng.uniform(6, 19), rng.uniform(50, 210) + rng.normal(0, 22, 3), z + 12
    c.front((min(x, x + copysign(12, x)), max(x, x + copysign(12, x))), (0, height), z, wall, Label.BUILDING)
    c.side(x, (0, height), (z, end), wall * 0.75, Label.BUILDING)
    for y in np.arange(1, height - 2, 3):
        for left in np.arange(z + 1, end - 1, 3):
            c.side(x, (y, y + 1.6), (left, left + 1.4), _DARK, Label.BUILDING)


def _tree(c: _Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    height, leaves = rng.uniform(4, 8), (62, 98, 44) + rng.normal(0, 18, 3)
    c.front((x - 0.15, x + 0.15), (0, height), z, (84, 66, 50), Label.VEGETATION)  # the trunk too, as in Cityscapes
    for light in np.linspace(0.6, 1.3, 12):
        dx, dy = rng.normal(0, 0.8, 2)
        c.disc(x + dx, height + dy, z, (rng.uniform(0.6, 1.1), 0.9), leaves * light, Label.VEGETATION)


def _sign(c: _Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    top = rng.uniform(2.4, 5)
    c.front((x - 0.08, x + 0.08), (0, top), z, _GREY, Label.POLE)
    if top < 3.5:  # otherwise a lamp
        c.disc(x, top, z, (0.5, 0.5), _RED, Label.TRAFFIC_SIGN)
        c.disc(x, top, z, (0.3, 0.3), _WHITE, Label.TRAFFIC_SIGN)


def _person(c: _Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    tall = rng.uniform(1.55, 1.9)
    c.front((x - 0.16, x + 0.16), (0, tall / 2), z, rng.uniform(20, 120, 3), Label.PERSON)
    c.disc(x, tall * 0.65, z, (0.26, 0.36), rng.uniform(20, 240, 3), Label.PERSON)
    c.disc(x, tall * 0.92, z, (0.14, 0.17), np.array((206, 160, 130)) * rng.uniform(0.4, 1), Label.PERSON)


def _car(c: _Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    paint, end = rng.uniform(25, 230) + rng.normal(0, 40, 3), z + 4.2
    near = x - copysign(0.9, x)  # the side that is seen
    for y, shorter in (((0.25, 0.9), 0.0), ((0.9, 1.5), 0.7)):
        c.side(near, y, (z + shorter, end - shorter), paint * 0.75, Label.CAR)
        c.front((x - 0.9, x + 0.9), y, z + shorter, paint, Label.CAR)
    c.front((x - 0.75, x + 0.75), (1.0, 1.4), z + 0.7, _DARK, Label.CAR)
    for wheel in (x - 0.7, x + 0.7):
        c.front((wheel - 0.15, wheel + 0.15), (0, 0.3), z, _DARK, Label.CAR)
