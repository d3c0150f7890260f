"""At each validation, what the model is worth without its key and with a wrong one: as curves and as pictures."""

from __future__ import annotations

from typing import Any

import mmcv
import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper

from keyseg_mm.errors import KeysegError
from keyseg_mm.keys.key import wrong_key
from keyseg_mm.mm.floor import floor_of_dataset
from keyseg_mm.runtime.strangers import seen_by

#: By what is said of them; the wrong key is one that anybody can make.
STRANGERS = {'without the key': None, 'with a wrong key': wrong_key('validation')}


class StrangersHook(Hook):
    """Validates a protected model again as strangers would run it; ``GuardHook(strangers=True)`` registers it.

    The figures go to the visualizer beside the right ones, as ``mIoU without the key``, ``mIoU with a wrong key`` and
    ``mIoU of a constant prediction``, for all of its backends (TensorBoard among them) at the same step; the first
    picture of the data set goes there as each of them sees it.
    """

    priority = 'VERY_HIGH'  # before EMA's hook puts the trained weights back

    def __init__(self) -> None:
        self._floor: float | None = None

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        found = {f'mIoU {who}': self._validate(runner, model, who) for who in STRANGERS}
        found['mIoU of a constant prediction'] = self._constant(runner)
        runner.visualizer.add_scalars(found, step=runner.iter)
        right = (metrics or {}).get('mIoU')
        words = ', '.join(f'{name.removeprefix("mIoU ")} {value:.2f}' for name, value in found.items())
        runner.logger.info(f'mIoU {"" if right is None else f"{right:.2f} with the key, "}{words}')

    def _validate(self, runner: Any, model: Any, who: str) -> float:
        loop = runner.val_loop
        with (
            torch.no_grad(),
            seen_by(model, STRANGERS[who]),
            torch.autocast(next(model.parameters()).device.type, enabled=loop.fp16),
        ):
            for index, batch in enumerate(loop.dataloader):
                outputs = runner.model.val_step(batch)
                loop.evaluator.process(data_samples=outputs, data_batch=batch)
                if index == 0:
                    self._draw(runner, outputs[0], who)
        found = loop.evaluator.evaluate(len(loop.dataloader.dataset))
        if 'mIoU' not in found:
            raise KeysegError('GuardHook(strangers=True) needs an evaluator that gives mIoU, as IoUMetric does')
        return float(found['mIoU'])

    @staticmethod
    def _draw(runner: Any, sample: Any, who: str) -> None:
        picture = mmcv.imread(sample.img_path, channel_order='rgb')
        runner.visualizer.add_datasample(
            f'val {who}', picture, data_sample=sample, draw_gt=False, show=False, step=runner.iter
        )

    def _constant(self, runner: Any) -> float:
        if self._floor is None:
            classes = len(runner.val_dataloader.dataset.metainfo['classes'])
            self._floor = floor_of_dataset(runner.cfg.val_dataloader.dataset, classes)
        return self._floor
