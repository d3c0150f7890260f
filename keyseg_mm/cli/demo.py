"""See in a few minutes what protection does: one small model, one checkpoint, with and without its key.

Makes small street scenes laid out as Cityscapes, makes a key, trains a small SegFormer whose feature maps are encrypted
with it, tests the checkpoint with the right key, without a key and with wrong ones, and draws what each of them sees.
All of it goes into one folder; what is trained there is an ordinary mmsegmentation config and checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyseg_mm.cli import INTERRUPTED
from keyseg_mm.cli.console import whole_number
from keyseg_mm.errors import KeysegError, LeakError

if TYPE_CHECKING:  # imported where they are used: --help and a refused folder must not wait for them
    from keyseg_mm.demo.folder import DemoFolder
    from keyseg_mm.demo.report import Result
    from keyseg_mm.keys.key import SecretKey

KEY, SCENES, CONFIG, TRAIN, TEST = 'demo.key', 'scenes', 'protected.py', 'train', 'test'
LOG, TABLE, RESULTS, PICTURE = 'demo.log', 'table.txt', 'results.json', 'segmentations.png'
WRONG_KEYS = ('random:1', 'random:2', 'random:3')
ITERATIONS = 500
COUNTS = {'train': 160, 'val': 40}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument('--out', type=Path, default=Path('demo_out'), help='folder for all that it makes (demo_out)')
    parser.add_argument(
        '--overwrite',
        action='store_true',
        help='first remove what an earlier demo made in that folder, its key too, and nothing else',
    )
    parser.add_argument(
        '--iterations', type=whole_number(1), default=ITERATIONS, help=f'length of the training ({ITERATIONS})'
    )
    parser.add_argument(
        '--seed', type=whole_number(0), default=0, help='of scenes and training (0); the key is random always'
    )


def run(args: argparse.Namespace) -> int:
    """Run it; returns the exit status."""
    from keyseg_mm.demo.folder import DemoFolder

    names = (KEY, SCENES, CONFIG, TRAIN, TEST, LOG, TABLE, RESULTS, PICTURE)
    folder = DemoFolder(args.out, names, args.overwrite)
    demo = Demo(folder, args.iterations, args.seed)
    again = f'nothing outside {args.out} was touched. To start again: keyseg demo --out {_quoted(args.out)} --overwrite'
    try:
        demo.run()
    except KeyboardInterrupt:
        print(f'\nkeyseg demo: stopped, as asked, while {demo.doing}; {again}', file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        with contextlib.suppress(OSError), (args.out / LOG).open('a', encoding='utf-8') as log:
            traceback.print_exc(file=log)
        raise KeysegError(
            f'failed while {demo.doing}: {type(error).__name__}: {error}\n{args.out / LOG} has the whole story; {again}'
        ) from None
    finally:
        with contextlib.suppress(KeysegError):
            folder.note(finished=True)
    return 0


class Demo:
    """One run of the demo.

    Args:
        folder: where it writes.
        iterations: length of the training.
        seed: of scenes and training.
        counts: scenes to make, by split.

    Attributes:
        doing: the step under way, in words.
    """

    def __init__(self, folder: DemoFolder, iterations: int, seed: int, counts: dict[str, int] | None = None) -> None:
        from keyseg_mm.demo.screen import Screen

        self.folder, self.out, self.iterations, self.seed = folder, folder.path, iterations, seed
        self.counts = counts or COUNTS
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
        self.conclude(results, floor, time.monotonic() - start)

    def make_scenes(self) -> None:
        """Training and test data."""
        from keyseg_mm.mm.scenes.street import write_scenes

        total = sum(self.counts.values())
        self._begin('making scenes', 1, 'scenes', f'{total} street scenes, laid out as Cityscapes', SCENES)
        with self.screen.bar('drawing', total) as bar:
            write_scenes(self.out / SCENES, self.seed, self.counts, bar.update)

    def make_key(self) -> SecretKey:
        """A fresh key and its file."""
        from keyseg_mm.keys.key import SecretKey
        from keyseg_mm.keys.keyfile import write_key_file

        key = SecretKey.generate()
        self._begin('making a key', 2, 'key', f'public id {key.id}; its file is for you alone to read', KEY)
        write_key_file(self.out / KEY, key, comment='made by keyseg demo')
        return key

    def train(self) -> None:
        """The protected model, by the host's own Runner."""
        from keyseg_mm.demo.config import config_text
        from keyseg_mm.mm.scenes.street import HEIGHT, WIDTH

        names = {'key': KEY, 'scenes': SCENES, 'work_dir': TRAIN}
        text = config_text(names, (HEIGHT, WIDTH), self.iterations, self.seed, batch=min(8, self.counts['train']))
        self._write(CONFIG, text)
        words = 'a small SegFormer; all four feature maps of its backbone are encrypted with the key'
        self._begin('training', 3, 'train', words, CONFIG)
        losses: list[float] = []
        with self.screen.bar('training', self.iterations) as bar, host(self.out / LOG):

            def step(outputs: Any) -> None:
                losses.append(float(outputs['loss'].detach()))
                bar.set_description_str(f'training, loss {_mean(losses[-20:]):.2f}', refresh=False)
                bar.update()

            watched(self._config(), 'after_train_iter', step).train()
        self.screen.detail(f'loss {_mean(losses[:5]):.2f} at first, {_mean(losses[-20:]):.2f} at last')

    def test(self) -> list[Result]:
        """The checkpoint with its key, without one, and with wrong ones."""
        from keyseg_mm.demo.report import NONE, RIGHT, WRONG, Result

        words = 'the same checkpoint for everybody; only the key differs'
        self._begin('testing', 4, 'test', words, Path(TRAIN, self.checkpoint.name))
        results = [Result(RIGHT, f'file:{KEY}'), Result(NONE, 'none'), *(Result(WRONG, key) for key in WRONG_KEYS)]
        with self.screen.bar('testing', len(results) * self.counts['val']) as bar, host(self.out / LOG):
            for result in results:
                cfg = self._config()
                cfg.load_from = str(self.checkpoint.resolve())
                cfg.work_dir = str(self.out.resolve() / TEST / result.slug)
                cfg.experiment_name = result.slug  # the host's registers go by it; tests may follow in the same second
                if result.who != RIGHT:
                    cfg.model.protection.key = result.key

                def take(samples: Any, result: Result = result) -> None:
                    for sample in samples:
                        result.add(sample.img_path, sample.gt_sem_seg.data[0], sample.pred_sem_seg.data[0])
                        bar.update()

                result.miou = float(watched(cfg, 'after_test_iter', take).test()['mIoU'])
        return results

    def report(self, results: list[Result], key: SecretKey) -> float:
        """Table, figures and picture; returns the constant-prediction floor."""
        import numpy as np

        from keyseg_mm.demo.report import figures, table

        self.doing = 'reporting'
        with host(self.out / LOG):
            from mmseg.datasets import CityscapesDataset

            from keyseg_mm.demo.picture import compare
            from keyseg_mm.mm.floor import constant_prediction_floor

            classes, palette = (CityscapesDataset.METAINFO[name] for name in ('classes', 'palette'))
            floor = constant_prediction_floor(results[0].truth, len(classes))
            compare(self.out / PICTURE, results, floor, classes, palette)
        majority = classes[np.bincount(np.concatenate(results[0].truth, axis=None)).argmax()]
        facts = {'key_id': key.id, 'iterations': self.iterations, 'seed': self.seed, 'scenes': self.counts}
        for name, text in ((RESULTS, figures(results, floor, facts)), (TABLE, table(results, floor, majority) + '\n')):
            self._write(name, text)
        self.screen.say('\n' + table(results, floor, majority, self.screen.shows_blocks()) + '\n')
        self._begin('reporting', 5, 'picture', 'what each of them sees, side by side', PICTURE)
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
        self.screen.step(6, 'search', f'the key and its tables are in none of the {files} files beside the key file')

    def conclude(self, results: list[Result], floor: float, seconds: float) -> None:
        """What it means, and what to do next."""
        from keyseg_mm.demo.report import meaning, next_steps

        self.screen.say()
        self.screen.wrapped(meaning(results, floor))
        self.screen.say(f'\nThis took {seconds / 60:.1f} minutes. What to do next:\n')
        self.screen.say(next_steps(_quoted(self.out / CONFIG), _quoted(self.checkpoint)))

    def _begin(self, doing: str, number: int, name: str, text: str, place: object) -> None:
        self.doing = doing
        self.screen.step(number, name, text, self.out / str(place))
        self.folder.note()

    def _write(self, name: str, text: str) -> None:
        from keyseg_mm.atomic import write_new

        write_new(self.out / name, lambda file: file.write(text.encode()))

    def _config(self) -> Any:
        from mmengine.config import Config

        return Config.fromfile(str(self.out.resolve() / CONFIG))


@contextlib.contextmanager
def host(log: Path) -> Iterator[None]:
    """Run code of OpenMMLab's: what it prints goes to ``log``, and its global registers are put back afterwards."""
    from keyseg_mm.demo.screen import quiet

    with quiet(log):
        from mmengine.logging import MMLogger
        from mmengine.utils import ManagerMixin

        import keyseg_mm.mm  # noqa: F401 - puts the mends in place before a config is read

        kept = {cls: cls._instance_dict.copy() for cls in _subclasses(ManagerMixin)}
        try:
            yield
        finally:
            for logger in MMLogger._instance_dict.values():
                for handler in logger.handlers if logger.instance_name not in kept[MMLogger] else ():
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


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
