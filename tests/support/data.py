"""Small data sets, drawn on the spot and laid out as the host expects them."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write_tiny_cityscapes(root: Path, images: int = 4, size: tuple[int, int] = (64, 64)) -> Path:
    """A few pictures of coloured blocks with their labels, laid out as Cityscapes."""
    import cv2

    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for index in range(images):
            label = np.kron(rng.integers(0, 5, (4, 4)), np.ones((size[0] // 4, size[1] // 4))).astype(np.uint8)
            image = (label[..., None] * np.array([50, 30, 10]) + rng.integers(0, 20, (*size, 3))).astype(np.uint8)
            for folder, suffix, what in (
                ('leftImg8bit', 'leftImg8bit', image),
                ('gtFine', 'gtFine_labelTrainIds', label),
            ):
                path = root / folder / split / 'town' / f'town_{index:06d}_000000_{suffix}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                assert cv2.imwrite(str(path), what)
    return root


def write_tiny_ade20k(root: Path, images: int = 4, size: tuple[int, int] = (61, 59)) -> Path:
    """The same laid out as ADE20K, of a size that no block divides; label 0 is what that data set leaves out."""
    import cv2

    rng = np.random.default_rng(1)
    for split in ('training', 'validation'):
        for index in range(images):
            label = np.kron(rng.integers(0, 6, (4, 4)), np.ones((16, 16)))[: size[0], : size[1]].astype(np.uint8)
            image = (label[..., None] * np.array([40, 20, 30]) + rng.integers(0, 20, (*size, 3))).astype(np.uint8)
            for folder, suffix, what in (('images', 'jpg', image), ('annotations', 'png', label)):
                path = root / folder / split / f'ADE_{index:08d}.{suffix}'
                path.parent.mkdir(parents=True, exist_ok=True)
                assert cv2.imwrite(str(path), what)
    return root
