"""One run of the demo, step by step."""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from keyseg_mm.atomic import write_new
from keyseg_mm.demo.folder import DemoFolder
from keyseg_mm.demo.report import NONE, RIGHT, WRONG, Result, meaning, next_steps, table
from keyseg_mm.demo.screen import INDENT, Screen, quiet
from keyseg_mm.errors import LeakError
from keyseg_mm.keys.key import SecretKey

KEY, SCENES, CONFIG, TRAIN, TEST = 'demo.key', 'scenes', 'protected.py', 'train', 'test'
LOG, TABLE, RESULTS, PICTURE = 'demo.log', 'table.txt', 'results.json', 'segmentations.png'
MADE = (KEY, SCENES, CONFIG, TRAIN, TEST, LOG, TABLE, RESULTS, PICTURE)
WRONG_KEYS = ('random:1', 'random:2', 'random:3')
COUNTS = {'train': 160, 'val': 40}  # scenes


class Demo:
    """Makes scenes and a key, trains with it, tests with and without it, and tells what came out.

    Args:
        folder: where it writes.
        iterations: length of the training.
        seed: of scenes and training; the key does not depend on it.

    Attributes:
        doing: the step under way, in words.
    """

    def __init__(self, folder: DemoFolder, iterations: int, seed: int) -> None:
        self.folder, self.out, self.iterations, self.seed = folder, folder.path, iterations, seed
        self.checkpoint = self.out / TRAIN / f'iter_{iterations}.pth'
        self.screen = Screen()
        self.doing = 'starting'

    def run(self) -> None:
        """All steps, told on the screen."""
        start = time.monotonic()
        self.screen.say('keyseg demo: one model, one checkpoint, with and without its key; a few minutes\n')
        self.make_scenes()
        key = self.make_key()
        self.train()
        results = self.test()
        floor = self.report(results, key)
        self.search(key)
        width = min(shutil.get_terminal_size().columns - 1, 98)
        self.screen.say('\n' + textwrap.fill(meaning(results, floor), width))
        self.screen.say(f'\nThis took {(time.monotonic() - start) / 60:.1f} minutes. What to do next:\n')
        self.screen.say(next_steps(shlex.quote(str(self.out / CONFIG)), shlex.quote(str(self.checkpoint))))

    def make_scenes(self) -> None:
        """Training and test data."""
        from keyseg_mm.mm.scenes import street

        total = sum(COUNTS.values())
        self._begin('making scenes', 'scenes', f'{total} street scenes, laid out as Cityscapes', SCENES)
        with self.screen.bar('drawing', total) as bar:
            street.write_scenes(self.out / SCENES, self.seed, COUNTS, bar.update)

    def make_key(self) -> SecretKey:
        """A fresh key and its file."""
        from keyseg_mm.keys.keyfile import write_key_file

        key = SecretKey.generate()
        self._begin('making a key', 'key', f'public id {key.id}; its file is for you alone to read', KEY)
        write_key_file(self.out / KEY, key, comment='made by keyseg demo')
        return key

    def train(self) -> None:
        """The protected model, by the host's own Runner."""
        from keyseg_mm.mm.scenes.street import HEIGHT, WIDTH

        names = {'key': KEY, 'scenes': SCENES, 'work_dir': TRAIN}
        batch = min(8, COUNTS['train'])
        self._write(CONFIG, config_text(names, (HEIGHT, WIDTH), self.iterations, self.seed, batch))
        words = 'a small SegFormer; all four feature maps of its backbone are encrypted with the key'
        self._begin('training', 'train', words, CONFIG)
        losses: list[float] = []
        with self.screen.bar('training', self.iterations) as bar, host(self.out / LOG):

            def step(outputs: Any) -> None:
                losses.append(float(outputs['loss'].detach()))
                bar.set_description_str(f'training, loss {np.mean(losses[-20:]):.2f}', refresh=False)
                bar.update()

            watched(self._config(), 'after_train_iter', step).train()
        self.screen.say(f'{INDENT}loss {np.mean(losses[:5]):.2f} at first, {np.mean(losses[-20:]):.2f} at last')

    def test(self) -> list[Result]:
        """The checkpoint with its key, without one, and with wrong ones."""
        words = 'the same checkpoint for everybody; only the key differs'
        self._begin('testing', 'test', words, self.checkpoint.relative_to(self.out))
        results = [Result(RIGHT, f'file:{KEY}'), Result(NONE, 'none'), *(Result(WRONG, key) for key in WRONG_KEYS)]
        with self.screen.bar('testing', len(results) * COUNTS['val']) as bar, host(self.out / LOG):
            for result in results:
                cfg = self._config()
                cfg.load_from = str(self.checkpoint.resolve())
                cfg.work_dir = str(self.out.resolve() / TEST / result.slug)
                cfg.experiment_name = result.slug  # the host's registers go by it; tests may follow in the same second
                if result.who != RIGHT:
                    cfg.model.protection.key = result.key

                def take(samples: Any, result: Result = result) -> None:
                    for sample in samples:
                        result.add(sample)
                        bar.update()

                result.miou = float(watched(cfg, 'after_test_iter', take).test()['mIoU'])
        return results

    def report(self, results: list[Result], key: SecretKey) -> float:
        """Table, figures and picture; returns the constant-prediction floor."""
        self.doing = 'reporting'
        with host(self.out / LOG):
            from mmseg.datasets import CityscapesDataset

            from keyseg_mm.demo.picture import compare
            from keyseg_mm.mm.floor import constant_prediction_floor

            classes, palette = (CityscapesDataset.METAINFO[name] for name in ('classes', 'palette'))
            floor = constant_prediction_floor(results[0].truth, len(classes))
            compare(self.out / PICTURE, results, floor, classes, palette)
        majority = classes[np.bincount(np.concatenate(results[0].truth, axis=None)).argmax()]
        facts = {'key_id': key.id, 'iterations': self.iterations, 'seed': self.seed, 'scenes': COUNTS}
        figures = {**facts, 'floor': floor, 'mIoU': {result.key: result.miou for result in results}}
        self._write(RESULTS, json.dumps(figures, indent=1) + '\n')
        self._write(TABLE, table(results, floor, majority) + '\n')
        self.screen.say('\n' + table(results, floor, majority, self.screen.shows_blocks()) + '\n')
        self._begin('reporting', 'picture', 'what each of them sees, side by side', PICTURE)
        return floor

    def search(self, key: SecretKey) -> None:
        """Look for the key and its tables in all that was written, but for the key file.

        Raises:
            LeakError: found some.
        """
        from keyseg_mm.checkpoint.files import stamps_in
        from keyseg_mm.runtime.leaks import find_leaks

        self.doing = 'searching for leaks'
        plans = stamps_in(self.checkpoint).values()
        leaks = [leak for path in self.out.iterdir() if path.name != KEY for leak in find_leaks(path, key, plans)]
        if leaks:
            raise LeakError('secret material was written: ' + '; '.join(map(str, leaks)))
        files = sum(path.is_file() for path in self.out.rglob('*')) - 1
        words = f'the key and its tables are in none of the {files} files beside the key file'
        self._begin('searching for leaks', 'search', words)

    def _begin(self, doing: str, name: str, words: str, place: str | Path = '') -> None:
        """Announce a step, and where what it makes is to be found."""
        number = ('scenes', 'key', 'train', 'test', 'picture', 'search').index(name) + 1
        self.doing = doing
        self.screen.say(f'{number}  {name:<9}{words}')
        if place:
            self.screen.say(f'{INDENT}{self.out / place}')
        self.folder.note()

    def _write(self, name: str, text: str) -> None:
        write_new(self.out / name, lambda file: file.write(text.encode()))

    def _config(self) -> Any:
        from mmengine.config import Config

        return Config.fromfile(str(self.out.resolve() / CONFIG))


def config_text(names: dict[str, str], size: tuple[int, int], iterations: int, seed: int, batch: int) -> str:
    """The config that is trained, as a file's text.

    Args:
        names: of ``key``, ``scenes`` and ``work_dir`` in the config's own folder.
        size: height and width of the scenes.
        iterations: length of the training.
        seed: of the run; the key does not depend on it.
        batch: scenes in each iteration.
    """
    numbers = {'iterations': iterations, 'seed': seed, 'batch': batch, 'height': size[0], 'width': size[1]}
    # A schedule must not be empty, and a twentieth of a very short training is.
    schedule = {'linear_end': max(1, iterations // 20), 'poly_begin': iterations // 20}
    template = Path(__file__).with_name('protected.py.in').read_text(encoding='utf-8')
    return template % {**names, **numbers, **schedule}


@contextlib.contextmanager
def host(log: Path) -> Iterator[None]:
    """Run code of OpenMMLab's: what it prints goes to ``log``, and its global registers are put back afterwards."""
    with quiet(log):
        from mmengine.logging import MMLogger
        from mmengine.utils import ManagerMixin

        import keyseg_mm.mm  # noqa: F401 - puts the mends in place before a config is read

        kept = {cls: cls._instance_dict.copy() for cls in _subclasses(ManagerMixin)}
        try:
            yield
        finally:
            for name, logger in MMLogger._instance_dict.items():
                for handler in logger.handlers if name not in kept[MMLogger] else ():
                    handler.close()
            for cls in _subclasses(ManagerMixin):
                cls._instance_dict.clear()
                cls._instance_dict.update(kept.get(cls, {}))


def watched(cfg: Any, event: str, call: Callable[[Any], object]) -> Any:
    """A Runner that hands the outputs of an event of the host's hooks, such as ``after_test_iter``, to ``call``."""
    from mmengine.hooks import Hook
    from mmengine.runner import Runner

    def at_event(self: Any, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        call(outputs)

    runner = Runner.from_cfg(cfg)
    runner.register_hook(type('Watch', (Hook,), {event: at_event})())
    return runner


def _subclasses(cls: Any) -> list[Any]:
    return [found for child in cls.__subclasses__() for found in (child, *_subclasses(child))]
