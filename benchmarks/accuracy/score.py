"""What a checkpoint is worth: with its key, without one, and with wrong ones, in one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

import keyseg_mm.mm  # noqa: F401 - the mends, before a config is read
from keyseg_mm.keys.key import wrong_key
from keyseg_mm.mm.floor import floor_of_dataset
from keyseg_mm.runtime.strangers import seen_by

# Every second photo for who has the key, every tenth for strangers: there are many of them, and the limit is coarse.
OWN, OTHER = 2, 10


def score(
    config: Path, checkpoint: Path, options: list[str], out: Path, key: str = '', wrong: int = 10
) -> dict[str, float]:
    """mIoU of a checkpoint, in percent, and the constant-prediction floor of the same photos.

    Args:
        config: plain, or protected.
        checkpoint: for it.
        options: as ``--cfg-options`` takes them, of texts alone.
        out: a new folder; what was scored into it before is taken over.
        key: locator, of a protected one. Then also without a key, and with the wrong keys ``1`` to ``wrong``, by name;
            these on every tenth photo, with the floor there.
    """
    done = out / 'scores.json'
    if not done.exists():
        whole = _cfg(config, checkpoint, options, out / 'whole', key, OWN)
        row = {'right key' if key else 'plain': _tested(whole)[0], 'floor': _floor(whole)}
        if key and wrong:
            part = _cfg(config, checkpoint, options, out / 'part', key, OTHER)
            row.update(zip(['', 'no key', *(f'wrong key {n + 1}' for n in range(wrong))], _tested(part, wrong)))
            row.pop('')
            row['floor there'] = _floor(part)
        done.write_text(json.dumps(row, indent=1) + '\n')
    return {name: float(value) for name, value in json.loads(done.read_text()).items()}


def _cfg(config: Path, checkpoint: Path, options: list[str], work_dir: Path, key: str, every: int) -> Any:
    """A config ready to test every so many photos."""
    cfg = Config.fromfile(str(config))
    cfg.merge_from_dict(dict(option.split('=', 1) for option in options))
    cfg.work_dir, cfg.load_from, cfg.experiment_name = str(work_dir), str(checkpoint), '-'.join(work_dir.parts[-4:])
    cfg.log_level = 'WARNING'
    if key:
        cfg.model.protection.key = key
    cfg.test_dataloader.dataset.indices = list(range(0, len(_photos(cfg)), every))
    return cfg


def _tested(cfg: Any, wrong: int | None = None) -> list[float]:
    """mIoU as the config's owner has it; and, where wrong keys are asked for, without a key and with each of them."""
    runner = Runner.from_cfg(cfg)
    found = [float(runner.test()['mIoU'])]
    strangers = [] if wrong is None else [None, *(wrong_key(str(n + 1)) for n in range(wrong))]
    for key in strangers:
        with seen_by(runner.model, key):
            found.append(float(runner.test_loop.run()['mIoU']))
    return found


def _photos(cfg: Any) -> Any:
    from mmseg.registry import DATASETS

    init_default_scope('mmseg')
    return DATASETS.build(cfg.test_dataloader.dataset)


def _floor(cfg: Any) -> float:
    init_default_scope('mmseg')
    return floor_of_dataset(cfg.test_dataloader.dataset, len(_photos(cfg).metainfo['classes']))
