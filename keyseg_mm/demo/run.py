"""One run of the demo, step by step."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import shutil
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from keyseg_mm.atomic import is_key_file, make_folder, refuse_existing, write_json
from keyseg_mm.checkpoint.files import stamps_in
from keyseg_mm.checkpoint.operations import unlock_file
from keyseg_mm.demo.report import BARE, NONE, RIGHT, WRONG, Result, draw, meaning, table
from keyseg_mm.errors import KeyMismatchError, KeysegError, LeakError
from keyseg_mm.keys.key import SecretKey
from keyseg_mm.keys.keyfile import write_key_file
from keyseg_mm.mm.floor import constant_prediction_floor
from keyseg_mm.mm.scenes import HEIGHT, WIDTH, write_scenes
from keyseg_mm.runtime.leaks import find_leaks

KEY, OTHER, SCENES, CONFIG, TRAIN, TEST = 'demo.key', 'other.key', 'scenes', 'protected.py', 'train', 'test'
OPENED = 'in-the-open.pth'
LOG, TABLE, RESULTS, PICTURE = 'demo.log', 'table.txt', 'results.json', 'segmentations.png'
MADE = (KEY, OTHER, OPENED, SCENES, CONFIG, TRAIN, TEST, LOG, TABLE, RESULTS, PICTURE)
WRONG_TABLES = ('random:1', 'random:2', 'random:3')
COUNTS = {'train': 160, 'val': 40}  # scenes
_COMMENT = 'made by keyseg demo'  # in its key files: others are not replaced
_NEXT = """\
  keyseg show {checkpoint}                     what the checkpoint says of its protection
  keyseg test {config} {checkpoint} --cfg-options model.protection.key=none      test it with whatever key
  keyseg keygen --out my.key                   make a key for a model of your own
  three lines marked in {config} protect a config of your own"""


def prepare(out: Path, overwrite: bool) -> None:
    """Make the demo's folder, or clear it of what an earlier demo made in it; other files stay.

    Raises:
        KeysegError: it is not empty; with ``overwrite``, no demo has written to it, or it holds links, devices or keys
            of others; it cannot be used.
    """
    try:
        make_folder(out)
        if any(out.iterdir()) and not (overwrite and (out / LOG).is_file()):
            why = 'no demo is known to have made it' if overwrite else '--overwrite replaces what an earlier demo made'
            raise KeysegError(f'{out} is not empty and was left as it is; {why}; give another folder with --out')
        there = [path for path in (out / name for name in MADE) if os.path.lexists(path)]
        folders = [path for path in there if path.is_dir() and not path.is_symlink()]
        files = [path for path in there if path not in folders]
        for path in files:
            if not (is_key_file(path) and _COMMENT in path.read_text()):
                refuse_existing(path, overwrite=True)
        for path in folders:
            shutil.rmtree(path)
        for path in files:
            path.unlink()
        (out / LOG).touch()
    except OSError as error:
        raise KeysegError(f'{out} cannot be used as a folder: {error}; give another with --out') from None


def run(out: Path, iterations: int, seed: int, say: Callable[[str], object]) -> None:
    """Make scenes and a key, train with it, test with and without it, and tell what came out.

    Args:
        out: folder that it writes to, prepared.
        iterations: length of the training.
        seed: of scenes and training; the key does not depend on it.
        say: told what is done; what libraries print goes to a log.

    Raises:
        KeysegError: something failed; the log has the whole story.
    """
    with quiet(out / LOG):
        try:
            _run(out, iterations, seed, say)
        except Exception as error:
            traceback.print_exc()
            raise KeysegError(f'{type(error).__name__}: {error}\n{out / LOG} has the whole story') from None


def _run(out: Path, iterations: int, seed: int, say: Callable[[str], object]) -> None:
    def begin(words: str, place: str | Path) -> None:
        say(f'{words}\n    {out / place}')

    import keyseg_mm.mm  # noqa: F401 - puts the mends in place before a config is read

    begin('1  street scenes, laid out as Cityscapes', SCENES)
    write_scenes(out / SCENES, seed, COUNTS)
    key, checkpoint = SecretKey.generate(), out / TRAIN / f'iter_{iterations}.pth'
    begin(f'2  a key with the public id {key.id}; its file is for you alone to read', KEY)
    write_key_file(out / KEY, key, comment=_COMMENT)
    begin("3  a training: a small SegFormer; its backbone's four feature maps are encrypted with the key", CONFIG)
    (out / CONFIG).write_text(config_text(iterations, seed, min(8, COUNTS['train'])))
    with tqdm(total=iterations, leave=False, disable=None, file=sys.__stderr__) as bar:
        watched(read(out), 'after_train_iter', lambda _: bar.update()).train()
    begin('4  tests: the sealed file, with its key, without one, and with another', checkpoint.relative_to(out))
    write_key_file(out / OTHER, SecretKey.generate(), comment=f'{_COMMENT}: another key')
    results = [Result(RIGHT, f'file:{KEY}'), Result(NONE, 'none')]
    for result in results:
        _test(out, checkpoint, result)
    say(f'    another key: {_refused(out, checkpoint)}')
    begin('5  the same weights out of memory, without the seal: their maps are still there, and take tables', OPENED)
    unlock_file(checkpoint, key, out / OPENED, keep_maps=True)
    open_weights = [Result(BARE, 'none'), *(Result(WRONG, name) for name in WRONG_TABLES)]
    for result in open_weights:
        _test(out, out / OPENED, result)
    results += open_weights
    begin('6  what each of them sees, side by side', PICTURE)
    floor = _report(out, results, {'key_id': key.id, 'iterations': iterations, 'seed': seed, 'scenes': COUNTS})
    begin('7  a search for the key and its tables in every file, but for the key file', '')
    stamps = stamps_in(checkpoint).values()
    leaks = [leak for path in out.iterdir() if path.name != KEY for leak in find_leaks(path, key, stamps)]
    if leaks:
        raise LeakError('secret material was written: ' + '; '.join(map(str, leaks)))
    quoted = {'config': shlex.quote(str(out / CONFIG)), 'checkpoint': shlex.quote(str(checkpoint))}
    say('\n' + (out / TABLE).read_text(encoding='utf-8') + '\n' + textwrap.fill(meaning(results, floor), 96))
    say('\nWhat to do next:\n' + _NEXT.format(**quoted))


def _test(out: Path, checkpoint: Path, result: Result, cfg: Any = None) -> None:
    """Test a checkpoint with somebody's key."""
    cfg = cfg or read(out)
    cfg.load_from = str(checkpoint.resolve())
    cfg.experiment_name = f'{checkpoint.stem}-{result.key}'.replace(':', '-')  # the host's registers go by it
    cfg.work_dir = str(out.resolve() / TEST / cfg.experiment_name)
    if result.who != RIGHT:
        cfg.model.protection.key = result.key
    result.miou = float(watched(cfg, 'after_test_iter', result.add).test()['mIoU'])


def _refused(out: Path, checkpoint: Path) -> str:
    """What somebody with another key is told."""
    other = Result(RIGHT, f'file:{OTHER}')
    cfg = read(out)
    cfg.model.protection.key = f'file:{out.resolve() / OTHER}'
    try:
        _test(out, checkpoint, other, cfg)
    except KeyMismatchError as error:
        return f'refused. {error}'
    raise LeakError('another key opened the checkpoint; please report this')


def _report(out: Path, results: list[Result], facts: dict[str, Any]) -> float:
    """Write table, figures and picture; returns the constant-prediction floor."""
    from mmseg.datasets import CityscapesDataset

    classes, palette = (CityscapesDataset.METAINFO[name] for name in ('classes', 'palette'))
    draw(out / PICTURE, results, classes, palette)
    truth = results[0].truth
    floor = constant_prediction_floor(truth, len(classes))
    majority = classes[np.bincount(np.concatenate(truth, axis=None)).argmax()]
    (out / TABLE).write_text(table(results, floor, majority) + '\n', encoding='utf-8')
    write_json(out / RESULTS, {**facts, 'floor': floor, 'mIoU': {f'{r.who}: {r.key}': r.miou for r in results}})
    return floor


def config_text(iterations: int, seed: int, batch: int) -> str:
    """The config that is trained, as a file's text; key, scenes and work dir lie in its own folder.

    Args:
        iterations: length of the training.
        seed: of the run; the key does not depend on it.
        batch: scenes in each iteration.
    """
    names = {'key': KEY, 'scenes': SCENES, 'work_dir': TRAIN, 'height': HEIGHT, 'width': WIDTH}
    template = Path(__file__).with_name('protected.py.in').read_text(encoding='utf-8')
    return template % {'iterations': iterations, 'seed': seed, 'batch': batch, **names}


def read(out: Path) -> Any:
    """The demo's config."""
    from mmengine.config import Config

    return Config.fromfile(str(out.resolve() / CONFIG))


@contextlib.contextmanager
def quiet(log: Path) -> Iterator[None]:
    """Send standard output, standard error, and what reaches the root logger, to the end of a file."""
    root = logging.getLogger()
    with log.open('a', encoding='utf-8') as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        kept, root.handlers = root.handlers, [logging.StreamHandler(file)]
        try:
            yield
        finally:
            root.handlers = kept


def watched(cfg: Any, event: str, call: Callable[[Any], object]) -> Any:
    """A Runner that hands the outputs of an event of the host's hooks, such as ``after_test_iter``, to ``call``."""
    from mmengine.hooks import Hook
    from mmengine.runner import Runner

    def at_event(self: Any, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        call(outputs)

    runner = Runner.from_cfg(cfg)
    runner.register_hook(type('Watch', (Hook,), {event: at_event})())
    return runner
