"""What a config's test data say by themselves: the constant-prediction floor, and the photos that a page shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from numpy.typing import NDArray

from keyseg_mm.audit.model.loading import num_classes_of
from keyseg_mm.audit.report.pictures import colour_png, png
from keyseg_mm.errors import KeysegError
from keyseg_mm.mm.config import build_plain_model
from keyseg_mm.mm.floor import constant_prediction_floor

SHOWN = 3
_WIDEST = 480  # pixels; as wide as a page shows them
_MANY = 40  # pixels of a class for it to count as one that is in a photo


def look_at(cfg: Config) -> dict[str, Any]:
    """Floor, classes, and the shown photos with their truth: those with most classes, chosen by the truth alone.

    Args:
        cfg: a plain config.

    Raises:
        KeysegError: its test data cannot be read.
    """
    from mmseg.registry import DATASETS, TRANSFORMS

    init_default_scope(cfg.get('default_scope', 'mmseg'))
    classes = num_classes_of(build_plain_model(cfg))
    try:
        dataset: Any = DATASETS.build(cfg.test_dataloader.dataset)
        shifted = bool(getattr(dataset, 'reduce_zero_label', False))
        load = TRANSFORMS.build({'type': 'LoadAnnotations', 'reduce_zero_label': shifted})
        variety: list[int] = []

        def labels() -> Any:
            for index in range(len(dataset)):
                label = load(dataset.get_data_info(index))['gt_seg_map']
                variety.append(int((np.bincount(label[label < classes].ravel(), minlength=1) > _MANY).sum()))
                yield label

        floor = constant_prediction_floor(labels(), classes)
        shown = most_varied(variety)
        pictures = [_pictures(dataset.get_data_info(index), load) for index in shown]
    except KeysegError:
        raise
    except Exception as error:  # the host raises whatever it likes for missing folders
        raise KeysegError(f'test_dataloader.dataset: {type(error).__name__}: {error}; check data_root') from None
    meta = dataset.metainfo
    return {
        'floor': floor,
        'photos': len(variety),
        'classes': [str(name) for name in meta.get('classes') or ()],
        'palette': [list(map(int, colour)) for colour in meta.get('palette') or ()],
        'shifted': shifted,
        'shown': pictures,
    }


def most_varied(variety: list[int]) -> list[int]:
    """Numbers of the shown photos: of each part of the data the one with most classes, as neighbours are alike."""
    parts = [part for part in np.array_split(np.arange(len(variety)), SHOWN) if len(part)]
    return [int(max(part, key=lambda index: variety[index])) for part in parts]


def _pictures(sample: dict[str, Any], load: Any) -> dict[str, str]:
    path = Path(sample['img_path'])
    image = cv2.imread(str(path))
    if image is None:
        raise KeysegError(f'{path}: this photo cannot be read')
    label = load(sample)['gt_seg_map']
    return {'name': path.stem, 'photo': colour_png(image[..., ::-1]), 'truth': label_png(label)}


def label_png(label: NDArray[Any]) -> str:
    """A label map (H, W) as a base64 PNG, no wider than a page shows it."""
    height, width = label.shape
    label = label.astype(np.uint8)
    if width > _WIDEST:
        size = (_WIDEST, max(1, round(height * _WIDEST / width)))
        label = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST)
    return png(torch.from_numpy(np.ascontiguousarray(label)))


def segmented(folder: Path, facts: dict[str, Any]) -> list[str]:
    """The label maps of the shown photos that the host's test wrote, as base64 PNGs; empty where it wrote none.

    Args:
        folder: that was given to the test as ``--out``.
        facts: of :func:`look_at`.
    """
    found = []
    for picture in facts['shown']:
        path = folder / f'{picture["name"]}.png'
        label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) if path.is_file() else None
        if label is None:
            return []
        # where data sets leave out label 0, the host writes classes from 1 on
        found.append(label_png(label - 1 if facts['shifted'] else label))
    return found
