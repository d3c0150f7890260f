"""Street scenes made on the spot: small, Cityscapes-like, and different in every one of their details.

A scene is a street seen from a car: its width, kerbs, houses, trees, traffic, light and weather are drawn at random.
Colour alone tells little and so does place: a model has to learn shapes and context to label them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from keyseg_mm.errors import KeysegError
from keyseg_mm.mm.scenes import things
from keyseg_mm.mm.scenes.paint import SHARPNESS, Canvas, Colour, Label

HEIGHT, WIDTH = 96, 192  # pixels; twice as wide as high, as Cityscapes' are
SPLITS = ('train', 'val')
TOWN = 'demotown'
FAR = 110.0  # metres; the end of the street

Queue = list[tuple[float, Callable[[], None]]]  # how far away, and what paints it

# sky above, sky at the horizon, colour of the light
_WEATHER: tuple[tuple[Colour, Colour, Colour], ...] = (
    ((78, 132, 208), (186, 212, 236), (1.05, 1.02, 0.97)),  # a clear day
    ((160, 170, 182), (206, 210, 214), (0.86, 0.88, 0.91)),  # overcast
    ((86, 98, 150), (240, 178, 122), (0.98, 0.84, 0.70)),  # evening
    ((92, 100, 114), (136, 142, 150), (0.64, 0.68, 0.76)),  # rain
)
# How rough each class looks, in grey levels: from pixel to pixel, and in patches.
_GRAIN = {
    Label.ROAD: (7, 5),
    Label.SIDEWALK: (6, 4),
    Label.BUILDING: (6, 5),
    Label.VEGETATION: (14, 14),
    Label.TERRAIN: (12, 10),
}


def make_scene(seed: int, split: str, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One scene; the same arguments always give the same.

    Returns:
        RGB image (HEIGHT, WIDTH, 3) and label map (HEIGHT, WIDTH) of Cityscapes train ids.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    above, horizon, light = _WEATHER[rng.choice(len(_WEATHER), p=(0.4, 0.25, 0.2, 0.15))]
    canvas = Canvas(rng, HEIGHT, WIDTH, horizon)
    _sky(canvas, above, horizon)
    _street(canvas)
    return _develop(canvas, light)


def write_scenes(root: Path, seed: int, counts: dict[str, int], done: Callable[[], object] = lambda: None) -> None:
    """Write scenes as Cityscapes lays them out, for mmsegmentation's own CityscapesDataset.

    Args:
        root: folder to make; gets leftImg8bit/SPLIT/TOWN and gtFine/SPLIT/TOWN.
        seed: what the scenes depend on.
        counts: number of scenes by split, of ``train`` and ``val``.
        done: called after every scene.

    Raises:
        KeysegError: a file could not be written.
    """
    for split, count in counts.items():
        for index in range(count):
            image, label = make_scene(seed, split, index)
            name = f'{TOWN}_{index:06d}_000019'  # as Cityscapes has it: town, sequence, frame
            for kind, end, pixels in (
                ('leftImg8bit', 'leftImg8bit', np.ascontiguousarray(image[..., ::-1])),
                ('gtFine', 'gtFine_labelTrainIds', label),
            ):
                path = root / kind / split / TOWN / f'{name}_{end}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                if not cv2.imwrite(str(path), pixels):
                    raise KeysegError(f'could not write {path}')
            done()


def _sky(c: Canvas, above: Colour, horizon: Colour) -> None:
    """A gradient with clouds."""
    fade = np.clip(np.arange(c.height) / c.horizon, 0, 1)[:, None] ** 0.8
    column = np.array(above) * (1 - fade) + np.array(horizon) * fade
    sky = np.repeat(column[:, None], c.width, axis=1)
    clouds = cv2.resize(c.rng.random((6, 8)), (c.width, c.height), interpolation=cv2.INTER_CUBIC)
    cover = np.clip(clouds * 2.2 - c.rng.uniform(0.9, 1.6), 0, 0.8)[..., None]
    c.image[:] = np.clip(sky * (1 - cover) + 236 * cover * (np.mean(horizon) / 215), 0, 255)


def _street(c: Canvas) -> None:
    """Everything below and in front of the sky, from far to near."""
    half, walk, lawn = c.rng.uniform(3.6, 5.6), c.rng.uniform(1.8, 3.4), float(c.rng.choice([0.0, 2.5, 5.0]))
    middle = -c.rng.uniform(0.2, 0.55) * half  # the camera drives on the right
    kerbs = middle - half, middle + half
    _ground(c, kerbs, middle, walk)
    queue: Queue = []
    for side, kerb in zip((-1.0, 1.0), kerbs):
        front = kerb + side * (walk + lawn)
        _houses(c, front, queue)
        _beside(c, side, kerb, walk, lawn, queue)
    _traffic(c, kerbs, middle, queue)
    for _, paint in sorted(queue, key=lambda item: -item[0]):
        paint()


def _ground(c: Canvas, kerbs: tuple[float, float], middle: float, walk: float) -> None:
    """Lawn, sidewalks and the road with its markings."""
    asphalt = np.full(3, c.rng.uniform(70, 118)) + c.rng.normal(0, 4, 3)
    paving = np.full(3, c.rng.uniform(125, 185)) + c.rng.normal(0, 9, 3)
    lawn = np.array((96, 116, 62)) + c.rng.normal(0, 16, 3)
    c.ground((-400, 400), (0, 900), lawn, Label.TERRAIN)
    paved = kerbs[0] - walk, kerbs[1] + walk
    c.ground(paved, (0, 900), paving, Label.SIDEWALK)
    for k in np.arange(1.5, 30, 1.6):  # slabs
        c.ground(paved, (k, k + 0.07), paving * 0.86, Label.SIDEWALK)
    c.ground(kerbs, (0, 900), asphalt, Label.ROAD)
    white = np.full(3, c.rng.uniform(190, 235))
    for side, kerb in zip((-1, 1), kerbs):
        c.ground((kerb, kerb + side * 0.18), (0, 200), paving * 1.18, Label.SIDEWALK)
        if c.rng.random() < 0.6:
            c.ground((kerb - side * 0.45, kerb - side * 0.3), (0, 200), white, Label.ROAD)
    dash, start = c.rng.uniform(2, 4), c.rng.uniform(0, 6)
    for z in np.arange(start, 90, 2 * dash):
        c.ground((middle - 0.08, middle + 0.08), (z, z + dash), white, Label.ROAD)
    if c.rng.random() < 0.3:
        z = c.rng.uniform(6, 22)
        for x in np.arange(kerbs[0] + 0.4, kerbs[1] - 0.5, 1.1):
            c.ground((x, x + 0.55), (z, z + 2.6), white, Label.ROAD)


def _houses(c: Canvas, front: float, queue: Queue) -> None:
    """A row of houses on one side, with gaps of trees and fences, and trees where the street ends."""
    z = FAR
    for _ in range(8):
        things.tree(c, c.rng.uniform(front - 14, front + 14), FAR + c.rng.uniform(0, 10))
    while z > 1:
        length = c.rng.uniform(7, 19)
        near = max(z - length, 0.95)
        if c.rng.random() < 0.74:
            things.building(c, front + np.sign(front) * c.rng.uniform(0, 0.8), near, z)
        else:
            fence_x = front - np.sign(front) * 0.1
            for at in np.arange(max(near, 3.5), z, 2.6 if near < 40 else 5):
                queue.append((at, partial(things.tree, c, front + np.sign(front) * c.rng.uniform(2.6, 6), at)))
            if near < 45:
                queue.append((z - 0.5, partial(things.fence, c, fence_x, max(near, 1.5), z)))
        z = near if near > 0.95 else 0.0


def _beside(c: Canvas, side: float, kerb: float, walk: float, lawn: float, queue: Queue) -> None:
    """What stands and walks beside the road on one side."""
    edge, outer = kerb + side * 0.6, kerb + side * (walk + lawn / 2)
    for z in np.arange(c.rng.uniform(5, 14), 70, c.rng.uniform(14, 24)):
        queue.append((z, partial(things.lamp, c, edge, z)))
    # what, how many on average, where from (and to) across the street, where from and to along it
    on_lawn = [(things.tree, 2.0, outer + side * 0.6, None, 7, 60), (things.bush, 1.5, outer, None, 5, 30)]
    for thing, often, x, least, nearest, farthest in [
        (things.sign, 1.1, edge, None, 6.5, 20),
        (things.traffic_light, 0.8, edge, None, 6.5, 18),
        (things.person, 1.9, kerb, 0.7, 4.5, 22),
        (things.parked_bicycle, 0.45, kerb, 0.9, 4.5, 14),
        *(on_lawn if lawn else []),
    ]:
        for _ in range(c.rng.poisson(often)):
            at = x if least is None else x + side * c.rng.uniform(least, walk)
            z = float(c.rng.uniform(nearest, farthest))
            queue.append((z, partial(thing, c, at, z)))


def _traffic(c: Canvas, kerbs: tuple[float, float], middle: float, queue: Queue) -> None:
    """Cars in both lanes and along the kerbs, a bus, cyclists; no two things in one place."""
    lanes = [(kerbs[0] + 1.1, 5), (kerbs[1] - 1.1, 5), ((kerbs[0] + middle) / 2, 8), ((middle + kerbs[1]) / 2, 10)]
    crowd = c.rng.uniform(0.25, 0.75)
    for lane, (x, nearest) in enumerate(lanes):
        z = nearest + c.rng.uniform(0, 9)
        while z < 75:
            if c.rng.random() < crowd * (0.8 if lane < 2 else 0.45):
                if lane >= 2 and c.rng.random() < 0.45:
                    queue.append((z, partial(things.bus, c, x, z)))
                    z += 9
                else:
                    queue.append((z, partial(things.car, c, x + c.rng.normal(0, 0.1), z)))
            z += c.rng.uniform(5.5, 9) if lane < 2 else c.rng.uniform(8, 18)
    for _ in range(c.rng.poisson(0.9)):
        z = float(c.rng.uniform(4.5, 13))
        queue.append((z, partial(things.cyclist, c, c.rng.uniform(kerbs[0] + 0.8, kerbs[1] - 0.8), z)))


def _develop(c: Canvas, light: Colour) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """From the canvas to a photo: surface grain, uneven light, the lens, the sensor's noise."""
    rng, size = c.rng, (WIDTH, HEIGHT)
    half = SHARPNESS // 2
    label = np.ascontiguousarray(c.label[half::SHARPNESS, half::SHARPNESS])
    image = cv2.resize(c.image, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    fine, patches = np.zeros(256, np.float32), np.zeros(256, np.float32)
    for name, (a, b) in _GRAIN.items():
        fine[name], patches[name] = a, b
    blotches = cv2.resize(rng.normal(0, 1, (HEIGHT // 4, WIDTH // 4)).astype(np.float32), size)
    image += (rng.normal(0, 1, label.shape) * fine[label] + blotches * patches[label])[..., None]
    slope = np.linspace(-1, 1, WIDTH)[None, :, None] * c.sun * rng.uniform(0, 0.14)
    image *= (1 + slope) * np.array(light) * rng.uniform(0.86, 1.14)
    image = cv2.GaussianBlur(image, (3, 3), rng.uniform(0.2, 0.65))
    image += rng.normal(0, rng.uniform(1.5, 6), image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), label
