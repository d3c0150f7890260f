"""The constant-prediction floor: the best mIoU that needs no model at all."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

# What the project promises of an unauthorised user's mIoU, in constant-prediction floors.
PROMISE = 2.5


def constant_prediction_floor(
    labels: Iterable[NDArray[np.integer]], num_classes: int, ignore_index: int = 255
) -> float:
    """mIoU, in percent, of the best prediction that says one class everywhere.

    The mean goes over the classes that occur, as in the host's IoUMetric: a class that is neither in the labels nor
    predicted has no IoU.

    Args:
        labels: label maps of any shape, class indices.
        num_classes: number of classes.
        ignore_index: label of pixels that do not count.
    """
    counts = np.zeros(num_classes, dtype=np.int64)
    for label in labels:
        counted = label[label != ignore_index].ravel()
        counts += np.bincount(counted, minlength=num_classes)[:num_classes]
    if not counts.any():
        return 0.0
    return float(100.0 * counts.max() / counts.sum() / (counts > 0).sum())


def floor_of_dataset(dataset_cfg: dict, num_classes: int) -> float:  # type: ignore[type-arg]
    """The floor of a config's data set, from its annotations alone.

    Args:
        dataset_cfg: as ``cfg.test_dataloader.dataset``.
        num_classes: number of classes.
    """
    from mmseg.registry import DATASETS, TRANSFORMS

    dataset = DATASETS.build(dataset_cfg)
    load = TRANSFORMS.build({'type': 'LoadAnnotations', 'reduce_zero_label': dataset.reduce_zero_label})
    samples = (dataset.get_data_info(i) for i in range(len(dataset)))
    return constant_prediction_floor((load(sample)['gt_seg_map'] for sample in samples), num_classes)
