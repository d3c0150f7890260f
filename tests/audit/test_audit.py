"""The audit's frame: cases without secrets, a referee that checks itself, runs that resume, and an honest summary."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from keyseg_mm import attach, entries_at, find_leaks
from keyseg_mm.audit.engine.attack import Budget, ModelSuite, Registry
from keyseg_mm.audit.engine.datasets import nested_shares
from keyseg_mm.audit.engine.runner import Failure, Result, Run, Runner, Scenario
from keyseg_mm.audit.model import audit as suite
from keyseg_mm.audit.model.attack import (
    ATTACKS,
    CONTROLS,
    Attack,
    Attempt,
    Case,
    LabelledPhotos,
    Photos,
    PublicWeights,
)
from keyseg_mm.audit.model.attacks.finetuning import FromPublic, FromScratch, PublicAsIs
from keyseg_mm.audit.model.ciphertext import file_checks
from keyseg_mm.audit.model.forward import logits, predict
from keyseg_mm.audit.model.loading import architecture, fitting_sites, read_protected, read_public
from keyseg_mm.audit.model.referee import Referee, Score, confusion, kappa, miou, right_share, score
from keyseg_mm.audit.model.report import advantage, summarise
from keyseg_mm.audit.model.training import Recipe, train
from keyseg_mm.bind import derive_map, stamp_tensor
from keyseg_mm.cli import main
from keyseg_mm.errors import KeyMismatchError, KeysegError, PlainCheckpointError, SecretExposedError
from keyseg_mm.maps import CHANNEL_MAPS, ChannelPermutation, SignedChannelPermutation
from keyseg_mm.mm.dryrun import trace_module
from keyseg_mm.mm.floor import constant_prediction_floor
from keyseg_mm.seal.sections import Sealing, seal_checkpoint
from keyseg_mm.stamp import MapEntry, Stamp, stamps_of
from keyseg_mm.wrapping import memory_stamp
from tests.support.audits import (
    CLASSES,
    SALT,
    build,
    errors_in,
    lock,
    made_run,
    make_report,
    names_in,
    scenes,
)
from tests.support.fixed import TICKS
from tests.support.grants import grants
from tests.support.house import imports

AUDIT = Path(__file__).parents[2] / 'keyseg_mm' / 'audit'
REFEREES = ('images/referee.py', 'model/referee.py')


@pytest.fixture
def case(plain, key, plan):
    sites = {str(point): site for point, site in trace_module(build()).sites.items()}
    return Case(
        plan,
        lock(plain, key, plan),
        build,
        CLASSES,
        {entry.point: sites[entry.point] for entry in plan.entries},
        grants=(scenes(4, seed=1),),
        budget=Budget(6, 30.0),
    )


@pytest.fixture
def referee(case, key, plan):
    return Referee(key, plan, case, scenes(6, seed=2))


# --- cases


def _hiding_places(key):
    model = build()
    trace = trace_module(model)
    site = next(s for p, s in trace.sites.items() if str(p) == 'in:decode_head.conv_seg')
    attach(model, key, [site], entries_at([site]))
    bare = copy.deepcopy(model)
    for module in bare.modules():
        module._state_dict_hooks.clear()
        module._load_state_dict_pre_hooks.clear()
    cmap = ChannelPermutation(np.arange(4))
    return {
        'a key': {'grants': grants(second=(None, {'weights': key}))},
        'a map': {'grants': grants(public={'in:x': cmap})},
        'a keyed model': {'grants': grants(public={'model': model})},
        'one without hooks': {'grants': grants(public={'model': bare})},
        'closed over': {'build': lambda: (key, build())[1]},
        'a default': {'build': lambda k=key: build()},
        'a partial': {'build': functools.partial(build, key)},
        'a bound method': {'build': key.subkey},
        'photos': {'grants': (Photos(cmap),)},
    }


PLACES = ('a key', 'a map', 'a keyed model', 'one without hooks', 'closed over', 'a default', 'a partial')


@pytest.mark.parametrize('place', [*PLACES, 'a bound method', 'photos'])
def test_a_case_that_holds_a_secret_refuses_to_be_built(case, key, place):
    dataclasses.replace(case)  # the same without the secret is welcome
    with pytest.raises(SecretExposedError, match='may not be among'):
        dataclasses.replace(case, **_hiding_places(key)[place])


def test_guesses_are_applied_at_their_points(case, referee, key, plan):
    images = referee.held_out.images[:2]
    without = logits(case.model(), images)
    identity = {e.point: ChannelPermutation(np.arange(e.channels)) for e in plan.entries}
    assert torch.allclose(logits(case.model(identity), images), without, atol=1e-5)
    for entry in plan.entries:  # each point for itself
        guess = {entry.point: derive_map(key, plan.salt, entry)}
        assert not torch.allclose(logits(case.model(guess), images), without, atol=1e-3), entry.point
    with pytest.raises(KeysegError, match='in:nowhere'):
        case.model({'in:nowhere': identity[plan.entries[0].point]})


def test_scores_of_a_sliding_window_have_the_photos_size(plain):
    model, images = build(), scenes(2).images
    model.load_state_dict(plain)
    whole = logits(model, images)
    model.test_cfg = type(model.test_cfg)(mode='slide', crop_size=(32, 32), stride=(16, 16))
    slid = logits(model, images.requires_grad_())
    assert slid.shape == whole.shape == (2, CLASSES, 64, 64) and not torch.allclose(slid, whole)
    slid.sum().backward()
    assert images.grad.abs().sum() > 0


# --- the referee


def test_the_true_key_scores_full_marks_and_a_random_one_the_floor(referee, plain):
    model = build()
    model.load_state_dict(plain)
    truth = score(predict(model, referee.held_out.images), referee.held_out, referee.authorised, CLASSES)
    assert truth.miou > 60  # or nothing below would mean anything
    assert referee.full.miou == pytest.approx(truth.miou, abs=0.5)
    good, bad = referee.positive_control(), referee.negative_control(0)
    assert good.passed and good.score.recovery == 1.0
    assert good.score.miou == pytest.approx(referee.full.miou, abs=0.1)
    floor = constant_prediction_floor([referee.held_out.labels.numpy()], CLASSES)
    assert bad.passed and bad.score.recovery < 0.25 and bad.score.miou < 2.5 * floor < good.score.miou


def test_a_referee_that_scores_wrongly_is_found_out(referee, other_key, plan):
    assert referee.positive_control().passed
    entry = plan.entries[0]
    referee._maps[entry.point] = derive_map(other_key, plan.salt, entry)
    assert not referee.positive_control().passed


def test_the_referee_wants_the_right_key(case, other_key, plan):
    with pytest.raises(KeyMismatchError, match=other_key.id):
        Referee(other_key, plan, case, scenes(2))


def test_a_referee_is_a_secret_itself(case, referee):
    with pytest.raises(SecretExposedError):
        dataclasses.replace(case, build=functools.partial(build, referee))


# --- figures


def test_miou_and_kappa_of_a_constant_guess():
    photos = scenes(6, seed=5)
    truth = photos.labels
    majority = int(truth.flatten().bincount().argmax())
    said = predict(ConstantModel(majority, CLASSES), photos.images)
    counts = confusion(truth, said, CLASSES)
    assert miou(counts) == pytest.approx(constant_prediction_floor([truth.numpy()], CLASSES))
    assert kappa(counts) == pytest.approx(0.0, abs=1e-12)
    assert kappa(confusion(truth, truth, CLASSES)) == 1.0 and miou(confusion(truth, truth, CLASSES)) == 100.0


def test_ignored_pixels_do_not_count():
    truth, said = torch.tensor([[0, 1, 255, 255]]), torch.tensor([[0, 1, 1, 0]])
    assert confusion(truth, said, 2).tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize('name', sorted(CHANNEL_MAPS))
def test_right_share(name, key):
    entry = MapEntry('in:x', 24, {'type': name})
    truth, other = (derive_map(key, salt * 16, entry) for salt in (b'a', b'b'))
    assert right_share(truth, truth) == 1.0
    assert right_share(other, truth) < 0.4


def test_wrong_signs_are_wrong():
    table, signs = np.arange(8), np.ones(8, np.int8)
    flipped = signs.copy()
    flipped[:2] = -1
    assert right_share(SignedChannelPermutation(table, flipped), SignedChannelPermutation(table, signs)) == 0.75


# --- training and controls


def test_training_is_seeded_and_leaves_frozen_weights_alone():
    photos = scenes(4)
    runs = []
    for seed in (0, 0, 1):
        model = build()
        before = {n: v.clone() for n, v in model.state_dict().items()}
        course = train(model, photos, Recipe(3, 1e-3, lambda name: 'conv_seg' in name), seed=seed)
        changed = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
        assert changed == {'decode_head.conv_seg.weight', 'decode_head.conv_seg.bias'}
        assert not model.training
        runs.append(course.losses)
    assert runs[0] == runs[1] != runs[2]


def test_training_stops_when_its_seconds_are_up():
    photos = scenes(4)
    assert not train(build(), photos, Recipe(2, 1e-3)).exhausted
    course = train(build(), photos, Recipe(10_000, 1e-3), Budget(10_000, 0.3).clock())
    assert course.exhausted and 0 < len(course.losses) <= 0.3 / TICKS.TICK


def test_controls_learn_and_do_without_the_protected_weights(case, referee, plain, monkeypatch):
    monkeypatch.setattr(Case, 'model', lambda *_: pytest.fail('a control looked into the protected file'))
    case = dataclasses.replace(case, grants=(PublicWeights(plain), scenes(8)), budget=Budget(50, 60.0))
    found = {c.name: referee.judge(c().run(case, lambda *_: None))[0].miou for c in (FromScratch, FromPublic)}
    as_is = referee.judge(PublicAsIs().run(case, lambda *_: None))[0].miou
    start = referee.judge(Attempt(model=build()))[0].miou
    assert found['from-scratch'] > start + 10
    assert as_is == pytest.approx(referee.full.miou, abs=0.5)
    assert found['from-public'] > start + 10


def test_public_weights_of_another_head_are_used_as_far_as_they_go(case, plain):
    others = {n: v for n, v in plain.items() if 'conv_seg' not in n}
    attempt = PublicAsIs().run(case.granting(PublicWeights(others)), lambda *_: None)
    assert '2 tensors' in attempt.notes


# --- runs


class ConstantModel(nn.Module):
    """Says one class everywhere."""

    def __init__(self, label: int, num_classes: int) -> None:
        super().__init__()
        self.label, self.num_classes = label, num_classes

    def forward(self, images):
        scores = images.new_zeros(len(images), self.num_classes, *images.shape[2:])
        scores[:, self.label] = 1.0
        return scores


class Counting(Attack):
    """Counts how often it is run."""

    name, title, source, cost = 'counting', 'counting', 'a test', 'nothing'
    kind = 'recover'
    runs = 0

    def run(self, case, progress):
        type(self).runs += 1
        progress(0.5, 'half way')
        draw = [torch.rand(()).item(), np.random.rand()]
        return Attempt(notes=str(draw))


class Failing(Counting):
    """Fails."""

    name = title = 'failing'

    def run(self, case, progress):
        type(self).runs += 1
        raise ZeroDivisionError('of no matter')


class Dawdling(Counting):
    """Takes longer than it may."""

    name = title = 'dawdling'

    def run(self, case, progress):
        TICKS.skip(0.3)
        return Attempt()


def _run(attack, case, **changes):
    return Run(attack, Scenario('file', 'the file alone', dataclasses.replace(case, **changes)))


def test_finished_runs_are_taken_over_and_changed_ones_are_not(referee, case, tmp_path):
    Counting.runs = 0
    runner = Runner(referee, tmp_path, [0], bars=False)
    first = runner.run(_run(Counting, case))
    torch.rand(3)
    again = Runner(referee, tmp_path, [0], bars=True).run(_run(Counting, case))
    assert Counting.runs == 1 and again == first and isinstance(first, Result)
    assert first.score.miou == pytest.approx(referee.judge(Attempt())[0].miou)
    for number, changes in enumerate(
        [
            {'budget': Budget(7, 30.0)},
            {'seed': 1},
            {'grants': (scenes(4, seed=9),)},
            {'grants': (Photos(scenes(4, seed=1).images),)},
            {'weights': build().state_dict()},
        ],
        2,
    ):
        runner.run(_run(Counting, case, **changes))
        assert Counting.runs == number, changes
    next(tmp_path.glob('*.json')).write_text('{"digest": ')
    assert runner.run(_run(Counting, case)).notes == first.notes  # seeded: the same draws
    assert Counting.runs == 7


def test_a_failing_attack_does_not_end_the_suite_and_is_tried_again(referee, case, tmp_path):
    Failing.runs = 0
    runner = Runner(referee, tmp_path, [0], bars=False)
    outcomes = [runner.run(_run(attack, case)) for attack in (Failing, Counting, Failing)]
    assert isinstance(outcomes[0], Failure) and isinstance(outcomes[1], Result) and Failing.runs == 2
    assert 'ZeroDivisionError: of no matter (test_audit.py' in outcomes[0].error


def test_an_exhausted_budget_is_flagged(referee, case, tmp_path):
    runner = Runner(referee, tmp_path, [], bars=False)
    assert not runner.run(_run(Counting, case)).exhausted
    assert runner.run(_run(Dawdling, case, budget=Budget(5, 0.1))).exhausted


def test_guesses_never_reach_the_disk(referee, case, key, plan, tmp_path):
    class Winning(Counting):
        name = title = 'winning'

        def run(self, case, progress):
            return Attempt(guesses=dict(referee._maps))

    result = Runner(referee, tmp_path, [0], bars=False).run(_run(Winning, case))
    assert result.score.recovery == 1.0
    assert not find_leaks(tmp_path, key, [plan])


def test_attacks_are_run_where_something_new_helps_them(case):
    class Needy(Counting):
        name, needs = 'needy', frozenset({Photos})

    public = PublicWeights({})
    alone = Scenario('file', '', dataclasses.replace(case, grants=()))
    photos = Scenario('photos', '', case, frozenset({LabelledPhotos}))  # which serve as unlabelled ones too
    more = Scenario('more', '', case.granting(public), frozenset({PublicWeights}))
    assert [s.wants(Needy) for s in (alone, photos, more)] == [False, True, False]
    assert [s.wants(Counting) for s in (alone, photos, more)] == [True, False, False]
    with pytest.raises(KeysegError, match="grants nothing of the kind 'public'"):
        case[PublicWeights]
    assert case.granting(public)[PublicWeights] is public


def test_registering_an_attack_checks_it():
    registry = Registry()
    assert registry.register(Counting) is Counting and registry == {'counting': Counting}
    for changes, words in (({'source': ''}, 'source'), ({}, 'two attacks')):
        with pytest.raises(KeysegError, match=words):
            registry.register(type('Another', (Counting,), changes))


def test_every_attack_says_what_the_report_shows():
    assert len(ATTACKS) >= 10 and CONTROLS
    for attack in (*ATTACKS.values(), *CONTROLS.values()):
        assert attack.__doc__ and attack.title and attack.source and attack.cost


# --- the summary


def _report(*outcomes, floor=5.0):
    full = Score(60.0, 100.0, 1.0)
    facts = {'floor': floor, 'authorised': full, 'no_key': Score(4.0, 100.0, 1.0), 'held_out': 40, 'places': ()}
    return make_report(**facts, outcomes=outcomes)


def _made(kind, value, share=None, **more):
    return made_run(kind, f'{kind}{value}', value, f's{share}', share, **{'recovery': None, **more})


def test_advantage_is_best_attack_less_best_control_at_the_same_data():
    report = _report(
        _made('control', 20.0, 0.01),
        _made('control', 30.0, 0.1),
        _made('control', 99.0, 0.1, error='failed'),
        _made('attack', 24.0, 0.01),
        _made('attack', 22.0, None),
        _made('attack', 29.0, 0.1),
        _made('attack', 59.0, 0.01, error='failed'),
    )
    assert advantage(report, None).advantage == pytest.approx(22.0 - 5.0)  # against the constant guess
    assert advantage(report, 0.01).advantage == pytest.approx(24.0 - 20.0)
    assert advantage(report, 0.1).advantage == pytest.approx(29.0 - 30.0)
    found = summarise(report)
    assert found.headline.share is None


@pytest.mark.parametrize(
    ('value', 'level'), [(30.5, 'holds'), (36.0, 'leaks'), (50.0, 'falls')]
)  # control 30, right key 60
def test_levels(value, level):
    found = summarise(_report(_made('control', 30.0, 0.1), _made('attack', value, 0.1)))
    assert found.level == level and f'{value:.1f}' in found.verdict and found.change


def test_a_recovered_key_is_a_fall_however_small_the_gain():
    control = _made('control', 50.0, 0.1)
    for recovery, level in ((0.95, 'falls'), (0.2, 'leaks')):
        assert summarise(_report(control, _made('attack', 52.0, 0.1, recovery=recovery))).level == level


def test_an_audit_that_cannot_be_trusted_says_so():
    runs = _made('control', 30.0, 0.1), _made('attack', 10.0, 0.1)
    report = _report(*runs)
    assert summarise(report).level == 'holds'
    untrue = dataclasses.replace(report, positive=dataclasses.replace(report.positive, passed=False))
    assert summarise(untrue).level == 'void'
    failed = summarise(_report(*runs, *(_made('attack', 0.0, 0.1, error=word) for word in 'xy')))
    assert failed.level == 'void' and any('failed' in text for text in failed.warnings)
    assert summarise(_report(*runs, floor=59.0)).level == 'idle'


# --- from files to a report


def test_the_command_audits_resumes_and_leaks_nothing(files, key, key_file, file_plan, monkeypatch, capsys):
    picked = ('random-keys', 'finetune-head', 'match-public', 'two-files')
    monkeypatch.setattr(suite, 'ATTACKS', {name: ATTACKS[name] for name in picked})
    level = ModelSuite(3, 20.0, 3, 4, 64, (0.5,))
    monkeypatch.setattr(suite, 'SUITES', {'quick': level})
    arguments = ['audit', str(files / 'plain.py'), str(files / 'locked.pth'), '--key', f'file:{key_file}']
    arguments += ['--suite', 'quick', '--out', str(files / 'out'), '--public', str(files / 'public.pth')]
    arguments += ['--second', str(files / 'second.pth')]
    status = main([*arguments, '--device', 'cpu'])
    report = json.loads((files / 'out' / 'report.json').read_text())
    assert not errors_in(report['outcomes'])
    assert names_in(report['outcomes']) >= {'from-scratch', 'from-public', *picked}
    assert (
        report['summary']['level'] == 'falls' and 'public' in report['summary']['headline']['attack']['about']['needs']
    )
    assert report['positive']['passed'] and report['positive']['score']['recovery'] == 1.0
    assert status == 4
    assert report['summary']['verdict'] in capsys.readouterr().out
    assert (files / 'out' / 'report.html').stat().st_size > 10_000
    assert not find_leaks(files / 'out', key, [file_plan])
    monkeypatch.setattr(Runner, 'attempt', lambda *_: pytest.fail('a finished run was run again'))
    assert main([*arguments, '--device', 'cpu']) == status


def test_the_command_refuses_what_does_not_belong_together(files, key_file, other_key_file, capsys):
    def status(checkpoint='locked.pth', key=key_file, *more):
        options = ['--key', f'file:{key}', '--suite', 'quick', '--out', str(files / 'out'), *more]
        return main(['audit', str(files / 'plain.py'), str(files / checkpoint), *options]), capsys.readouterr().err

    for said, words in (
        (status('plain.pth'), 'is plain'),
        (status(key=other_key_file), 'is protected with key'),
        (status('locked.pth', key_file, '--public', str(files / 'locked.pth')), '--public takes the plain'),
        (status('locked.pth', key_file, '--images', '--public', 'p.pth'), '--public goes with the audit of a model'),
    ):
        assert said[0] == 1 and words in said[1], said
    for options, words in ((['--data-share', '0,2'], 'shares above 0'), (['--seed', '-1'], 'from 0 on')):
        with pytest.raises(SystemExit):
            main(['audit', 'a', 'b', '--key', 'none', '--out', 'o', *options])
        assert words in capsys.readouterr().err
    said = status('locked.pth', key_file, '--device', 'abacus')
    assert said[0] == 1 and '--device abacus' in said[1]
    assert not (files / 'out' / 'results').exists()


def test_checkpoints_are_read_for_what_they_are(files, file_plan, key):
    device = torch.device('cpu')
    found = read_protected(files / 'locked.pth', device, key)
    assert found.stamp.entries == file_plan.entries and not any('stamp' in name for name in found.weights)
    with pytest.raises(PlainCheckpointError):
        read_protected(files / 'plain.pth', device, key)
    with pytest.raises(KeysegError, match='protected'):
        read_public(files / 'locked.pth', found.weights)
    with pytest.raises(KeysegError, match='no weights in common'):
        read_public(files / 'plain.pth', {'x': torch.ones(1)})
    assert set(read_public(files / 'public.pth', found.weights)) < set(found.weights)


def test_a_stamp_of_a_part_is_read_by_the_whole_models_names(files, plain, key):
    """A Keyed backbone has a stamp of its own, with points named from there."""
    from mmengine.config import Config

    spec = {'type': 'ChannelPermutation'}
    own = Stamp(key.id, SALT, (MapEntry('in:layer1.0.conv1', 8, spec),))
    theirs = dataclasses.replace(own, entries=(MapEntry('in:backbone.layer1.0.conv1', 8, spec),))
    tmap = derive_map(key, SALT, own.entries[0])  # the tables go by the stamp's own names
    locked = {**plain, 'backbone.layer1.0.conv1.weight': tmap(plain['backbone.layer1.0.conv1.weight'], 1)}
    torch.save({**locked, f'backbone.{own.name}': stamp_tensor(own)}, files / 'part.pth')
    found = read_protected(files / 'part.pth', torch.device('cpu'), key)
    assert found.prefix == 'backbone' and found.stamp.entries == theirs.entries
    make = architecture(Config.fromfile(str(files / 'plain.py')), torch.device('cpu'), 0)
    case = Case(found.stamp, found.weights, make, CLASSES, fitting_sites(make, found, files / 'plain.py'))
    referee = Referee(key, found.own, case, scenes(4, seed=2), found.prefix)
    assert referee.positive_control().passed and referee.full.miou > 60


def test_initial_weights_are_seeded_and_leave_other_generators_alone(files):
    from mmengine.config import Config

    cfg = Config.fromfile(str(files / 'plain.py'))
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='torchvision://resnet18')  # must not be loaded
    makes = [architecture(cfg, torch.device('cpu'), seed) for seed in (0, 0, 1)]
    np.random.seed(1)
    expected = np.random.RandomState(1).rand()
    first, second, third = (make().state_dict()['backbone.conv1.weight'] for make in makes)
    assert torch.equal(first, second) and not torch.equal(first, third)
    assert np.random.rand() == expected


def test_shares_are_nested():
    found = nested_shares(200, (0.01, 0.05, 0.1), seed=0, most=15)
    assert [len(found[s]) for s in (0.01, 0.05, 0.1)] == [2, 10, 15]
    assert found[0.1][:10] == found[0.05] and found[0.05][:2] == found[0.01]
    assert nested_shares(5, (0.01,), 0, None)[0.01] and found != nested_shares(200, (0.01, 0.05, 0.1), 1, 15)


# --- who may know what


def test_the_referee_alone_can_derive_the_key():
    secret = (
        'keyseg_mm.bind',
        'keyseg_mm.keys.keyfile',
        'keyseg_mm.keys.locator',
        'keyseg_mm.runtime.attach',
        'keyseg_mm.runtime.protection',
        'keyseg_mm.runtime.leaks',
    )
    for path in sorted(AUDIT.rglob('*.py')):
        names = imports(path)
        if path.name == 'audit.py':  # an audit follows the key's locator and hands the key on to the referee
            names -= {name for name in names if name.startswith('keyseg_mm.keys.')}
        if path.name != 'referee.py':
            assert not any(name.startswith('keyseg_mm.keys.key') for name in names), path
            assert not names & {*secret, 'keyseg_mm.attach'}, path
    assert all(imports(AUDIT / name) >= {'keyseg_mm.bind', 'keyseg_mm.keys.key'} for name in REFEREES)


def test_attacks_do_not_know_the_referee():
    files = sorted(p for p in AUDIT.rglob('*.py') if p.parent.name == 'attacks')
    assert len(files) > 8
    for path in files:
        assert not any(
            n.startswith(('keyseg_mm.audit.model.referee', 'keyseg_mm.audit.model.audit')) for n in imports(path)
        ), path


def test_a_sealed_file_is_opened_for_the_attacks_and_looked_at_as_it_is(files, key, other_key):
    content = torch.load(files / 'locked.pth')['state_dict']
    bare = read_protected(files / 'locked.pth', torch.device('cpu'), key)
    stamp = next(iter(stamps_of(content).values()))
    del content[stamp.name]
    content[stamp.name] = stamp_tensor(memory_stamp(key, stamp, key.features(stamp.salt)))
    torch.save(seal_checkpoint({'state_dict': content}, Sealing(key)), files / 'sealed.pth')
    found = read_protected(files / 'sealed.pth', torch.device('cpu'), key)
    assert bare.sealed is None and found.sealed is not None
    assert found.stamp.entries == bare.stamp.entries
    assert all(torch.equal(t, bare.weights[name]) for name, t in found.weights.items())
    assert not torch.equal(found.sealed['backbone.conv1.weight'], found.weights['backbone.conv1.weight'])
    assert all(check.passed for check in file_checks(found.sealed, key, bare.weights))
    with pytest.raises(KeyMismatchError):
        read_protected(files / 'sealed.pth', torch.device('cpu'), other_key)
    torch.save(
        seal_checkpoint({'state_dict': torch.load(files / 'plain.pth')['state_dict']}, Sealing(key)), files / 'no.pth'
    )
    with pytest.raises(PlainCheckpointError, match='no maps in its weights'):
        read_protected(files / 'no.pth', torch.device('cpu'), key)


def test_what_is_no_ciphertext_fails_the_checks(plain, key):
    assert all(c.passed for c in file_checks(seal_checkpoint({'state_dict': plain}, Sealing(key))['state_dict'], key))
    section = seal_checkpoint({'state_dict': plain}, Sealing(key, mode='signed'))['state_dict']
    failed = {check.name for check in file_checks(section, key, plain) if not check.passed}
    assert 'bytes are equally frequent' in failed and 'values do not go with the plain ones' in failed
    assert 'values do not go with the public ones' in failed
