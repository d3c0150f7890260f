"""The data sets of a config, read photo by photo through a pipeline of the audit's own, all to one size."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS

from keyseg_mm.errors import KeysegError
from keyseg_mm.mm.config import innermost, pipeline_of

T = TypeVar('T')
ENCRYPTING = ('EncryptImage',)  # steps of pipelines


class PhotoSet:
    """One data set of a config.

    Args:
        cfg: the config.
        split: ``'train'`` or ``'test'``. The test pipeline is used for both: attackers bring their own augmentation.
        change: makes the pipeline to read with from the config's test pipeline.
        step: sides become multiples of it.
        longest: photos whose longer side exceeds it are scaled down to it; None keeps their size.
        least: sides are at least so many steps.

    Attributes:
        size: height and width of all photos: that of the first one ever read, scaled.

    Raises:
        KeysegError: the config has no such data set, or it is empty or cannot be read.
    """

    def __init__(
        self,
        cfg: Config,
        split: str,
        change: Callable[[list[Any]], list[Any]],
        step: int,
        longest: int | None,
        least: int = 1,
    ) -> None:
        self._where, self._step, self._longest, self._least = f'{split}_dataloader.dataset', step, longest, least
        self.size: tuple[int, int] | None = None
        init_default_scope(cfg.get('default_scope', 'mmseg'))
        pipeline = change(pipeline_of(cfg))
        try:
            settings = copy.deepcopy(cfg[f'{split}_dataloader']['dataset'])
            innermost(settings)['pipeline'] = pipeline
        except (KeyError, AttributeError, TypeError):
            raise KeysegError(
                f'this config has no {self._where}: the audit takes the photos that it scores on from the test data, '
                "and the attackers' from the training data"
            ) from None
        try:
            self.dataset: Any = DATASETS.build(settings)
        except Exception as error:  # the host raises whatever it likes for missing folders
            raise KeysegError(f'{self._where}: {type(error).__name__}: {error}; check data_root') from None
        if not len(self):
            raise KeysegError(f'{self._where}: no photos there; check data_root and data_prefix')

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, numbers: Iterable[int], use: Callable[[Any], T]) -> Iterator[T]:
        """What a function makes of samples by their numbers, one after another.

        Raises:
            KeysegError: one cannot be read, or is of no use.
        """
        for number in numbers:
            try:
                yield use(self.dataset[int(number)])
            except Exception as error:  # the host raises whatever it likes for a broken file
                kind = '' if isinstance(error, KeysegError) else f'{type(error).__name__}: '
                raise KeysegError(f'{self._where}, photo {number}: {kind}{error}') from None

    def fit(self, size: Sequence[int]) -> tuple[int, int]:
        """The size of all photos, which the first one decides by its own height and width."""
        if self.size is None:
            self.size = common_size(size, self._step, self._longest, self._least)
        return self.size


def common_size(size: Sequence[int], step: int, longest: int | None, least: int = 1) -> tuple[int, int]:
    """Height and width in whole steps, no longer than ``longest`` where the least number of steps fits in it."""
    scale = min(1.0, longest / max(size)) if longest else 1.0
    height, width = (max(least, round(side * scale / step)) * step for side in size)
    return height, width


def nested_shares(total: int, shares: Sequence[float], seed: int, most: int | None) -> dict[float, list[int]]:
    """Numbers of photos for each share of all, ``most`` at most, the smaller ones contained in the larger ones."""
    order = np.random.default_rng(seed).permutation(total).tolist()
    counts = {share: min(max(1, round(share * total)), most or total) for share in shares}
    return {share: order[:count] for share, count in counts.items()}
