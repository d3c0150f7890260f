"""Pictures of coloured squares, made on the spot: a COCO file of where they are, or a folder for each colour."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

COLOURS = {'red': (40, 40, 220), 'green': (40, 200, 40), 'blue': (220, 60, 40)}  # blue first, as cv2 has them
SIDE = 96


def write_coco(folder: Path, count: int, seed: int) -> Path:
    """Pictures of one to three squares each, and the file that says where: ``folder/name.json``."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(seed)
    images, annotations = [], []
    for index in range(count):
        picture = _background(draw)
        for _ in range(draw.integers(1, 4)):
            kind, (x, y, side) = int(draw.integers(3)), _square(draw)
            picture[y : y + side, x : x + side] = list(COLOURS.values())[kind]
            row = {'bbox': [x, y, side, side], 'area': side * side, 'iscrowd': 0, 'category_id': kind + 1}
            annotations.append({'id': len(annotations) + 1, 'image_id': index, **row})
        cv2.imwrite(str(folder / f'{index}.png'), picture)
        images.append({'id': index, 'file_name': f'{index}.png', 'width': SIDE, 'height': SIDE})
    categories = [{'id': at + 1, 'name': name} for at, name in enumerate(COLOURS)]
    said = folder.with_suffix('.json')
    said.write_text(json.dumps({'images': images, 'annotations': annotations, 'categories': categories}))
    return said


def write_folders(folder: Path, count: int, seed: int) -> Path:
    """Pictures of one square each, in a folder by its colour."""
    draw = np.random.default_rng(seed)
    for index in range(count):
        name = list(COLOURS)[index % len(COLOURS)]
        picture, (x, y, side) = _background(draw), _square(draw)
        picture[y : y + side, x : x + side] = COLOURS[name]
        (folder / name).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name / f'{index}.png'), picture)
    return folder


def _background(draw: np.random.Generator) -> NDArray[np.uint8]:
    return draw.integers(90, 160, (SIDE, SIDE, 3), dtype=np.uint8)


def _square(draw: np.random.Generator) -> tuple[int, int, int]:
    side = int(draw.integers(20, 44))
    x, y = (int(at) for at in draw.integers(0, SIDE - side, 2))
    return x, y, side
