"""Street scenes made on the spot: small, labelled as Cityscapes is, and different in every one of their details.

A scene is a street seen from a car: its width, houses, trees, traffic, light and weather are drawn at random. Colour
alone tells little and so does place: a model has to learn shapes and context to label them.
"""

from __future__ import annotations

from collections.abc import Callable
from math import copysign
from pathlib import Path

import cv2
import numpy as np

from keyseg_mm.errors import KeysegError
from keyseg_mm.mm.scenes import paint
from keyseg_mm.mm.scenes.paint import NEAR, SHARPNESS, Canvas, Colour, Image, Label, Span

HEIGHT, WIDTH = 96, 192  # pixels; twice as wide as high, as Cityscapes' are
SPLITS = ('train', 'val')
TOWN = 'demotown'
FAR = 110.0  # metres; the end of the street

Paint = Callable[[Canvas, float, float], None]  # paints a thing at x and z

# Sky above, sky at the horizon, colour of the light: a clear day, overcast, evening, rain.
_WEATHER: tuple[tuple[Colour, Colour, Colour], ...] = (
    ((78, 132, 208), (186, 212, 236), (1.05, 1.02, 0.97)),
    ((160, 170, 182), (206, 210, 214), (0.86, 0.88, 0.91)),
    ((86, 98, 150), (240, 178, 122), (0.98, 0.84, 0.70)),
    ((92, 100, 114), (136, 142, 150), (0.64, 0.68, 0.76)),
)
# How rough surfaces look, in grey levels; others are smooth.
_GRAIN = {Label.ROAD: 7, Label.SIDEWALK: 6, Label.BUILDING: 6, Label.VEGETATION: 15, Label.TERRAIN: 12}


def make_scene(seed: int, split: str, index: int) -> tuple[Image, Image]:
    """One scene; the same arguments always give the same.

    Returns:
        RGB image (HEIGHT, WIDTH, 3) and label map (HEIGHT, WIDTH) of Cityscapes train ids.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    above, horizon, light = _WEATHER[rng.choice(len(_WEATHER), p=(0.4, 0.25, 0.2, 0.15))]
    canvas = Canvas(rng, (HEIGHT, WIDTH), above, horizon)
    _paint_street(canvas)
    return _photograph(canvas, light)


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
            for kind, pixels in (('leftImg8bit', image[..., ::-1]), ('gtFine_labelTrainIds', label)):
                folder = root / kind.partition('_')[0] / split / TOWN
                path = folder / f'{TOWN}_{index:06d}_000019_{kind}.png'  # town, sequence, frame
                path.parent.mkdir(parents=True, exist_ok=True)
                if not cv2.imwrite(str(path), np.ascontiguousarray(pixels)):
                    raise KeysegError(f'could not write {path}')
            done()


def _paint_street(c: Canvas) -> None:
    """Everything below and in front of the sky, from far to near."""
    rng = c.rng
    half, walk, lawn = rng.uniform(3.6, 5.6), rng.uniform(1.8, 3.4), float(rng.choice([0.0, 2.5, 5.0]))
    middle = -rng.uniform(0.2, 0.55) * half  # the camera drives on the right
    left, right = middle - half, middle + half
    c.ground((-400, 400), (NEAR, 900), (96, 110, 62) + rng.normal(0, 16, 3), Label.TERRAIN)
    c.ground((left - walk, right + walk), (NEAR, 900), rng.uniform(105, 185) + rng.normal(0, 9, 3), Label.SIDEWALK)
    c.ground((left, right), (NEAR, 900), rng.uniform(70, 125) + rng.normal(0, 4, 3), Label.ROAD)
    for dash in np.arange(rng.uniform(1, 6), 90, 6):
        c.ground((middle - 0.08, middle + 0.08), (dash, dash + 3), paint.WHITE, Label.ROAD)
    for x in np.arange(-40.0, 41, 5):  # the end of the street
        paint.tree(c, x, FAR)
    queue: list[tuple[float, float, Paint]] = []
    for side, kerb in ((-1, left), (1, right)):
        _paint_row(c, kerb + side * (walk + lawn))
        queue += [(z, kerb + side * 0.5, paint.lamp) for z in np.arange(rng.uniform(5, 14), 70, 18)]
        kinds: tuple[tuple[Paint, float, Span, Span], ...] = (  # what, how many, how far beside the kerb and ahead
            (paint.sign, 1.1, (0.4, 0.8), (6, 20)),
            (paint.traffic_light, 0.8, (0.4, 0.8), (6, 18)),
            (paint.person, 2.0, (0.5, walk), (4.5, 22)),
            (paint.bicycle, 0.5, (0.9, walk), (4.5, 14)),
            (paint.cyclist, 0.5, (-half, -0.8), (4.5, 13)),
            (paint.tree, 0.4 * lawn, (walk + lawn / 2, walk + lawn), (7, 60)),
            (paint.car, 3.5, (-1.2, -1.0), (5, 60)),
            (paint.car, 1.0, (-half / 2, -half / 2), (9, 70)),
            (paint.bus, 0.4, (-half / 2, -half / 2), (10, 50)),
        )
        for thing, often, beside, ahead in kinds:
            for _ in range(rng.poisson(often)):
                queue.append((rng.uniform(*ahead), kerb + side * rng.uniform(*beside), thing))
    for z, x, paint_thing in sorted(queue, key=lambda item: -item[0]):
        paint_thing(c, x, z)


def _paint_row(c: Canvas, x: float) -> None:
    """What lines the street on one side: houses, and fences with trees behind them in the gaps."""
    far = FAR
    while far > NEAR:
        near = max(far - c.rng.uniform(7, 19), NEAR)
        if c.rng.random() < 0.72:
            paint.building(c, x, (near, far))
        else:
            for z in np.arange(far, near, -4.0):
                paint.tree(c, x + copysign(c.rng.uniform(2.5, 6), x), z)
            height, colour = c.rng.uniform(1.1, 1.7), c.colour(15)
            c.side(x, (0, height), (near, far), colour * 0.55, Label.FENCE)
            for z in np.arange(far, near, -0.55):
                c.side(x, (0, height), (z - 0.26, z), colour, Label.FENCE)
        far = near


def _photograph(c: Canvas, light: Colour) -> tuple[Image, Image]:
    """From the canvas to a photo: rough surfaces, light, the lens, the sensor's noise."""
    label = np.ascontiguousarray(c.label[SHARPNESS // 2 :: SHARPNESS, SHARPNESS // 2 :: SHARPNESS])
    image = cv2.resize(c.image, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA).astype(np.float32)
    blotches = cv2.resize(c.rng.normal(0, 1, (HEIGHT // 4, WIDTH // 4)), (WIDTH, HEIGHT))
    for name, grain in _GRAIN.items():
        rough = label == name
        image[rough] += (grain * (blotches + c.rng.normal(0, 1, label.shape))[rough, None]).astype(np.float32)
    slope = 1 + np.linspace(-1, 1, WIDTH)[:, None] * c.rng.uniform(-0.14, 0.14)  # the sun is on one side
    image *= (slope * np.array(light) * c.rng.uniform(0.86, 1.14)).astype(np.float32)
    image = cv2.GaussianBlur(image, (3, 3), c.rng.uniform(0.2, 0.65))
    image += c.rng.normal(0, c.rng.uniform(1.5, 6), image.shape).astype(np.float32)
    return np.clip(image, 0, 255).astype(np.uint8), label
