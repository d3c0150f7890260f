"""What a config's test data say by themselves: the constant-prediction floor, and the photos that a page shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from numpy.typing import NDArray

from keyseg_mm.audit.model.loading import num_classes_of
from keyseg_mm.audit.report.pictures import colour_png, painted, png
from keyseg_mm.errors import KeysegError
from keyseg_mm.mm.config import build_plain_model
from keyseg_mm.mm.floor import constant_prediction_floor
from keyseg_mm.mm.image_files import read_image

_SHOWN = 3


@dataclass(frozen=True)
class TestData:
    """What a comparison has to know of a config's test data.

    Attributes:
        floor: mIoU, in percent, of the best constant guess.
        photos: how many there are.
        palette: colours of the classes, as (red, green, blue).
        shifted: whether labels are one more in the files than in the model.
        names: of the photos that a page shows, taken from all over the data.
        pictures, truths: of these photos, as base64 PNGs.
    """

    __test__ = False  # no test of pytest's

    floor: float
    photos: int
    palette: list[list[int]]
    shifted: bool
    names: list[str]
    pictures: list[str]
    truths: list[str]

    @classmethod
    def read(cls, cfg: Config) -> TestData:
        """Read the test data of a plain config.

        Raises:
            KeysegError: they cannot be read.
        """
        from mmseg.registry import DATASETS, TRANSFORMS

        init_default_scope(cfg.get('default_scope', 'mmseg'))
        classes = num_classes_of(build_plain_model(cfg))
        try:
            dataset: Any = DATASETS.build(cfg.test_dataloader.dataset)
            shifted, count = bool(getattr(dataset, 'reduce_zero_label', False)), len(dataset)
            load = TRANSFORMS.build({'type': 'LoadAnnotations', 'reduce_zero_label': shifted})
            labels = (load(dataset.get_data_info(index))['gt_seg_map'] for index in range(count))
            floor = constant_prediction_floor(labels, classes)
            places = np.linspace(0, count - 1, min(_SHOWN, count)).round()
            shown = [load(dataset.get_data_info(int(index))) for index in places]
        except Exception as error:  # the host raises whatever it likes for missing folders
            raise KeysegError(f'test_dataloader.dataset: {type(error).__name__}: {error}; check data_root') from None
        palette = [list(map(int, colour)) for colour in dataset.metainfo.get('palette') or ()]
        paths = [Path(sample['img_path']) for sample in shown]
        pictures = [colour_png(read_image(path)) for path in paths]
        truths = [_painted(sample['gt_seg_map'], palette) for sample in shown]
        return cls(floor, count, palette, shifted, [path.stem for path in paths], pictures, truths)

    def shown(self, folder: Path) -> list[Path]:
        """The files of the shown photos among the label maps that the host's test wrote into a folder."""
        return [folder / f'{name}.png' for name in self.names]

    def segmented(self, folder: Path) -> list[str]:
        """These label maps in colours, as base64 PNGs; empty where a test left none."""
        labels = [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in self.shown(folder) if path.is_file()]
        # where data sets leave out label 0, the host writes classes from 1 on
        return [_painted(label - self.shifted, self.palette) for label in labels if label is not None]


def _painted(label: NDArray[Any], palette: list[list[int]]) -> str:
    return painted(png(torch.from_numpy(label.astype(np.uint8))), palette)
