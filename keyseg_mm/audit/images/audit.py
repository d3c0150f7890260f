"""A whole audit of encrypted images: what attackers hold, controls and attacks, the referee's checks, the report."""

from __future__ import annotations

import dataclasses
import functools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keyseg_mm import __version__
from keyseg_mm.atomic import write_json
from keyseg_mm.audit.engine.suites import Say
from keyseg_mm.audit.images import attacks  # noqa: F401 - registers all of them
from keyseg_mm.audit.images.attack import RESTORINGS, Restoring
from keyseg_mm.audit.images.case import ImageCase
from keyseg_mm.audit.images.controls import CONTROLS
from keyseg_mm.audit.images.keyspace import key_spaces
from keyseg_mm.audit.images.photos import read_photos
from keyseg_mm.audit.images.plans import plan_of
from keyseg_mm.audit.images.referee import ImageReferee, trusted_stamp
from keyseg_mm.audit.images.runner import ImageRunner, Stand
from keyseg_mm.audit.images.scheme import Images, Scheme
from keyseg_mm.audit.images.suites import DEPTHS, Depth
from keyseg_mm.audit.images.summary import summarise
from keyseg_mm.audit.model.case import Budget
from keyseg_mm.audit.report.pictures import colour_png
from keyseg_mm.errors import KeysegError
from keyseg_mm.keys.key import SecretKey
from keyseg_mm.mm.config import read_config
from keyseg_mm.stamp import Stamp

FORMAT = 'keyseg_mm audit of images'
_SHOWN = 3  # images shown in the report
Run = tuple[type[Restoring], Stand, str]


@dataclass(frozen=True)
class ImageOrder:
    """What is to be audited, and how.

    Attributes:
        config: config file; its test pipeline says how images are encrypted, unless the checkpoint does.
        key: the true key.
        out: folder for results and report.
        checkpoint: a model of ``keyseg lock --scheme patches``, or one that was trained on encrypted images.
        suite: name of a depth.
        photos: images under attack, and photos of the attacker's, at most so many of each; None for the suite's own.
        seed: of everything drawn.
        bars: show progress bars.
    """

    config: Path
    key: SecretKey
    out: Path
    checkpoint: Path | None = None
    suite: str = 'standard'
    photos: int | None = None
    seed: int = 0
    bars: bool = True


def audit_images(order: ImageOrder, say: Say = lambda text: None) -> dict[str, Any]:
    """Audit the encrypted images of a config, and write ``report.json``.

    Args:
        order: what and how.
        say: told what is going on, a line at a time.

    Returns:
        The report, as it is written.

    Raises:
        KeysegError: nothing there encrypts images, or config, checkpoint, key and photos do not belong together;
            before anything long begins.
    """
    cfg = read_config(order.config)
    plan = plan_of(cfg, order.checkpoint, order.key.id, functools.partial(trusted_stamp, order.key))
    block = Scheme.of(plan).block
    depth = DEPTHS[order.suite]
    if order.photos is not None:
        depth = dataclasses.replace(depth, images=order.photos, photos=order.photos)
    attacked, public, full_size = read_photos(cfg, depth, block, order.seed, say)
    facts = {
        'config': order.config.name,
        'checkpoint': order.checkpoint.name if order.checkpoint else None,
        'suite': order.suite,
        'full_size': list(full_size or attacked.shape[1:3]),
    }
    return attack_images(
        order.key, Subject(plan, attacked, public, facts), depth, order.out, order.seed, order.bars, say
    )


@dataclass(frozen=True, eq=False)
class Subject:
    """What is attacked.

    Attributes:
        plan: how images are encrypted.
        attacked: the plain images, uint8 (N, H, W, 3), red first, of whole blocks; only the referee gets them.
        public: the attacker's own photos, of the same size.
        facts: where all this comes from, for the report: ``config``, ``checkpoint``, ``suite``, ``full_size``.
    """

    plan: Stamp
    attacked: Images
    public: Images
    facts: dict[str, Any]


def attack_images(
    key: SecretKey,
    subject: Subject,
    depth: Depth,
    out: Path,
    seed: int = 0,
    bars: bool = False,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Run all controls and attacks against images that the key encrypts, and write ``report.json``.

    Args:
        key: the true key; only the referee gets it.
        subject: what is attacked.
        depth: how thorough.
        out: folder for results and report; a finished result in it is not run again.
        seed: of everything drawn.
        bars: show progress bars.
        say: told what is going on, a line at a time.

    Raises:
        KeyMismatchError: the plan is of another key.
        KeysegError: the images are not of whole blocks, or the photos of another size.
    """
    start = time.monotonic()
    referee = ImageReferee(key, subject.plan, subject.attacked)
    stands = _stands(referee, subject.public, depth, seed)
    out.mkdir(parents=True, exist_ok=True)
    shown = list(range(min(_SHOWN, len(subject.attacked))))
    runner = ImageRunner(referee, out / 'results', shown, bars)
    say('the referee checks itself')
    checks = {'positive': referee.positive_control(), 'negative': referee.negative_control(seed)}
    results, runs = [], _runs(stands)
    for number, (attack, stand, kind) in enumerate(runs, 1):
        say(f'{number}/{len(runs)}  {kind}: {attack.title}, {stand.title}')
        results.append(runner.run(attack, stand, kind))
    report = _facts(subject, referee, stands, depth, shown)
    report.update(seed=seed, checks=checks, results=results, seconds=round(time.monotonic() - start, 1))
    report['summary'] = summarise(report)
    write_json(out / 'report.json', report, allow_nan=False)
    return report


def _facts(
    subject: Subject, referee: ImageReferee, stands: list[Stand], depth: Depth, shown: list[int]
) -> dict[str, Any]:
    """What was audited, for the report. The plain images are in it: it is for their owner."""
    return {
        'format': FORMAT,
        'version': 1,
        'made_by': __version__,
        'when': time.strftime('%Y-%m-%d %H:%M'),
        **subject.facts,
        'scheme': dataclasses.asdict(referee.scheme),
        'key_spaces': key_spaces(referee.scheme),
        'depth': dataclasses.asdict(depth),
        'images': len(subject.attacked),
        'photos': len(subject.public),
        'size': list(subject.attacked.shape[1:3]),
        'stands': [{'name': s.name, 'title': s.title, 'group': s.group} for s in stands],
        'pictures': {
            'plain': [colour_png(subject.attacked[i]) for i in shown],
            'encrypted': [colour_png(referee.encrypted[i]) for i in shown],
        },
    }


def _stands(referee: ImageReferee, public: Any, depth: Depth, seed: int) -> list[Stand]:
    """From the encrypted images alone to pairs of plain and encrypted ones."""
    if referee.encrypted.shape[1:] != public.shape[1:]:
        raise KeysegError(f'photos of {public.shape[1:]} are of no use against images of {referee.encrypted.shape[1:]}')
    budget = Budget(depth.steps, depth.seconds)
    alone = ImageCase(referee.scheme, referee.encrypted, seed=seed, budget=budget)
    informed = dataclasses.replace(alone, public=public)
    found = [
        Stand('images', f'{len(referee.encrypted)} encrypted images alone', alone, frozenset(), 'images'),
        Stand('photos', f'and {len(public)} photos of his own', informed, frozenset({'public'}), 'photos'),
    ]
    for count in dict.fromkeys(min(count, len(public)) for count in depth.pairs):
        case = dataclasses.replace(informed, pairs=referee.pairs(public[:count]))
        title = f'and {count} of them encrypted with the key' if count > 1 else 'and one of them encrypted with the key'
        found.append(Stand(f'pairs-{count}', title, case, frozenset({'pairs'}), 'pairs'))
    return found


def _runs(stands: list[Stand]) -> list[Run]:
    """All runs, controls first: an interrupted audit then has something to compare with."""
    kinds = (('control', CONTROLS), ('attack', RESTORINGS))
    every = [(cls, stand, kind) for kind, classes in kinds for stand in stands for cls in classes.values()]
    return [(cls, stand, kind) for cls, stand, kind in every if stand.wants(cls)]
