"""The course of a comparison: models are made, tested and attacked, those from the plain one when that is there."""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import init_default_scope

from keyseg_mm import __version__
from keyseg_mm.atomic import make_folder, write_json, write_new
from keyseg_mm.audit.engine.attack import Say
from keyseg_mm.audit.engine.executor import Executor, Failed
from keyseg_mm.audit.engine.runner import to_json
from keyseg_mm.audit.model.loading import num_classes_of
from keyseg_mm.audit.report.page import figure, page
from keyseg_mm.compare.configs import protect
from keyseg_mm.compare.methods import DONE, FAILED, NONE, NOT_APPLICABLE, PLAIN, Method, Options, Row
from keyseg_mm.compare.trial import Trial
from keyseg_mm.errors import KeysegError
from keyseg_mm.keys.key import SecretKey
from keyseg_mm.keys.keyfile import write_key_file
from keyseg_mm.maps.keyspace import KEY_BITS
from keyseg_mm.mm.config import build_plain_model
from keyseg_mm.mm.floor import floor_of_dataset

NOTED, KEY = 'options.json', 'compare.key'
FIGURES, PAGE = 'compare.json', 'compare.html'
HEAD = (
    'method', 'right key', 'drop', 'no key', 'a wrong key', 'floor', 'seconds', 'key space, bits', 'audit advantage',
)  # fmt: skip
_NOTHING = '–'


@dataclass(frozen=True)
class Comparison:
    """What came out."""

    options: Options  # what it depends on
    methods: Sequence[Method]  # the plain model first
    floor: float  # constant-prediction floor, mIoU in percent
    rows: Sequence[Row]  # of the methods


def locator_of(out: Path) -> str:
    """The locator of the comparison's own key."""
    return f'file:{(out / KEY).resolve()}'


def begin(out: Path, options: Options, cfg: Config) -> None:
    """Take a folder into use, or take it up again; the comparison's key is made there where it is missing.

    Raises:
        KeysegError: it is no folder, holds something else, or was made with other options.
    """
    noted, own = out / NOTED, out / KEY
    asked = {**asdict(options), 'contents of the config': hashlib.sha256(cfg.pretty_text.encode()).hexdigest()}
    try:
        make_folder(out)
        if not noted.exists():
            if foreign := [path.name for path in out.iterdir() if path != own]:
                raise KeysegError(f'{out} holds {foreign[0]} and no comparison to go on with; give another folder')
            write_json(noted, asked)
        before = json.loads(noted.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise KeysegError(f'{out} cannot be used as the folder of a comparison: {error}') from None
    if changed := [name for name, value in asked.items() if before.get(name) != value]:
        raise KeysegError(
            f'{out} holds a comparison with other options ({", ".join(changed)}), and their results cannot stand side '
            'by side. Give the same options to go on, or another folder with --out'
        )
    if not own.exists():
        write_key_file(own, SecretKey.generate(), comment='made by keyseg compare')


def compare(
    out: Path, cfg: Config, options: Options, methods: Sequence[Method], commands: str, executor: Executor, say: Say
) -> Comparison:
    """Apply the methods, the plain model first, to a plain config, in a folder that :func:`begin` took into use.

    What is independent is done by the executor, with the commands of ``keyseg`` that the ``main`` of a module runs.
    """
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    try:
        floor = floor_of_dataset(cfg.test_dataloader.dataset, num_classes_of(build_plain_model(cfg)))
    except Exception as error:  # the host raises whatever it likes for missing folders
        raise KeysegError(f'test_dataloader.dataset: {type(error).__name__}: {error}; check data_root') from None
    cfg.merge_from_dict({'randomness.seed': options.seed})
    plain = Trial(methods[0], out.resolve() / PLAIN, options, commands, None)
    trials = [plain, *(Trial(method, out.resolve() / method.name, options, commands, plain) for method in methods[1:])]
    rows = {trial.method.name: _prepare(trial, cfg) for trial in trials}
    for locks in (False, True):  # the latter from the plain checkpoint, once it is there
        ready = [t for t in trials if rows[t.method.name].status == DONE and bool(t.method.lock) == locks]
        if locks and rows[PLAIN].why:
            for trial in ready:
                rows[trial.method.name].fail('the plain model, from which it is made, failed')
            break
        _attempt(ready, rows, executor, say)
    return Comparison(options, methods, floor, list(rows.values()))


def _prepare(trial: Trial, plain: Config) -> Row:
    """Find out whether a method can be applied, before anything long begins, and write its config."""
    row, cfg = Row(trial.method.name, trial.method.title), copy.deepcopy(plain)
    try:
        protect(cfg, trial.method, trial.options.key)
        trial.folder.mkdir(parents=True, exist_ok=True)
        cfg.dump(trial.config)
    except KeysegError as error:
        row.fail(str(error), NOT_APPLICABLE)
    except Exception as error:  # whatever it is, the other methods go on
        row.fail(f'{type(error).__name__}: {error}')
    return row


def _attempt(trials: Sequence[Trial], rows: dict[str, Row], executor: Executor, say: Say) -> None:
    """Try methods that do not depend on each other."""

    def done(index: int, found: Row | Failed) -> None:
        trial = trials[index]
        row = found if isinstance(found, Row) else Row(trial.method.name, trial.method.title, FAILED, found.why)
        rows[row.name] = row
        say(': '.join(filter(None, (trial.method.title, row.status, row.why))))

    executor.run(Trial.attempt, trials, done)


def write(out: Path, found: Comparison) -> Path:
    """Write what was found, all of it public; returns the page's path."""
    header = {'format': 'keyseg_mm compare', 'version': 1, 'made_by': __version__, 'when': time.strftime('%Y-%m-%d')}
    write_json(out / FIGURES, {**header, **to_json(found)})
    text = as_page(found, header['when'])
    write_new(out / PAGE, lambda file: file.write(text.encode('utf-8')), overwrite=True)
    return out / PAGE


def as_page(found: Comparison, when: object) -> str:
    """The page."""
    words = {'head': HEAD, 'cells': cells, 'key_bits': KEY_BITS, 'made_by': __version__}
    return page('compare.html.j2', Path(__file__).parent, found=found, when=when, **words)


def cells(found: Comparison, row: Row) -> list[str]:
    """A row of the table, in the order of :data:`HEAD`."""
    plain, bits = found.rows[0].right, row.key_space
    drop = None if row.right is None or plain is None or row.name == PLAIN else plain - row.right
    mious = [figure(value, 2) for value in (row.right, drop, row.miou.get(NONE), row.worst, found.floor)]
    return [
        row.title,
        *mious,
        figure(row.seconds, 3),
        f'{bits:,.0f}' if bits is not None else _NOTHING if row.name == PLAIN else 'not countable',
        row.audit or _NOTHING,
    ]
