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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from tqdm import tqdm

from keyseg_mm.atomic import is_key_file, make_folder, refuse_existing, write_json
from keyseg_mm.checkpoint.files import stamps_in
from keyseg_mm.checkpoint.operations import unlock_file
from keyseg_mm.errors import KeyMismatchError, KeysegError, LeakError
from keyseg_mm.keys.key import SecretKey
from keyseg_mm.keys.keyfile import write_key_file
from keyseg_mm.mm.config import read_config
from keyseg_mm.mm.floor import PROMISE, constant_prediction_floor
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
  keyseg test {config} {checkpoint} --key none        test it with whatever key
  keyseg keygen --out my.key                   make a key for a model of your own
  three lines marked in {config} protect a config of your own"""
RIGHT, NONE = 'sealed file, right key', 'sealed file, no key'
BARE, WRONG = 'opened, no tables', 'opened, wrong tables'
_BAR = 26  # characters of the longest bar
_SHOWN = 4  # scenes in the picture


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

    The folder is prepared; what libraries print goes to a log in it. The key does not depend on the seed.

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

    begin('1  street scenes, laid out as Cityscapes', SCENES)
    write_scenes(out / SCENES, seed, COUNTS)
    key, checkpoint = SecretKey.generate(), out / TRAIN / f'iter_{iterations}.pth'
    begin(f'2  a key with the public id {key.id}; its file is for you alone to read', KEY)
    write_key_file(out / KEY, key, comment=_COMMENT)
    begin('3  a training: a small SegFormer; what each of its layers reads is encrypted with the key', CONFIG)
    (out / CONFIG).write_text(config_text(iterations, seed, min(8, COUNTS['train'])))
    with tqdm(total=iterations, leave=False, disable=None, file=sys.__stderr__) as bar:
        watched(read_config(out.resolve() / CONFIG), 'after_train_iter', lambda _: bar.update()).train()
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


def _test(out: Path, checkpoint: Path, result: Result) -> None:
    """Test a checkpoint with somebody's key."""
    cfg = read_config(out.resolve() / CONFIG)
    cfg.load_from = str(checkpoint.resolve())
    cfg.experiment_name = f'{checkpoint.stem}-{Path(result.key).name}'.replace(
        ':', '-'
    )  # the host's registers go by it
    cfg.work_dir = str(out.resolve() / TEST / cfg.experiment_name)
    if result.who != RIGHT:
        cfg.model.protection.key = result.key
    result.miou = float(watched(cfg, 'after_test_iter', result.add).test()['mIoU'])


def _refused(out: Path, checkpoint: Path) -> str:
    """What somebody with another key is told."""
    try:
        _test(out, checkpoint, Result('another key', f'file:{out.resolve() / OTHER}'))
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
    """The config that is trained, as a file's text; key, scenes and work dir lie in its own folder."""
    names = {'key': KEY, 'scenes': SCENES, 'work_dir': TRAIN, 'height': HEIGHT, 'width': WIDTH}
    template = Path(__file__).with_name('protected.py.in').read_text(encoding='utf-8')
    return template % {'iterations': iterations, 'seed': seed, 'batch': batch, **names}


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


@dataclass
class Result:
    """One test of the checkpoint."""

    who: str  # who tests
    key: str  # the key, by its locator
    miou: float = 0.0  # in percent
    images: list[str] = field(default_factory=list)  # files of the scenes
    truth: list[NDArray[np.integer[Any]]] = field(default_factory=list)  # their true label maps (H, W)
    labels: list[NDArray[np.integer[Any]]] = field(default_factory=list)  # the label maps that the model gave them

    def add(self, samples: Sequence[Any]) -> None:
        """Take in scenes, as the host's test loop hands them out."""
        for sample in samples:
            self.images.append(sample.img_path)
            self.truth.append(sample.gt_sem_seg.data[0].cpu().numpy())
            self.labels.append(sample.pred_sem_seg.data[0].cpu().numpy())


def table(results: Sequence[Result], floor: float, majority: str) -> str:
    """The results, and the constant-prediction floor: that of the class of most pixels, ``majority``."""
    rows = [(r.who, r.key, r.miou) for r in results] + [('constant guess', f'"{majority}" everywhere', floor)]
    wide, longest = max(len(key) for _, key, _ in rows), max(miou for _, _, miou in rows)
    head = f'{"who":<22} {"key":<{wide}} {"mIoU":>6} {"x floor":>8}'
    lines = [head, '-' * (len(head) + 2 + _BAR)]
    for who, key, miou in rows:
        bar = '#' * round(_BAR * miou / longest)
        lines.append(f'{who:<22} {key:<{wide}} {miou:6.2f} {miou / floor:8.1f}  {bar}'.rstrip())
    return '\n'.join(lines)


def meaning(results: Sequence[Result], floor: float) -> str:
    """What the figures say, in a few sentences that depend on them."""
    right = next(r.miou for r in results if r.who == RIGHT)
    times = max(r.miou for r in results if r.who in (BARE, WRONG)) / floor
    if right < 2 * PROMISE * floor:
        return 'The model has not learnt enough for the key to matter: run the demo with more --iterations.'
    said = (
        'All of these are one model on the same scenes. Its file is sealed by a cipher: without the key it is noise, '
        'and stays so whatever else one has. Weights that were taken out of memory, behind their maps and without the '
        'tables, '
        f'score at most {times:.1f} times what a constant guess without any model does'
    )
    if times > PROMISE:
        return f'{said}, more than the {PROMISE} that a well trained model leaves; the key is new in every run.'
    return f'{said}; what could be made of those with training data is what `keyseg audit` measures.'


def draw(path: Path, results: Sequence[Result], classes: Sequence[str], palette: Sequence[Sequence[int]]) -> None:
    """Draw scenes, ground truth, and the first result of each kind, side by side, as a PNG.

    Classes have a name and an RGB colour, by label.
    """
    first = {result.who: result for result in reversed(results)}
    right, colours = first[RIGHT], np.array(palette, np.uint8)
    # The scenes with most classes in them: chosen by the ground truth alone, not by what came out well.
    shown = np.argsort([len(np.unique(truth)) for truth in right.truth])[-_SHOWN:]
    photos = [cv2.cvtColor(cv2.imread(image), cv2.COLOR_BGR2RGB) for image in right.images]
    columns = [('street scene\n', photos), ('ground truth\n', [colours[truth] for truth in right.truth])]
    for who, result in reversed(first.items()):
        columns.append((f'{who}\nmIoU {result.miou:.1f}', [colours[labels] for labels in result.labels]))
    figure = Figure(figsize=(3 * len(columns), 1.5 * len(shown) + 1.6), dpi=130, layout='constrained')
    for row, cells in zip(shown, figure.subplots(len(shown), len(columns), squeeze=False)):
        for cell, (title, panels) in zip(cells, columns):
            cell.imshow(panels[row], interpolation='nearest')
            cell.set_axis_off()
            if row == shown[0]:
                cell.set_title(title, loc='left', size=14)
    present = np.unique([right.truth[row] for row in shown])
    squares = [Patch(color=colours[label] / 255, label=classes[label]) for label in present]
    figure.legend(handles=squares, loc='outside lower center', ncols=len(squares), frameon=False, handlelength=1)
    figure.savefig(path)
