"""Transfer of a protected file to another data set: what it is worth to a thief with a task of his own."""

from __future__ import annotations

import dataclasses
import functools
import json

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from torch import nn

from keyseg_mm import find_leaks
from keyseg_mm.audit.engine.attack import Run, Scenario
from keyseg_mm.audit.engine.budget import Budget
from keyseg_mm.audit.engine.suites import ModelSuite
from keyseg_mm.audit.model import audit as suite
from keyseg_mm.audit.model.attack import ATTACKS, CONTROLS, Attempt, Case, LabelledPhotos, OtherClasses
from keyseg_mm.audit.model.controls import FromScratch
from keyseg_mm.audit.model.loading import Protected, architecture, other_classes
from keyseg_mm.audit.model.page import render
from keyseg_mm.audit.model.referees import MapReferee, TransferCheck, TransferReferee
from keyseg_mm.audit.model.report import TransferReport
from keyseg_mm.audit.model.runner import ModelRunner
from keyseg_mm.audit.model.summary import summarise, transferred
from keyseg_mm.bind import derive_map
from keyseg_mm.cli import main
from keyseg_mm.errors import KeysegError
from keyseg_mm.mm.floor import constant_prediction_floor
from tests.support.audits import build as build_small
from tests.support.audits import errors_in, made_run, make_report, small_model_cfg
from tests.support.configs import runner_cfg
from tests.support.locks import TinyNet, build, lock, make_plan, pictures, trained
from tests.support.pages import Page

MERGED = torch.tensor([0, 1, 2, 1, 0])  # the thief's classes, by the file's
HEAD = ('head.weight', 'head.bias')
EVERYWHERE = ['in:a', 'in:b', 'in:c', 'in:head']


class OtherNet(TinyNet):
    """TinyNet for three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(16, 3, 1)


def build_other(seed=1):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return OtherNet().eval()


def other_pictures(count, seed):
    found = pictures(count, seed)
    labels = found.labels.clone()
    labels[labels != 255] = MERGED[labels[labels != 255]]
    return LabelledPhotos(found.images, labels)


def stolen(key, points, transform='SignedChannelPermutation', seed=2, steps=30, photos=4):
    """A locked TinyNet in a thief's hands: its referee, and the judge of the thief's own task."""
    own = dataclasses.replace(make_plan(points, transform), key_id=key.id)
    maps = {entry.point: derive_map(key, own.salt, entry) for entry in own.maps}
    file = Case(own, lock(trained(), maps), build, 5, seed=seed, budget=Budget(steps, 60.0))
    referee = MapReferee(key, own, file, pictures(4, 5))
    fresh = build_other().state_dict()
    weights = {name: fresh[name] if name in HEAD else value for name, value in file.weights.items()}
    case = dataclasses.replace(file, weights=weights, build=build_other, num_classes=3)
    case = case.granting(other_pictures(photos, 50 + seed), OtherClasses(HEAD))
    return referee, TransferReferee(referee, case, other_pictures(16, 900 + seed))


def scenario_of(case, name='transfer-0.1'):
    return Scenario(name, 'transfer', case, frozenset({LabelledPhotos, OtherClasses}), share=0.1, photos=4)


def part_of(outcomes, floor=4.25, passed=True):
    """What a report has of a transfer."""
    facts = dict(config='<other>.py', num_classes=3, held_out=9, train_photos=30, photo_size=(32, 64), classifier=HEAD)
    return TransferReport(**facts, floor=floor, check=TransferCheck(4, 0.0, passed), outcomes=tuple(outcomes))


def tried(there, folder):
    """All that makes sense there, summed up."""
    runner, case = ModelRunner(there, folder, [], bars=False), there.case
    here = scenario_of(case)
    runs = [Run(cls, here, 'control') for cls in CONTROLS.values() if here.wants(cls)]
    again = dataclasses.replace(case, build=functools.partial(build_other, 2), seed=case.seed + 1)
    scratch = [cls for cls in CONTROLS.values() if issubclass(cls, FromScratch)]
    runs += [Run(cls, scenario_of(again, 'again'), 'control') for cls in scratch]
    runs += [Run(cls, here) for cls in ATTACKS.values() if here.wants(cls)]
    runs.append(Run(ATTACKS['transfer-fast'], here, 'key-holder'))
    results = [runner.run(run) for run in runs]
    floor = constant_prediction_floor([there.held_out.labels.numpy()], 3)
    return transferred(part_of(results, floor, there.positive_control().passed)), {
        (result.about.kind, result.about.name) for result in results if result.score
    }


# --- what it is worth


def test_features_left_plain_help_a_thief_and_scrambled_ones_do_not(key, tmp_path):
    weak, names = tried(stolen(key, ['in:head'])[1], tmp_path / 'weak')
    assert weak.level == 'helps' and weak.headline.advantage > 4
    assert 'worth something to a thief' in weak.says and 'points=linear' in weak.says
    attacks = {
        'finetune-all',
        'finetune-head',
        'finetune-norm',
        'transfer-fast',
        'transfer-head',
        'transfer-substitute',
    }
    assert {name for kind, name in names if kind == 'attack'} == attacks
    assert {name for kind, name in names if kind == 'control'} == {'from-scratch', 'from-scratch-slow'}
    strong, _ = tried(stolen(key, EVERYWHERE, 'ChannelRotation')[1], tmp_path / 'strong')
    assert strong.level == 'no-help'  # and to the key's holder it is worth something
    assert strong.headline.advantage <= strong.headline.noise < strong.headline.to_gain


def test_the_key_holder_is_the_upper_line(key, tmp_path):
    _, there = stolen(key, EVERYWHERE, seed=1, steps=60, photos=8)
    runner, where = ModelRunner(there, tmp_path, [], bars=False), scenario_of(there.case)
    thief, holder = (runner.run(Run(ATTACKS['finetune-head'], where, kind)) for kind in ('attack', 'key-holder'))
    assert holder.score.miou > thief.score.miou + 30  # a head on features that make sense, and one on rubbish
    assert holder.about.kind == 'key-holder'
    assert holder.score.agreement is holder.score.kappa is holder.score.recovery is None
    assert len(list(tmp_path.glob('*.json'))) == 2
    assert not find_leaks(tmp_path, key, [there.case.stamp])


def test_substitute_layers_learn_the_maps_and_a_head_and_nothing_else(key):
    _, there = stolen(key, ['in:b', 'in:c'], 'ChannelPermutation', steps=60, photos=8)
    attempt = ATTACKS['transfer-substitute']().run(there.case, lambda *_: None)
    verdict = there.judge(attempt, there.case)
    state = attempt.model.state_dict()
    moved = {name for name, value in there.case.weights.items() if not torch.equal(value, state[name])}
    assert {n for n in moved if not n.endswith(('running_mean', 'running_var', 'tracked'))} == set(HEAD)
    assert set(attempt.guesses) == {'in:b', 'in:c'} and verdict.score.recovery is not None
    alone = Attempt(model=there.case.model())
    assert verdict.score.miou > there.judge(alone, there.case).score.miou + 20


@pytest.mark.parametrize('name', ['finetune-norm', 'finetune-head'])
def test_the_classifier_always_learns_where_it_is_new(key, name):
    _, there = stolen(key, ['in:c'], steps=3)
    own = dataclasses.replace(there.case, grants=(there.case[LabelledPhotos],))
    for case, learnt in ((there.case, True), (own, name == 'finetune-head')):
        state = ATTACKS[name]().run(case, lambda *_: None).model.state_dict()
        assert torch.equal(state['head.weight'], case.weights['head.weight']) != learnt


# --- the referee elsewhere


def test_it_finds_out_maps_that_do_not_work_there(key, other_key):
    _, there = stolen(key, EVERYWHERE)
    assert there.positive_control() == TransferCheck(4, pytest.approx(0.0, abs=1e-6), True)
    entry = there.case.stamp.maps[1]
    there._maps[entry.point] = derive_map(other_key, there.case.stamp.salt, entry)
    assert there.positive_control().passed  # both sides run with it: this is about the model, not about the key
    _, there = stolen(key, EVERYWHERE)
    broken = {**there.case.weights, 'b.weight': there.case.weights['b.weight'].flip(0)}
    there.case = dataclasses.replace(there.case, weights=broken)
    assert not there.positive_control().passed


def test_points_behind_the_classifier_are_left_out_of_the_check(key):
    class Late(TinyNet):
        def __init__(self, classes=5):
            super().__init__()
            self.head, self.tail = nn.Conv2d(16, classes, 1), nn.Conv2d(16, 16, 1)

        def forward(self, x):
            x = super().forward(x)
            return x + self.tail(x.mean(1, keepdim=True).repeat(1, 16, 1, 1)).mean(1, keepdim=True)

    torch.manual_seed(0)
    spec = {'type': 'ChannelPermutation'}
    entries = [dataclasses.replace(make_plan(['in:c']).entries[0], point=p, channels=c) for p, c in (('in:c', 32),)]
    entries.append(dataclasses.replace(entries[0], point='in:tail', channels=16, transform=spec))
    own = dataclasses.replace(make_plan(['in:c']), key_id=key.id, entries=tuple(entries))
    models = {classes: Late(classes).eval() for classes in (5, 3)}
    weights = dict(models[5].state_dict())
    file = Case(own, weights, lambda: Late(), 5)
    referee = MapReferee(key, own, file, pictures(2, 5))
    mine = {name: models[3].state_dict()[name] if name in HEAD else value for name, value in weights.items()}
    case = dataclasses.replace(file, weights=mine, build=lambda: Late(3), num_classes=3, grants=(OtherClasses(HEAD),))
    found = TransferReferee(referee, case, other_pictures(2, 6)).positive_control()
    assert found.passed and found.points == 1


# --- the other model


def test_weights_of_the_file_are_taken_over_and_the_classifier_is_not():
    theirs = trained()
    found, classifier = other_classes(build_other, Protected(None, '', None, theirs), (5, 3), 'x.py')
    assert classifier == HEAD and found.weights['head.weight'].shape[0] == 3
    assert all(torch.equal(found.weights[name], value) for name, value in theirs.items() if name not in HEAD)


def test_as_many_classes_as_the_file_has_keep_its_classifier():
    weights = build_small().state_dict()
    found, classifier = other_classes(build_small, Protected(None, '', None, weights), (5, 5), 'x.py')
    assert set(classifier) == {'decode_head.conv_seg.weight', 'decode_head.conv_seg.bias'}
    assert torch.equal(found.weights[classifier[0]], weights[classifier[0]])


def test_another_architecture_is_told_by_names_and_shapes():
    class Wide(OtherNet):
        def __init__(self):
            super().__init__()
            self.c = nn.Conv2d(32, 17, 3)

    class More(OtherNet):
        def __init__(self):
            super().__init__()
            self.d = nn.Conv2d(16, 16, 1)

    for cls, words in (
        (Wide, '1 have another shape.*c.weight'),
        (More, '2 weights are in one of the two only.*d.bias'),
    ):
        with pytest.raises(KeysegError, match=f'another architecture.*{words}'):
            other_classes(cls, Protected(None, '', None, trained()), (5, 3), 'x.py')


# --- from files to a report


@pytest.fixture
def ade(tmp_path, files):  # noqa: F811
    """A config of the small model for three classes over data laid out as ADE20K; `change(...)` writes a variant."""
    rng = np.random.default_rng(3)
    for split in ('training', 'validation'):
        for index in range(4):
            label = np.kron(rng.integers(0, 4, (4, 4)), np.ones((16, 16))).astype(np.uint8)  # 0 is not labelled
            image = (label[..., None] * np.array([60, 20, 40]) + rng.integers(0, 20, (64, 64, 3))).astype(np.uint8)
            for kind, suffix, what in (('images', 'jpg', image), ('annotations', 'png', label)):
                path = tmp_path / 'ade' / kind / split / f'photo_{index}.{suffix}'
                path.parent.mkdir(parents=True, exist_ok=True)
                assert cv2.imwrite(str(path), what)

    def write(name='ade.py', data='ade', **head):
        cfg = runner_cfg(tmp_path, tmp_path / 'work', small_model_cfg())
        cfg.model.decode_head.update({'num_classes': 3, **head})
        load = dict(type='LoadAnnotations', reduce_zero_label=True)
        for loader, split in (('train_dataloader', 'training'), ('test_dataloader', 'validation')):
            cfg[loader].dataset = dict(
                type='ADE20KDataset',
                data_root=str(tmp_path / data),
                data_prefix=dict(img_path=f'images/{split}', seg_map_path=f'annotations/{split}'),
                pipeline=[dict(type='LoadImageFromFile'), load, dict(type='PackSegInputs')],
            )
        cfg.dump(str(tmp_path / name))
        return tmp_path / name

    write()
    return write


@pytest.fixture
def audit(files, key_file, monkeypatch):  # noqa: F811
    """`keyseg audit`, cut short."""
    picked = ('random-keys', 'finetune-head', 'transfer-substitute')
    monkeypatch.setattr(suite, 'ATTACKS', {name: ATTACKS[name] for name in picked})
    monkeypatch.setattr(suite, 'SUITES', {'quick': ModelSuite(3, 20.0, 2, 4, 64, (0.5,), (0.5,))})
    fixed = [
        'audit',
        str(files / 'plain.py'),
        str(files / 'locked.pth'),
        '--key',
        f'file:{key_file}',
        '--device',
        'cpu',
    ]
    return lambda *more: main([*fixed, '--suite', 'quick', '--out', str(files / 'out'), *map(str, more)])


def test_the_command_transfers_resumes_and_leaks_nothing(ade, audit, files, key, file_plan, monkeypatch, capsys):  # noqa: F811
    public = ('--public', files / 'public.pth')
    audit(*public)
    alone = json.loads((files / 'out' / 'report.json').read_text())
    assert alone['summary']['transfer'] is None and alone['transfer'] is None
    assert 'Transfer to' not in (files / 'out' / 'report.html').read_text()
    done, attempt = [], ModelRunner.attempt
    monkeypatch.setattr(ModelRunner, 'attempt', lambda self, run: done.append(run.scenario.name) or attempt(self, run))
    capsys.readouterr()
    status = audit(*public, '--transfer', files / 'ade.py')
    assert done and all(name.startswith('transfer') for name in done)  # what was run without it is taken over
    done.clear()
    assert audit(*public, '--transfer', files / 'ade.py') == status and not done
    printed = capsys.readouterr().out
    report = json.loads((files / 'out' / 'report.json').read_text())
    part, said = report['transfer'], report['summary']['transfer']
    assert not errors_in(part['outcomes']) and part['check']['passed']
    runs = [one['about'] for one in part['outcomes']]
    kinds = {(run['kind'], run['name']) for run in runs}
    assert ('key-holder', 'finetune-head') in kinds and ('attack', 'transfer-substitute') in kinds
    assert ('attack', 'random-keys') not in kinds and ('control', 'from-public') in kinds
    assert {run['scenario'] for run in runs} == {'transfer-0.5', 'transfer-0.5-again'}
    assert all(one['score']['agreement'] is None for one in part['outcomes'])
    assert part['classifier'] == ['decode_head.conv_seg.weight', 'decode_head.conv_seg.bias']
    assert not [one for one in report['outcomes'] if one['about']['scenario'].startswith('transfer')]
    assert [row['photos'] for row in said['rows']] == [2]
    assert report['summary']['headline'] == alone['summary']['headline']  # that is about the model's own task
    page = (files / 'out' / 'report.html').read_text()
    assert said['says'] in printed and 'Transfer to another data set' in page and 'key holder' in page
    assert str(files) not in page  # no folders of the machine
    assert not find_leaks(files / 'out', key, [file_plan])


def test_what_does_not_belong_there_is_refused_before_anything_long(ade, audit, files, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr(ModelRunner, 'attempt', lambda *_: pytest.fail('something was run'))
    refused = {
        files / 'nowhere.py': 'no such file',
        ade('wide.py', channels=24): 'another architecture',
        ade('empty.py', data='nothing'): 'data_root',
        ade('few.py', num_classes=2): 'have the label 2, and its model knows 2 classes',
    }
    for config, words in refused.items():
        assert audit('--transfer', config) == 1
        error = capsys.readouterr().err
        assert words in error and config.name in error, error
    assert not (files / 'out').exists()


def test_results_of_another_model_config_are_not_taken_over(files, key):  # noqa: F811
    cfg = Config.fromfile(str(files / 'plain.py'))
    makes = [architecture(cfg, torch.device('cpu'), 0)]
    cfg.work_dir, cfg.optim_wrapper = 'elsewhere', dict(type='OptimWrapper')
    makes.append(architecture(cfg, torch.device('cpu'), 0))
    cfg.model.decode_head.loss_decode.loss_weight = 2.0
    makes.append(architecture(cfg, torch.device('cpu'), 0))
    referee, _ = stolen(key, ['in:c'])
    runner = ModelRunner(referee, files / 'results', [], bars=False)
    cases = [dataclasses.replace(referee.case, build=make) for make in makes]
    digests = [runner.digest(Run(ATTACKS['random-keys'], scenario_of(case))) for case in cases]
    assert digests[0] == digests[1] != digests[2]


# --- words and pages


def _made(kind, value, name=None, **more):
    return made_run(kind, name or f'{kind} {value}', value, 'transfer-0.1', 0.1, **{'recovery': None, **more})


@pytest.mark.parametrize(
    ('attack', 'holder', 'level'), [(30.0, 60.0, 'helps'), (22.0, 60.0, 'no-help'), (22.0, 22.5, 'idle')]
)
def test_levels_of_a_transfer(attack, holder, level):
    controls = [_made('control', 20.0, 'scratch'), _made('control', 17.0, 'scratch')]
    runs = [*controls, _made('attack', attack), _made('key-holder', holder)]
    found = transferred(part_of(runs))
    assert found.level == level and found.headline.noise == pytest.approx(3.0)
    assert found.headline.advantage == pytest.approx(attack - 20.0) and f'{holder:.1f}' in found.says
    unchecked = transferred(part_of(runs, passed=False))
    assert unchecked.level == 'void' and 'void' in unchecked.says
    failed = [_made('attack', 0.0, error='x')] * 3
    assert transferred(part_of([*runs, *failed])).level == 'void'
    assert transferred(part_of(failed)).headline is None
    assert transferred(None) is None


def test_a_key_that_other_photos_gave_away_is_told_of():
    runs = [_made('control', 20.0), _made('attack', 30.0, recovery=0.97), _made('key-holder', 60.0)]
    assert '97 % of the key itself' in transferred(part_of(runs)).says


def test_the_report_has_a_section_and_the_headline_stays():
    before = summarise(make_report())
    failed = _made('attack', 0.0, error='ValueError: no')
    runs = [_made('control', 20.1), _made('attack', 31.4), _made('key-holder', 62.7), _made('control', 3.0), failed]
    report = make_report(transfer=part_of(runs))
    summary = summarise(report)
    for name in ('headline', 'level', 'verdict', 'advantages', 'change'):
        assert getattr(summary, name) == getattr(before, name)
    assert summary.means == (*before.means, summary.transfer.says)
    assert any('the scenario transfer-0.1' in text for text in summary.warnings)
    parsed = Page()
    page = render(report, summary)
    parsed.feed(page)
    text = ' '.join(' '.join(parsed.texts).split())
    assert not parsed.open and '&lt;other&gt;.py' in page
    section = text[text.index('Transfer to another data set') : text.index('All runs')]
    for words in ('31.4', '20.1', '62.7', '4.2', '+11.3', 'key holder', 'passed', 'Attack 31.4'):
        assert words in section, words
    assert 'with the key' in text and '– %' not in text
    modest = summarise(make_report(transfer=part_of([_made('control', 20.1), _made('attack', 20.4)])))
    assert modest.means == before.means and modest.transfer.level == 'no-help'
