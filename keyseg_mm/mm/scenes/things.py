"""What stands and moves in a street: buildings, trees, poles, signs, lights, fences, people, vehicles.

Each function paints one thing; ``x`` is metres to the right of the camera, ``z`` metres ahead. Whatever does not matter
to its class (colours above all) is drawn at random, so that no class is known by its colour alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from keyseg_mm.mm.scenes.paint import Canvas, Colour, Label

_FACADES: tuple[Colour, ...] = (
    (168, 120, 96), (196, 178, 150), (142, 136, 132), (214, 204, 188), (120, 92, 80), (176, 150, 118), (110, 118, 128),
)  # fmt: skip
_PAINTS: tuple[Colour, ...] = (
    (196, 32, 36), (28, 52, 110), (226, 228, 230), (34, 36, 40), (128, 132, 138), (60, 96, 70), (200, 160, 60),
)  # fmt: skip
_SKIN: tuple[Colour, ...] = ((214, 168, 138), (150, 104, 76), (92, 62, 46))
_GLASS: Colour = (44, 54, 66)
_METAL: Colour = (104, 106, 108)
_BLACK: Colour = (20, 20, 22)


def pick(rng: np.random.Generator, colours: tuple[Colour, ...], spread: float = 18.0) -> NDArray[np.float64]:
    """One of the colours, a little off."""
    return np.clip(np.array(colours[rng.integers(len(colours))]) + rng.normal(0, spread, 3), 8, 245)


def building(c: Canvas, x: float, z0: float, z1: float) -> None:
    """A house whose front runs along the street at ``x``, from ``z0`` to ``z1``."""
    height, storey = c.rng.uniform(6, 19), c.rng.uniform(2.7, 3.4)
    wall = pick(c.rng, _FACADES)
    outward = x + np.sign(x) * 12
    c.box((min(x, outward), max(x, outward)), (0, height), (z0, z1), wall, Label.BUILDING)
    lit = c.rng.random() < 0.15
    glass = np.array((226, 206, 150)) if lit else np.array(_GLASS) + c.rng.uniform(0, 70)
    every, wide = c.rng.uniform(2.2, 3.6), c.rng.uniform(0.9, 1.6)
    c.along(x, (0, storey * 0.95), (z0, z1), wall * c.rng.uniform(0.6, 0.9), Label.BUILDING)
    for y in np.arange(0.9, height - 1.8, storey):
        for z in np.arange(z0 + 0.8, min(z1, 70) - wide, every):
            c.along(x, (y, y + storey * 0.55), (z, z + wide), glass * c.rng.uniform(0.75, 1.2), Label.BUILDING)
        for i in range(3) if z0 < 60 else ():
            left = x + np.sign(x) * (1 + 3.4 * i)
            right = left + np.sign(x) * 1.4
            c.upright((min(left, right), max(left, right)), (y, y + storey * 0.55), z0, glass * 0.9, Label.BUILDING)


def tree(c: Canvas, x: float, z: float) -> None:
    """A tree; its trunk counts as vegetation, as in Cityscapes."""
    height, radius = c.rng.uniform(4.5, 8.5), c.rng.uniform(1.2, 2.3)
    c.shadow((x, 0, z), (radius, 0.8), 0.3)
    c.rod((x, 0, z), (x, height * 0.6, z), 0.28, (84, 66, 50), Label.VEGETATION)
    leaves = np.array((62, 98, 44)) + c.rng.normal(0, 16, 3)
    tufts = 32 if z < 30 else 14
    for i in range(tufts):
        light = 0.6 + 0.7 * i / tufts
        dx, dy = c.rng.normal(0, radius * 0.48), c.rng.normal(0, radius * 0.5)
        size = radius * c.rng.uniform(0.25, 0.5)
        sunlit = light + 0.16 * np.sign(dx) * c.sun
        c.disc((x + dx, height - radius + dy, z), (size, size), leaves * sunlit, Label.VEGETATION)


def bush(c: Canvas, x: float, z: float) -> None:
    """A low bush."""
    leaves = np.array((70, 104, 52)) + c.rng.normal(0, 14, 3)
    for i in range(12):
        size = c.rng.uniform(0.3, 0.6)
        at = (x + c.rng.normal(0, 0.6), c.rng.uniform(0.2, 1.0), z)
        c.disc(at, (size, size), leaves * (0.65 + 0.05 * i), Label.VEGETATION)


def lamp(c: Canvas, x: float, z: float) -> None:
    """A street lamp: a tall pole with an arm over the road."""
    height, grey = c.rng.uniform(5.5, 8), np.array(_METAL) * c.rng.uniform(0.6, 1.3)
    c.rod((x, 0, z), (x, height, z), 0.2, grey, Label.POLE)
    c.rod((x, height, z), (x - np.sign(x) * 1.6, height + 0.2, z), 0.16, grey, Label.POLE)


def sign(c: Canvas, x: float, z: float) -> None:
    """A traffic sign on its pole: round, square or three-cornered."""
    y, r = c.rng.uniform(2.4, 3.2), c.rng.uniform(0.42, 0.6)
    c.rod((x, 0, z), (x, y, z), 0.13, _METAL, Label.POLE)
    shape = c.rng.integers(3)
    if shape == 0:
        c.disc((x, y, z), (r, r), (206, 30, 34), Label.TRAFFIC_SIGN)
        c.disc((x, y, z), (r * 0.66, r * 0.66), (240, 240, 240), Label.TRAFFIC_SIGN)
    elif shape == 1:
        c.upright((x - r, x + r), (y - r, y + r), z, (30, 84, 190), Label.TRAFFIC_SIGN)
        c.upright((x - r * 0.3, x + r * 0.3), (y - r * 0.6, y + r * 0.6), z, (240, 240, 240), Label.TRAFFIC_SIGN)
    else:
        for size, colour in ((1.25, (206, 30, 34)), (0.75, (250, 214, 60))):
            s = r * size
            corners = [(x - s, y - s * 0.6, z), (x, y + s, z), (x + s, y - s * 0.6, z)]
            c.polygon(corners, colour, Label.TRAFFIC_SIGN)


def traffic_light(c: Canvas, x: float, z: float) -> None:
    """A traffic light on its pole, one of its lamps on."""
    y = c.rng.uniform(2.5, 3.2)
    c.rod((x, 0, z), (x, y, z), 0.16, np.array(_METAL) * 0.8, Label.POLE)
    c.upright((x - 0.42, x + 0.42), (y - 0.2, y + 1.5), z, (24, 26, 26), Label.TRAFFIC_LIGHT)
    on = c.rng.integers(3)
    for i, colour in enumerate(((40, 220, 110), (252, 190, 40), (246, 44, 40))):
        shown = np.array(colour) * (1.0 if i == on else 0.28)
        c.disc((x, y + 0.15 + 0.47 * i, z), (0.24, 0.2), shown, Label.TRAFFIC_LIGHT)


def fence(c: Canvas, x: float, z0: float, z1: float) -> None:
    """A fence along the street, of slats and rails; the gaps between count as fence, as in Cityscapes."""
    height, colour = c.rng.uniform(1.1, 1.7), pick(c.rng, ((150, 120, 90), (92, 98, 104), (196, 196, 190)))
    c.along(x, (0, height), (z0, z1), colour * 0.55, Label.FENCE)
    for z in np.arange(z0, z1, 0.55):
        c.along(x, (0, height), (z, z + 0.26), colour, Label.FENCE)
    c.along(x, (height * 0.82, height), (z0, z1), colour * 1.2, Label.FENCE)


def person(c: Canvas, x: float, z: float) -> None:
    """Somebody on foot."""
    tall, step = c.rng.uniform(1.55, 1.9), c.rng.uniform(0.05, 0.3)
    coat, trousers = pick(c.rng, _PAINTS, 30), pick(c.rng, ((40, 44, 60), (90, 84, 76), (30, 30, 32)))
    skin = pick(c.rng, _SKIN, 10)
    c.shadow((x, 0, z), (0.45, 0.25))
    for side in (-1, 1):
        c.rod((x + side * step, 0, z), (x + side * 0.08, tall * 0.5, z), 0.19, trousers, Label.PERSON)
        c.rod((x + side * 0.24, tall * 0.8, z), (x + side * 0.3, tall * 0.48, z), 0.14, coat * 0.85, Label.PERSON)
    c.disc((x, tall * 0.66, z), (0.27, tall * 0.21), coat, Label.PERSON)
    c.disc((x, tall * 0.93, z), (0.14, 0.16), skin, Label.PERSON)


def cyclist(c: Canvas, x: float, z: float) -> None:
    """Somebody on a bicycle, seen from the side: a rider and a bicycle."""
    way, frame = c.rng.choice([-1, 1]), pick(c.rng, _PAINTS)
    c.shadow((x, 0, z), (0.95, 0.25))
    _bicycle(c, x, z, frame)
    coat = pick(c.rng, _PAINTS, 30)
    hip, shoulder = (x - way * 0.18, 0.98, z), (x + way * 0.16, 1.5, z)
    c.rod(hip, (x + way * 0.1, 0.4, z), 0.2, (44, 46, 62), Label.RIDER)
    c.rod(hip, shoulder, 0.42, coat, Label.RIDER)
    c.rod(shoulder, (x + way * 0.5, 1.08, z), 0.14, coat * 0.8, Label.RIDER)
    c.disc((x + way * 0.26, 1.74, z), (0.15, 0.18), pick(c.rng, _SKIN[:2]), Label.RIDER)


def parked_bicycle(c: Canvas, x: float, z: float) -> None:
    """A bicycle without a rider."""
    c.shadow((x, 0, z), (0.95, 0.2))
    _bicycle(c, x, z, pick(c.rng, _PAINTS))


def _bicycle(c: Canvas, x: float, z: float, frame: NDArray[np.float64]) -> None:
    """Wheels, frame, saddle and handlebar; what shows through the wheels counts as bicycle, as in Cityscapes."""
    for side in (-1, 1):
        hub = (x + side * 0.56, 0.36, z)
        c.disc(hub, (0.36, 0.36), (104, 104, 104), Label.BICYCLE)
        c.ring(hub, 0.34, 0.07, (22, 22, 24), Label.BICYCLE)
        c.rod(hub, (x - side * 0.1, 0.85, z), 0.08, frame, Label.BICYCLE)
    c.rod((x - 0.42, 0.8, z), (x + 0.46, 0.86, z), 0.09, frame, Label.BICYCLE)


def car(c: Canvas, x: float, z: float) -> None:
    """A car along the street, its near end at ``z``, seen from behind or from the front."""
    paint, tall = pick(c.rng, _PAINTS, 26), c.rng.uniform(1.35, 1.75)
    x0, x1, z1 = x - 0.9, x + 0.9, z + c.rng.uniform(3.8, 4.6)
    c.shadow((x, 0, z + 2), (1.25, 2.5))
    side = c.box((x0, x1), (0.22, 0.85), (z, z1), paint, Label.CAR)
    for zw in (z + 0.75, z1 - 0.8) if x0 > 0 or x1 < 0 else ():
        c.disc((side, 0.32, zw), (0.16, 0.33), _BLACK, Label.CAR)
    for xw in (x0 + 0.18, x1 - 0.18):
        c.upright((xw - 0.13, xw + 0.13), (0.0, 0.3), z, _BLACK, Label.CAR)
    c.box((x0 + 0.12, x1 - 0.12), (0.85, tall), (z + 0.35, z1 - 1.0), paint * 0.95, Label.CAR)
    c.upright((x0 + 0.24, x1 - 0.24), (0.92, tall - 0.12), z + 0.35, _GLASS, Label.CAR)
    if x0 > 0 or x1 < 0:
        inner = side + np.sign(side) * 0.12
        for a, b in ((z + 0.55, z + 1.6), (z + 1.75, z1 - 1.15)):
            c.along(inner, (0.92, tall - 0.12), (a, b), _GLASS, Label.CAR)
    light = (216, 26, 30) if x > -0.5 else (250, 246, 220)
    for xl in (x0 + 0.24, x1 - 0.24):
        c.upright((xl - 0.18, xl + 0.18), (0.58, 0.76), z, light, Label.CAR)
    c.upright((x - 0.28, x + 0.28), (0.38, 0.5), z, (236, 236, 226), Label.CAR)


def bus(c: Canvas, x: float, z: float) -> None:
    """A bus along the street, its near end at ``z``."""
    paint = pick(c.rng, ((212, 36, 40), (240, 196, 40), (36, 92, 168), (230, 230, 226), (48, 130, 84)), 14)
    z1 = z + c.rng.uniform(8.5, 12)
    c.shadow((x, 0, z + 4), (1.7, 5.5))
    side = c.box((x - 1.25, x + 1.25), (0.3, 3.1), (z, z1), paint, Label.BUS)
    c.upright((x - 1.1, x + 1.1), (1.45, 2.55), z, _GLASS, Label.BUS)
    c.upright((x - 0.7, x + 0.7), (2.65, 2.95), z, (250, 190, 60), Label.BUS)
    if abs(x) > 1.25:
        for a in np.arange(z + 0.4, z1 - 1.4, 1.6):
            c.along(side, (1.5, 2.5), (a, a + 1.35), _GLASS, Label.BUS)
        for zw in (z + 1.8, z1 - 2.2):
            c.disc((side, 0.45, zw), (0.22, 0.46), _BLACK, Label.BUS)
    for xw in (x - 0.95, x + 0.95):
        c.upright((xw - 0.17, xw + 0.17), (0.0, 0.4), z, _BLACK, Label.BUS)
        c.upright((xw - 0.16, xw + 0.16), (0.7, 0.95), z, (250, 240, 210), Label.BUS)
