"""What a config's test data say by themselves: the constant-prediction floor, and the photos that a page shows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from numpy.typing import NDArray

from keyseg_mm.atomic import write_json
from keyseg_mm.audit.model.loading import num_classes_of
from keyseg_mm.audit.report.pictures import colour_png, png
from keyseg_mm.errors import KeysegError
from keyseg_mm.mm.config import build_plain_model
from keyseg_mm.mm.floor import constant_prediction_floor

SHOWN = 3
_MANY = 40  # pixels of a class for it to count as one that is in a photo


@dataclass(frozen=True)
class TestData:
    """What a comparison has to know of a config's test data.

    Attributes:
        floor: mIoU, in percent, of the best constant guess.
        photos: how many there are.
        palette: colours of the classes, as (red, green, blue).
        shifted: whether labels are one more in the files than in the model.
        names: of the shown photos, those with most classes, chosen by the truth alone.
        pictures, truths: of the shown photos, as base64 PNGs.
    """

    __test__ = False  # no test of pytest's

    floor: float
    photos: int
    palette: list[list[int]]
    shifted: bool
    names: list[str]
    pictures: list[str]
    truths: list[str]


def read_test_data(cfg: Config, folder: Path) -> TestData:
    """Read the test data of a plain config; what they say is kept in a folder, and not found out again.

    Raises:
        KeysegError: they cannot be read.
    """
    path = folder / 'data.json'
    try:
        return TestData(**json.loads(path.read_text(encoding='utf-8')))
    except (OSError, ValueError, TypeError):
        data = _read(cfg)
    write_json(path, asdict(data))
    return data


def _read(cfg: Config) -> TestData:
    from mmseg.registry import DATASETS, TRANSFORMS

    init_default_scope(cfg.get('default_scope', 'mmseg'))
    classes = num_classes_of(build_plain_model(cfg))
    variety: list[int] = []
    try:
        dataset: Any = DATASETS.build(cfg.test_dataloader.dataset)
        shifted = bool(getattr(dataset, 'reduce_zero_label', False))
        load = TRANSFORMS.build({'type': 'LoadAnnotations', 'reduce_zero_label': shifted})

        def labels() -> Iterator[NDArray[Any]]:
            for index in range(len(dataset)):
                label = load(dataset.get_data_info(index))['gt_seg_map']
                variety.append(int((np.bincount(label[label < classes].ravel(), minlength=1) > _MANY).sum()))
                yield label

        floor = constant_prediction_floor(labels(), classes)
        shown = [dataset.get_data_info(index) for index in most_varied(variety)]
        pictures = [_picture(Path(sample['img_path'])) for sample in shown]
        truths = [label_png(load(sample)['gt_seg_map']) for sample in shown]
    except KeysegError:
        raise
    except Exception as error:  # the host raises whatever it likes for missing folders
        raise KeysegError(f'test_dataloader.dataset: {type(error).__name__}: {error}; check data_root') from None
    palette = [list(map(int, colour)) for colour in dataset.metainfo.get('palette') or ()]
    names = [Path(sample['img_path']).stem for sample in shown]
    return TestData(floor, len(variety), palette, shifted, names, pictures, truths)


def most_varied(variety: list[int]) -> list[int]:
    """Numbers of the shown photos: of each part of the data the one with most classes, as neighbours are alike."""
    parts = [part for part in np.array_split(np.arange(len(variety)), SHOWN) if len(part)]
    return [int(max(part, key=lambda index: variety[index])) for part in parts]


def _picture(path: Path) -> str:
    image = cv2.imread(str(path))
    if image is None:
        raise KeysegError(f'{path}: this photo cannot be read')
    return colour_png(image[..., ::-1])


def label_png(label: NDArray[Any]) -> str:
    """A label map (H, W) as a base64 PNG."""
    return png(torch.from_numpy(label.astype(np.uint8)))


def segmented(folder: Path, data: TestData) -> list[str]:
    """The label maps of the shown photos that the host's test wrote, as base64 PNGs; empty where it wrote none.

    Args:
        folder: that was given to the test as ``--out``.
        data: the test data.
    """
    found = []
    for name in data.names:
        path = folder / f'{name}.png'
        label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) if path.is_file() else None
        if label is None:
            return []
        # where data sets leave out label 0, the host writes classes from 1 on
        found.append(label_png(label - 1 if data.shifted else label))
    return found
