"""One run of the demo, step by step."""

from __future__ import annotations

import contextlib
import logging
import shlex
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from keyseg_mm.atomic import write_json
from keyseg_mm.checkpoint.files import stamps_in
from keyseg_mm.demo.report import NONE, RIGHT, WRONG, Result, draw, meaning, next_steps, table
from keyseg_mm.errors import KeysegError, LeakError
from keyseg_mm.keys.key import SecretKey
from keyseg_mm.keys.keyfile import write_key_file
from keyseg_mm.mm.floor import constant_prediction_floor
from keyseg_mm.mm.scenes import street
from keyseg_mm.runtime.leaks import find_leaks

KEY, SCENES, CONFIG, TRAIN, TEST = 'demo.key', 'scenes', 'protected.py', 'train', 'test'
LOG, TABLE, RESULTS, PICTURE = 'demo.log', 'table.txt', 'results.json', 'segmentations.png'
MADE = (KEY, SCENES, CONFIG, TRAIN, TEST, LOG, TABLE, RESULTS, PICTURE)
MARK = '.made_by_keyseg_demo'  # in a folder that a demo has written to
WRONG_KEYS = ('random:1', 'random:2', 'random:3')
COUNTS = {'train': 160, 'val': 40}  # scenes
STEPS = ('scenes', 'key', 'train', 'test', 'picture', 'search')


def prepare(out: Path, overwrite: bool) -> None:
    """Make the demo's folder, or clear it of what an earlier demo made in it; other files stay.

    Raises:
        KeysegError: it is not empty; with ``overwrite``, no demo has written to it; it cannot be used.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()) and not (overwrite and (out / MARK).is_file()):
            why = 'no demo is known to have made it' if overwrite else '--overwrite replaces what an earlier demo made'
            raise KeysegError(f'{out} is not empty and was left as it is; {why}; give another folder with --out')
        for path in (out / name for name in MADE):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        (out / MARK).touch()
    except OSError as error:
        why = error.strerror or str(error)
        raise KeysegError(f'{out} cannot be used as a folder: {why}; give another with --out') from None


class Demo:
    """Makes scenes and a key, trains with it, tests with and without it, and tells what came out.

    Args:
        out: folder that it writes to, prepared.
        iterations: length of the training.
        seed: of scenes and training; the key does not depend on it.

    Attributes:
        step: the step under way.
    """

    def __init__(self, out: Path, iterations: int, seed: int) -> None:
        self.out, self.iterations, self.seed, self.step = out, iterations, seed, 'start'
        self.checkpoint = out / TRAIN / f'iter_{iterations}.pth'
        self._screen, self._bars = sys.stdout, sys.stderr

    def run(self) -> None:
        """All steps, told on the screen; what libraries print, log and warn goes to a file."""
        start = time.monotonic()
        self._say('keyseg demo: one model, one checkpoint, with and without its key; a few minutes\n')
        with quiet(self.out / LOG):
            import keyseg_mm.mm  # noqa: F401 - puts the mends in place before a config is read

            self._make_scenes()
            key = self._make_key()
            self._train()
            results = self._test()
            floor = self._report(results, key)
            self._search(key)
        self._say('\n' + (self.out / TABLE).read_text(encoding='utf-8'))
        self._say(textwrap.fill(meaning(results, floor), 96))
        self._say(f'\nThis took {(time.monotonic() - start) / 60:.1f} minutes. What to do next:\n')
        self._say(next_steps(shlex.quote(str(self.out / CONFIG)), shlex.quote(str(self.checkpoint))))

    def _say(self, text: str) -> None:
        """Print; a question mark where the terminal lacks a character."""
        encoding = self._screen.encoding or 'ascii'
        print(text.encode(encoding, 'replace').decode(encoding), file=self._screen, flush=True)

    def _begin(self, step: str, words: str, place: str | Path) -> None:
        """Announce a step, and where what it makes is to be found."""
        self.step = step
        self._say(f'{STEPS.index(step) + 1}  {step:<9}{words}\n{"":12}{self.out / place}')

    def _progress(self, total: int) -> Any:
        """A progress bar that is gone when it is done; in a log file a line every half minute."""
        shape = '   {desc:<24} {percentage:3.0f}% |{bar:28}| {n}/{total}  {remaining} left'
        pace = 0.2 if self._bars.isatty() else 30.0
        return tqdm(total=total, desc=self.step, bar_format=shape, leave=False, mininterval=pace, file=self._bars)

    def _make_scenes(self) -> None:
        total = sum(COUNTS.values())
        self._begin('scenes', f'{total} street scenes, laid out as Cityscapes', SCENES)
        with self._progress(total) as bar:
            street.write_scenes(self.out / SCENES, self.seed, COUNTS, bar.update)

    def _make_key(self) -> SecretKey:
        key = SecretKey.generate()
        self._begin('key', f'public id {key.id}; its file is for you alone to read', KEY)
        write_key_file(self.out / KEY, key, comment='made by keyseg demo')
        return key

    def _train(self) -> None:
        """The protected model, by the host's own Runner."""
        (self.out / CONFIG).write_text(config_text(self.iterations, self.seed, min(8, COUNTS['train'])))
        self._begin('train', "a small SegFormer; its backbone's four feature maps are encrypted with the key", CONFIG)
        losses: list[float] = []
        with self._progress(self.iterations) as bar:

            def take(outputs: Any) -> None:
                losses.append(float(outputs['loss'].detach()))
                bar.set_description_str(f'train, loss {np.mean(losses[-20:]):.2f}', refresh=False)
                bar.update()

            watched(self._config(), 'after_train_iter', take).train()

    def _test(self) -> list[Result]:
        """The checkpoint with its key, without one, and with wrong ones."""
        words = 'the same checkpoint for everybody; only the key differs'
        self._begin('test', words, self.checkpoint.relative_to(self.out))
        results = [Result(RIGHT, f'file:{KEY}'), Result(NONE, 'none'), *(Result(WRONG, key) for key in WRONG_KEYS)]
        with self._progress(len(results) * COUNTS['val']) as bar:
            for result in results:
                cfg = self._config()
                cfg.load_from = str(self.checkpoint.resolve())
                # The host's registers go by the experiment's name; tests may follow in the same second.
                cfg.experiment_name = result.key.replace(':', '-')
                cfg.work_dir = str(self.out.resolve() / TEST / cfg.experiment_name)
                if result.who != RIGHT:
                    cfg.model.protection.key = result.key

                def take(samples: Any, result: Result = result) -> None:
                    result.add(samples)
                    bar.update(len(samples))

                result.miou = float(watched(cfg, 'after_test_iter', take).test()['mIoU'])
        return results

    def _report(self, results: list[Result], key: SecretKey) -> float:
        """Write table, figures and picture; returns the constant-prediction floor."""
        from mmseg.datasets import CityscapesDataset

        self._begin('picture', 'what each of them sees, side by side', PICTURE)
        classes, palette = (CityscapesDataset.METAINFO[name] for name in ('classes', 'palette'))
        draw(self.out / PICTURE, results, classes, palette)
        truth = results[0].truth
        floor = constant_prediction_floor(truth, len(classes))
        majority = classes[np.bincount(np.concatenate(truth, axis=None)).argmax()]
        (self.out / TABLE).write_text(table(results, floor, majority) + '\n', encoding='utf-8')
        facts = {'key_id': key.id, 'iterations': self.iterations, 'seed': self.seed, 'scenes': COUNTS}
        write_json(self.out / RESULTS, {**facts, 'floor': floor, 'mIoU': {r.key: r.miou for r in results}})
        return floor

    def _search(self, key: SecretKey) -> None:
        """Look for the key and its tables in all that was written, but for the key file.

        Raises:
            LeakError: found some.
        """
        self._begin('search', 'for the key and its tables in every file, but for the key file', '')
        stamps = stamps_in(self.checkpoint).values()
        leaks = [leak for path in self.out.iterdir() if path.name != KEY for leak in find_leaks(path, key, stamps)]
        if leaks:
            raise LeakError('secret material was written: ' + '; '.join(map(str, leaks)))
        self._say(f'{"":12}none found')

    def _config(self) -> Any:
        from mmengine.config import Config

        return Config.fromfile(str(self.out.resolve() / CONFIG))


def config_text(iterations: int, seed: int, batch: int) -> str:
    """The config that is trained, as a file's text; key, scenes and work dir lie in its own folder.

    Args:
        iterations: length of the training.
        seed: of the run; the key does not depend on it.
        batch: scenes in each iteration.
    """
    names = {'key': KEY, 'scenes': SCENES, 'work_dir': TRAIN, 'height': street.HEIGHT, 'width': street.WIDTH}
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
