"""A whole audit: situations from the material, controls and attacks in each, the referee's checks, and the report."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from keyseg_mm import __version__
from keyseg_mm.atomic import write_json
from keyseg_mm.audit.engine.attack import ATTACKS, Attempt
from keyseg_mm.audit.engine.scenario import Situation
from keyseg_mm.audit.engine.suites import SUITES, Level, Say
from keyseg_mm.audit.engine.targets import BLOCKS, IMAGES, MAPS, WEIGHTS
from keyseg_mm.audit.model import attacks  # noqa: F401 - registers all of them
from keyseg_mm.audit.model.case import Budget, Case, Photos
from keyseg_mm.audit.model.controls import CONTROLS
from keyseg_mm.audit.model.data import read_album
from keyseg_mm.audit.model.input_cipher import Code, Pixels
from keyseg_mm.audit.model.loading import architecture, fitting_sites, num_classes_of, read_protected, read_public
from keyseg_mm.audit.model.referee import Elsewhere
from keyseg_mm.audit.model.referees import referee_for
from keyseg_mm.audit.model.runner import Runner
from keyseg_mm.audit.model.spectra import by_model_names, distances
from keyseg_mm.audit.model.summary import summarise
from keyseg_mm.audit.model.transfer import Run, Transfer
from keyseg_mm.audit.report.pictures import colour_png, png
from keyseg_mm.errors import KeysegError
from keyseg_mm.keys.key import SecretKey
from keyseg_mm.mm.config import read_config
from keyseg_mm.mm.floor import constant_prediction_floor

_SHOWN = 3  # held-out photos shown in the report
_LEAST_SECONDS = 3.0  # of a run: below that nothing is tried in earnest


@dataclass(frozen=True)
class Order:
    """What is to be audited, and how.

    Attributes:
        config: config file, protected or plain.
        checkpoint: the protected checkpoint.
        key: its key.
        out: folder for results and report.
        suite: name of a level.
        public: public plain weights, if there are any.
        second: another customer's checkpoint or another release, if there is one.
        shares: of the training photos; None for the level's own.
        seed: of everything drawn.
        device: where to compute.
        bars: show progress bars.
        transfer: config of the same architecture over another data set, if transfer to that is to be tried.
    """

    config: Path
    checkpoint: Path
    key: SecretKey
    out: Path
    suite: str = 'standard'
    public: Path | None = None
    second: Path | None = None
    shares: tuple[float, ...] | None = None
    seed: int = 0
    device: str = 'cpu'
    bars: bool = True
    transfer: Path | None = None


def audit(order: Order, say: Say = lambda text: None) -> dict[str, Any]:
    """Run an audit and write ``report.json``.

    Args:
        order: what and how.
        say: told what is going on, a line at a time.

    Returns:
        The report, as it is written.

    Raises:
        KeysegError: config, checkpoints, key and photos do not belong together; before anything long begins.
    """
    start = time.monotonic()
    stage = Stage(order, say)
    order.out.mkdir(parents=True, exist_ok=True)
    say('the referee checks itself')
    report = {**stage.facts(), 'checks': stage.checks()}
    runners = {False: Runner(stage.referee, order.out / 'results', stage.shown, order.bars)}
    tasks = [report]
    if stage.transfer is not None:
        there = Elsewhere(stage.referee, stage.transfer.case, stage.transfer.held_out)
        runners[True] = Runner(there, order.out / 'results', [], order.bars)
        report['transfer'] = {**stage.transfer.facts(), 'checks': {'positive': there.positive_control()}}
        tasks.append(report['transfer'])
    if not all(task['checks']['positive']['passed'] for task in tasks):
        say('WARNING: the true key does not score full marks in the way guesses are scored: do not trust this audit')
    results = [(s.transfer, runners[s.transfer].run(a, s, kind)) for a, s, kind in told(stage.runs(), say)]
    for elsewhere, task in enumerate(tasks):
        task['results'] = [result for transfer, result in results if transfer == bool(elsewhere)]
    report['seconds'] = round(time.monotonic() - start, 1)
    report['summary'] = summarise(report)
    write_json(order.out / 'report.json', report)
    return report


def told(runs: Sequence[Run], say: Say) -> Iterator[Run]:
    """The runs one after another, each announced."""
    for number, (attack, situation, kind) in enumerate(runs, 1):
        say(f'{number}/{len(runs)}  {kind}: {attack.title}, {situation.title}')
        yield attack, situation, kind


class Stage:
    """Everything read, checked and set up for an audit.

    Args:
        order: what and how.
        say: told what is going on.
    """

    def __init__(self, order: Order, say: Say) -> None:
        self.order = order
        self.level: Level = SUITES[order.suite]
        shares = order.shares or self.level.shares
        self.device = torch.device(order.device)
        cfg = read_config(order.config)
        say(f'reading {order.checkpoint}')
        self.protected = read_protected(order.checkpoint, self.device)
        self.public = read_public(order.public, self.device) if order.public else None
        self.second = read_protected(order.second, self.device) if order.second else None
        build = architecture(cfg, self.device, order.seed)
        sites = fitting_sites(build, self.protected, order.config)
        model = build()
        if self.public:
            self.public = by_model_names(self.public, model.state_dict()) or self.public
        self.num_classes = num_classes_of(model)
        self.file = Case(
            plan=self.protected.plan,
            weights=self.protected.weights,
            build=build,
            num_classes=self.num_classes,
            public=self.public,
            seed=order.seed,
            budget=Budget(self.level.steps, self.level.seconds),
            sites=sites,
            images=Code(self.protected.images, Pixels.of(model)) if self.protected.images else None,
        )
        _refuse_unfit(order, self.file.kind)
        parts = (self.level, shares, self.device, say)
        self.transfer = Transfer(order.transfer, self.protected, self.file, *parts) if order.transfer else None
        self.album = read_album(cfg, model, self.level, shares, order.seed, self.device, say)
        say('scoring the authorised model')
        stamp, held_out = self.protected.stamp, self.album.held_out
        self.referee = referee_for(order.key, stamp, self.file, held_out, self.protected.prefix)
        self.situations = self._budgeted(self._situations(self.album.shares))
        self.shown = _most_varied(held_out)

    def runs(self) -> list[Run]:
        """All runs, controls first: an interrupted audit then has something to compare with. Last those elsewhere."""
        budget = self.situations[0].case.budget
        return [*_runs(self.situations), *(self.transfer.runs(ATTACKS, budget) if self.transfer else ())]

    def checks(self) -> dict[str, Any]:
        """The referee's checks of itself."""
        return {'positive': self.referee.positive_control(), 'negative': self.referee.negative_control(self.order.seed)}

    def facts(self) -> dict[str, Any]:
        """What was audited, for the report: all public."""
        order, level = self.order, self.level
        labels = self.referee.held_out.labels
        assert labels is not None
        plan = self.protected.plan
        bare = self.referee.judge(Attempt())  # the file as it is
        return {
            'format': 'keyseg_mm audit',
            'version': 1,
            'made_by': __version__,
            'when': time.strftime('%Y-%m-%d %H:%M'),
            'config': order.config.name,
            'checkpoint': order.checkpoint.name,
            'public': order.public.name if order.public else None,
            'second': order.second.name if order.second else None,
            'key_id': plan.key_id,
            'kind': self.file.kind,
            'points': _places(self.file),
            'suite': order.suite,
            'level': dataclasses.asdict(level),
            'budget': dataclasses.asdict(self.situations[0].case.budget),
            'seed': order.seed,
            'device': str(self.device),
            'held_out': len(labels),
            'train_photos': len(self.album.train),
            'photo_size': list(labels.shape[1:]),
            'floor': constant_prediction_floor([x.cpu().numpy() for x in labels], self.num_classes),
            'authorised': self.referee.full.as_dict(),
            'no_key': bare.score.as_dict(),
            'close': distances(plan, self.protected.weights, self.public) if self.public else {},
            'pictures': self._pictures(bare.labels),
        }

    def _situations(self, photos: dict[float, Photos]) -> list[Situation]:
        """The file alone, photos in each share, a second file, and then what goes beyond files."""
        found = [Situation('file', 'the file alone' + self._and_public(), self.file, frozenset())]
        for share, some in photos.items():
            case = dataclasses.replace(self.file, labelled=some, unlabelled=some.unlabelled())
            title = f'{len(some)} photos ({100 * share:g} %)' + self._and_public()
            found.append(Situation(f'photos-{share:g}', title, case, frozenset({'labelled', 'unlabelled'}), share))
        best = found[-1]
        if self.second is not None:
            case = dataclasses.replace(best.case, second=(self.second.plan, self.second.weights))
            found.append(Situation('second', 'a second checkpoint', case, frozenset({'second'}), best.share))
        return [*found, *self._beyond(best)]

    def _beyond(self, best: Situation) -> list[Situation]:
        found = []
        mapped = self.file.kind == MAPS  # tables of other kinds have no attack that completes them
        for share in self.level.key_shares if mapped else ():
            known, tables = self.referee.leak(share, self.order.seed)
            case = dataclasses.replace(best.case, known=known, known_tables=tables)
            grants = frozenset({'known', 'known_tables'})
            title = f'{100 * share:g} % of the key leaked'
            found.append(Situation(f'leak-{share:g}', title, case, grants, best.share, share))
        some = best.case.labelled
        assert some is not None
        if mapped:
            case = dataclasses.replace(best.case, recorded=self.referee.record(some.images[:2]))
            grants = frozenset({'recorded'})
            found.append(Situation('recorded', 'one recorded authorised run', case, grants, best.share))
        case = dataclasses.replace(best.case, oracle=self.referee.oracle())
        found.append(Situation('oracle', 'an authorised oracle', case, frozenset({'oracle'}), best.share))
        return found

    def _budgeted(self, situations: list[Situation]) -> list[Situation]:
        """The same situations with the seconds that each run has."""
        seconds = self.level.seconds
        if self.level.total:
            seconds = min(seconds, max(_LEAST_SECONDS, self.level.total / max(1, len(_runs(situations)))))
        budget = Budget(self.level.steps, round(seconds, 1))
        return [dataclasses.replace(s, case=dataclasses.replace(s.case, budget=budget)) for s in situations]

    def _and_public(self) -> str:
        return ' and public weights' if self.public else ''

    def _pictures(self, bare: torch.Tensor) -> dict[str, Any]:
        """The shown photos with their label maps, as base64 PNGs."""
        held_out, classes = self.referee.held_out, self.album.test.classes
        assert held_out.labels is not None
        return {
            'photos': [colour_png(self.album.test.picture(held_out.images[i])) for i in self.shown],
            'truth': [png(held_out.labels[i]) for i in self.shown],
            'authorised': [png(self.referee.authorised[i]) for i in self.shown],
            'no_key': [png(bare[i]) for i in self.shown],
            'classes': classes.names,
            'palette': classes.palette,
        }


def _refuse_unfit(order: Order, kind: str) -> None:
    """Refuse grants that no attack on this kind of protection makes use of."""
    for option, given, kinds in (('--second', order.second, (MAPS,)), ('--transfer', order.transfer, (MAPS, BLOCKS))):
        if given and kind not in kinds:
            raise KeysegError(f'{option} is for models with encrypted feature maps; here the {kind} are encrypted')


def _places(file: Case) -> list[dict[str, Any]]:
    """Where what is encrypted, for the report."""
    if file.kind == IMAGES:
        assert file.images is not None
        how = {'type': file.images.method, 'block': file.images.block}
        return [{'point': 'the image', 'channels': 3, 'transform': how}]
    if file.kind == WEIGHTS:
        tensors = file.plan.tensors
        values = sum(t.count for t in tensors)
        return [{'point': f'{len(tensors)} tensors', 'values': values, 'transform': tensors[0].transform}]
    return [{'point': e.point, 'channels': e.channels, 'transform': e.transform} for e in file.plan.maps]


def _runs(situations: Sequence[Situation]) -> list[Run]:
    runs: list[Run] = []
    for kind, classes in (('control', CONTROLS), ('attack', ATTACKS)):
        for situation in situations:
            if kind == 'attack' or not (situation.beyond_files or 'second' in situation.grants):
                runs += [(cls, situation, kind) for cls in classes.values() if situation.wants(cls)]
    return runs


def _most_varied(photos: Photos) -> list[int]:
    """Numbers of the photos with most classes in them, chosen by the truth alone: not by what came out well."""
    assert photos.labels is not None
    variety = [len(torch.unique(label)) for label in photos.labels]
    best = sorted(range(len(variety)), key=lambda i: -variety[i])[:_SHOWN]
    return sorted(best)
