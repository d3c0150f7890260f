"""``keyseg compare``: configs, figures and page, and the whole of it, small."""

from __future__ import annotations

import itertools
import json
import math
import re
import stat

import pytest
import torch
from mmengine.config import Config

from keyseg_mm import KeysegError
from keyseg_mm.audit.engine.attack import SUITES, ModelSuite
from keyseg_mm.cli import main as commands_main
from keyseg_mm.compare import configs, trial
from keyseg_mm.compare.methods import FAILED, METHODS, Options, Row, pick
from keyseg_mm.compare.run import HEAD, Comparison, as_page, cells
from keyseg_mm.entries import ImageEntry, MapEntry
from keyseg_mm.locking.scheme import key_space
from keyseg_mm.maps.keyspace import bits_of_half, bits_of_permutation
from keyseg_mm.stamp import Stamp
from tests.support.cli import keyseg
from tests.support.configs import runner_cfg, setr_cfg, tiny_model_cfg
from tests.support.families import build
from tests.support.host import host
from tests.support.pages import PHONE, SCREEN, Page, look

COMMANDS = 'keyseg_mm.cli'
RUN_COMMAND = trial.run_command
TINY = ModelSuite(1, 1.0, 2, 2, 64, (0.5,))
FIRST = ['image-np-4', 'lock-signed', 'weights-selective', 'patches']


class Steps:
    """Runs the steps in this process, notes them, and lets those that are named break down."""

    def __init__(self):
        self.ran, self.broken = [], {}

    def __call__(self, module, arguments, log):
        self.ran.append((arguments[0], log.parent.name, log.stem))
        trouble = self.broken.get((log.parent.name, log.stem))
        if trouble is not None:
            log.write_text(trouble)
            return 1
        with host(log):
            return commands_main(arguments)


@pytest.fixture(scope='module')
def small():
    """Steps in this process, and audits that take no time."""
    with pytest.MonkeyPatch.context() as patch:
        here = Steps()
        patch.setattr(trial, 'run_command', here)
        patch.setitem(SUITES, 'quick', TINY)
        yield here


@pytest.fixture(scope='module')
def compared(small, tmp_path_factory, tiny_cityscapes):
    """A comparison in which one training breaks down, taken up again; and what was run in each of the two."""
    folder = tmp_path_factory.mktemp('compare')
    config, out = folder / 'tiny.py', folder / 'out'
    cfg = runner_cfg(tiny_cityscapes, folder / 'work', tiny_model_cfg(), iterations=2)
    cfg.train_dataloader.dataset.data_root = 'nowhere'
    cfg.dump(str(config))
    command = ['compare', config, '--out', out, '--wrong-keys', 2, '--methods', *FIRST, '--cfg-options']
    command += [f'train_dataloader.dataset.data_root={tiny_cityscapes}', 'optim_wrapper.optimizer.lr=0.02']
    found = {'folder': folder, 'config': config, 'out': out, 'command': command, 'data': tiny_cityscapes}
    small.broken = {('image-np-4', 'train'): 'Traceback\n  File\nRuntimeError: the <loss> is gone\nbye\n'}
    for name in ('first', 'second'):
        small.ran = []
        status = keyseg(*command)
        found[name] = status, list(small.ran), json.loads((out / 'compare.json').read_text())
        small.broken = {}
    found['page'] = (out / 'compare.html').read_text()  # before a test takes the comparison up again
    return found


def row(report, name):
    return next(r for r in report['rows'] if r['name'] == name)


# The whole of it


def test_a_failure_ends_its_own_row_alone(compared):
    status, ran, report = compared['first']
    assert status == 1
    broken = row(report, 'image-np-4')
    assert broken['status'] == 'failed' and broken['why'].startswith('RuntimeError: the <loss> is gone')
    assert {r['name']: r['status'] for r in report['rows'] if r['name'] != 'image-np-4'} == {
        'plain': 'done', 'lock-signed': 'done', 'patches': 'not applicable', 'weights-selective': 'done',
    }  # fmt: skip
    assert ('test', 'lock-signed', 'test-none') in ran and ('train', 'plain', 'train') in ran


def test_what_is_finished_is_not_run_again(compared):
    _, ran, _ = compared['first']
    status, again, report = compared['second']
    assert status == 0 and len(ran) > 12
    assert {method for tool, method, _ in again if tool != 'audit'} == {'image-np-4'}
    assert [step for tool, _, step in again if tool == 'test'] == [
        f'test-{who}' for who in ('right', 'none', 'wrong-1', 'wrong-2')
    ]
    assert row(report, 'image-np-4')['status'] == 'done'


def test_a_step_whose_result_is_lost_is_run_again(compared, small, capsys):
    (compared['out'] / 'lock-signed' / 'test-none.done').unlink()
    small.ran = []
    assert keyseg(*compared['command']) == 0
    assert [step for step in small.ran if step[0] != 'audit'] == [('test', 'lock-signed', 'test-none')]
    printed = capsys.readouterr().out
    assert 'locked, signs: done' in printed and 'audit advantage' in printed
    assert json.loads((compared['out'] / 'compare.json').read_text())['rows'] == compared['second'][2]['rows']


def test_what_belongs_to_another_checkpoint_is_run_again(compared, small):
    folder = compared['out']
    (folder / 'weights-selective' / 'lock.done').unlink()
    before = (folder / 'weights-selective' / 'locked.pth').read_bytes()
    small.ran = []
    assert keyseg(*compared['command']) == 0
    ran = [step for tool, method, step in small.ran if method == 'weights-selective' and tool != 'audit']
    assert ran == ['lock', 'test-right', 'test-none', 'test-wrong-1', 'test-wrong-2']
    after = json.loads((compared['out'] / 'compare.json').read_text())
    assert (folder / 'weights-selective' / 'locked.pth').read_bytes() != before  # a new salt, another order
    assert row(after, 'weights-selective')['miou']['right'] == row(after, 'plain')['miou']['right']


def test_the_figures(compared):
    _, _, report = compared['second']
    plain = row(report, 'plain')['miou']['right']
    assert 0 < report['floor'] < 100 and plain > 0
    assert row(report, 'lock-signed')['miou']['right'] == pytest.approx(plain, abs=0.02)
    assert row(report, 'weights-selective')['miou']['right'] == plain
    for name in ('image-np-4', 'lock-signed', 'weights-selective'):
        found = row(report, name)
        assert list(found['miou']) == ['right', 'none', 'wrong-1', 'wrong-2']
        assert found['seconds'] > 0
        assert found['audit']
    assert row(report, 'image-np-4')['key_space'] == pytest.approx(math.log2(math.comb(48, 24)))
    assert f'{row(report, "lock-signed")["advantage"]:+.1f}' in row(report, 'lock-signed')['audit']
    assert 'patch' in row(report, 'patches')['why'] and not row(report, 'patches')['miou']


def test_each_method_runs_by_its_config_alone(compared, tmp_path):
    folder = compared['out']
    for name, word in (('image-np-4', 'EncryptImage'), ('lock-signed', 'keyseg_mm.Keyed')):
        assert word in (folder / name / 'config.py').read_text()
        cfg = Config.fromfile(str(folder / name / 'config.py'))
        assert cfg.train_dataloader.dataset.data_root == str(compared['data'])
        assert cfg.optim_wrapper.optimizer.lr == 0.02
    config, checkpoint = folder / 'lock-signed' / 'config.py', folder / 'lock-signed' / 'locked.pth'
    with host(tmp_path / 'log'):
        assert keyseg('test', config, checkpoint, '--work-dir', tmp_path / 'work') == 0
    (metrics,) = tmp_path.glob('work/*/*.json')
    assert json.loads(metrics.read_text())['mIoU'] == row(compared['second'][2], 'lock-signed')['miou']['right']


def test_nothing_secret_is_written(compared):
    key = compared['out'] / 'compare.key'
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert keyseg('scan', compared['out'] / 'lock-signed', '--key', f'file:{key}') == 0
    for path in compared['out'].iterdir():
        if path.is_file() and path != key:
            assert keyseg('scan', path, '--key', f'file:{key}') == 0


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (['--seed', '1'], 'other options (seed)'),
        (['--suite', 'none'], 'other options (suite)'),
        (['--wrong-keys', '3', '--seed', '1'], 'other options (seed, wrong_keys)'),
        (['--methods', 'rot13'], "no method 'rot13'; there are plain"),
        (['--plain', 'no.pth'], 'no such file'),
        (['--cfg-options', 'train_cfg.max_iters=7'], 'other options (cfg_options, contents'),
        (['--cfg-options', 'nonsense'], 'takes NAME=VALUE'),
    ],
)
def test_changed_and_bad_options_are_refused(compared, small, capsys, change, message):
    small.ran = []
    kept = (compared['out'] / 'options.json').read_text()
    assert keyseg(*compared['command'], *change) == 1
    assert message in capsys.readouterr().err
    assert not small.ran and (compared['out'] / 'options.json').read_text() == kept


def test_a_changed_config_and_a_strange_folder_are_refused(compared, tmp_path, capsys):
    text = compared['config'].read_text()
    compared['config'].write_text(text + '\nsomething = 1\n')
    try:
        assert keyseg(*compared['command']) == 1
    finally:
        compared['config'].write_text(text)
    assert 'contents of the config' in capsys.readouterr().err
    (tmp_path / 'mine.txt').write_text('mine')
    assert keyseg('compare', compared['config'], '--out', tmp_path) == 1
    assert 'holds mine.txt' in capsys.readouterr().err and [p.name for p in tmp_path.iterdir()] == ['mine.txt']
    protected = compared['out'] / 'lock-signed' / 'config.py'
    assert keyseg('compare', protected, '--out', tmp_path / 'x', '--suite', 'none') == 1
    assert 'is protected already' in capsys.readouterr().err and not (tmp_path / 'x').exists()
    assert keyseg('compare', '--out', tmp_path) == 1 and keyseg('compare', compared['config']) == 1


def test_a_vision_transformer_from_a_trained_checkpoint(small, tmp_path, tiny_cityscapes):
    """Nothing is trained; the patches method is there, and the plain checkpoint stays where it is."""
    cfg = runner_cfg(tiny_cityscapes, tmp_path / 'work', setr_cfg())
    cfg.dump(str(tmp_path / 'setr.py'))
    torch.manual_seed(0)
    torch.save({'meta': {}, 'state_dict': build(setr_cfg()).state_dict()}, tmp_path / 'plain.pth')
    command = ['compare', tmp_path / 'setr.py', '--out', tmp_path / 'out', '--plain', tmp_path / 'plain.pth']
    small.ran = []
    assert keyseg(*command, '--methods', 'patches', '--suite', 'none', '--wrong-keys', 1) == 0
    assert not [step for step in small.ran if step[0] == 'train']
    report = json.loads((tmp_path / 'out' / 'compare.json').read_text())
    found, plain = row(report, 'patches'), row(report, 'plain')['miou']['right']
    assert found['miou']['right'] == pytest.approx(plain, abs=0.01) and found['audit'] == ''
    assert found['miou']['none'] != found['miou']['right']
    assert found['key_space'] > 1000


def test_side_by_side_the_figures_are_the_same(compared, tmp_path, monkeypatch):
    """Each step in a process of its own, two at a time."""
    plain = compared['out'] / 'plain' / 'train' / 'iter_2.pth'
    command = [a if a != compared['out'] else tmp_path / 'out' for a in compared['command']]
    command[command.index('--methods') + 1 : command.index('--cfg-options')] = ['lock-signed', '--suite', 'none']
    monkeypatch.setattr(trial, 'run_command', RUN_COMMAND)
    assert keyseg(*command, '--plain', plain, '--wrong-keys', 0, '--jobs', 2) == 0
    found = json.loads((tmp_path / 'out' / 'compare.json').read_text())
    for name in ('plain', 'lock-signed'):
        there, here = row(compared['second'][2], name)['miou'], row(found, name)['miou']
        assert here['right'] == pytest.approx(there['right'], abs=0.02)
    assert list(here) == ['right', 'none']


# Its parts


def test_a_step_is_a_process_of_its_own(tmp_path):
    log, key = tmp_path / 'log', tmp_path / 'new.key'
    assert trial.run_command(COMMANDS, ['keygen', '--out', str(key)], log) == 0 and key.is_file()
    assert trial.run_command(COMMANDS, ['keygen', '--out', str(key)], log) == 1
    reason = trial.reason_in(log)
    assert isinstance(reason, trial.RefusedError)
    assert 'exists already' in str(reason) and 'keygen' not in str(reason)
    log.write_text('')
    reason = trial.reason_in(log)
    assert 'it printed nothing' in str(reason) and not isinstance(reason, trial.RefusedError)


def test_key_spaces():
    assert 2 ** bits_of_permutation(4) == pytest.approx(len(list(itertools.permutations(range(4)))))
    assert 2 ** bits_of_half(6) == pytest.approx(len(list(itertools.combinations(range(6), 3))))
    assert 2 ** bits_of_half(5) == pytest.approx(10)

    def bits(*entries):
        return key_space(Stamp('id', b'', entries))

    def maps(channels, **transform):
        return MapEntry('out:backbone', channels, transform)

    permutation, signed = maps(64, type='ChannelPermutation'), maps(64, type='SignedChannelPermutation')
    assert bits(permutation) == pytest.approx(math.log2(math.factorial(64)))
    assert bits(signed) == bits(permutation) + 64 and bits(signed, permutation) == bits(signed) + bits(permutation)
    shuffle = bits(maps(9, type='BlockShuffle', block=2))
    assert 2**shuffle == pytest.approx(math.factorial(36) * math.factorial(9))
    assert math.isinf(bits(maps(64, type='ChannelRotation')))
    images = [bits(ImageEntry(method, 4)) for method in ('SHF', 'NP', 'FFX')]
    assert images[0] == pytest.approx(math.log2(math.factorial(48)))
    assert images[2] - images[1] == pytest.approx(math.log2(math.factorial(256)))


def test_methods_are_picked_by_name_and_pattern():
    assert len(METHODS) == 16 and all(m.does and m.lacks and m.source and m.name == n for n, m in METHODS.items())
    assert [m.name for m in pick(['image-shf-*', 'lock-*'])] == [
        'plain', 'image-shf-4', 'image-shf-16', 'lock-permutation', 'lock-signed', 'lock-rotation',
    ]  # fmt: skip
    assert [(m.name, m.block) for m in pick(['image-np-8'])] == [('plain', 0), ('image-np-8', 8)]
    assert pick() == list(METHODS.values())
    for text in ('image-np-0', 'image-xor-8', 'locked'):
        with pytest.raises(KeysegError, match='no method'):
            pick([text])


def test_the_list(capsys):
    assert keyseg('compare', '--list') == 0
    assert 'image-shf-16' in (printed := capsys.readouterr().out) and 'arXiv 2206.05422' in printed


def test_options_are_put_into_a_plain_config(tmp_path):
    path = tmp_path / 'base.py'
    path.write_text("model = dict(type='A', b=[1, 2])\nc = 5\n")
    cfg = configs.read_plain(path, ['model.b=[1,2,3]', 'x.y=none', 'c=1.5'])
    assert (cfg.model.b, cfg.x.y, cfg.c) == ([1, 2, 3], 'none', 1.5)
    assert configs.read_plain(path).c == 5
    with pytest.raises(KeysegError, match='do not fit'):
        configs.read_plain(path, ['c.d=1'])
    path.write_text('c = 5\n')
    with pytest.raises(KeysegError, match='no model'):
        configs.read_plain(path)


def test_pipelines_are_found_wherever_they_are():
    step = dict(type='keyseg_mm.EncryptImage', key='none')
    load, labels, pack = dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='mmseg.PackSegInputs')
    inner = dict(type='A', pipeline=[load, labels, pack])
    cfg = Config(dict(model=dict(), train_dataloader=dict(dataset=dict(type='RepeatDataset', dataset=dict(inner)))))
    cfg.test_dataloader = dict(dataset=dict(datasets=[dict(inner), dict(inner)]))
    configs.insert(cfg, configs.LOADERS, step)
    assert cfg.train_dataloader.dataset.dataset.pipeline == [load, labels, step, pack]
    keys = [f'test_dataloader.dataset.datasets.{i}.pipeline.2.key' for i in (0, 1)]
    assert configs.key_options(cfg) == keys
    cfg.merge_from_dict(dict.fromkeys(keys, 'random:1'))
    assert cfg.test_dataloader.dataset.datasets[1].pipeline[2].key == 'random:1'
    resize = dict(type='Resize', scale=(1, 1))
    cfg.test_dataloader = dict(dataset=dict(type='A', pipeline=[load, labels, resize, pack]))
    configs.insert(cfg, ['test_dataloader'], step, divisor=16)
    assert [s['type'].rpartition('.')[2] for s in cfg.test_dataloader.dataset.pipeline] == [
        'LoadImageFromFile', 'Resize', 'ResizeToMultiple', 'EncryptImage', 'LoadAnnotations', 'PackSegInputs',
    ]  # fmt: skip
    whole = dict(type='ResizeToMultiple', size_divisor=32)
    cfg.test_dataloader = dict(dataset=dict(type='A', pipeline=[load, whole, pack]))
    configs.insert(cfg, ['test_dataloader'], step, divisor=16)
    assert cfg.test_dataloader.dataset.pipeline == [load, whole, step, pack]
    cfg.train_dataloader.dataset = dict(type='B')
    with pytest.raises(KeysegError, match='train_dataloader has no pipeline'):
        configs.insert(cfg, configs.LOADERS, step)


def made_up(config='city.py'):
    """A comparison with a method that came to its end and one that did not."""
    good = Row(
        'good', 'good', miou={'right': 39.8, 'none': 1.0, 'wrong-1': 3.0, 'wrong-2': 2.0}, audit='+0.4 (x|y, 20.0)'
    )
    rows = [Row('plain', 'plain', miou={'right': 40.0}), good, Row('broken', 'broken', FAILED, 'it <broke>')]
    return Comparison(Options(config, [], None, 'file:my.key', 0, 'quick', 2), [], 2.5, rows)


def test_the_cells_of_a_row():
    city = made_up()
    assert cells(city, city.rows[1]) == [
        'good', '39.80', '0.20', '1.00', '3.00', '2.50', '–', 'not countable', '+0.4 (x|y, 20.0)',
    ]  # fmt: skip
    assert cells(city, city.rows[0])[2:5] == ['–'] * 3 and cells(city, city.rows[0])[-2:] == ['–'] * 2


@pytest.fixture(scope='module')
def page(compared):
    return compared['page']


def test_the_page_stands_alone_and_says_it_all(compared, page):
    parsed = Page()
    parsed.feed(page)
    assert not parsed.open and not parsed.addresses
    assert not re.search(r'url\(|@import|<script|<link', page)
    text = ' '.join(' '.join(parsed.texts).split())
    report = compared['second'][2]
    for words in (*HEAD, 'Locked, signs', 'Not applicable', row(report, 'patches')['why'][:40]):
        assert ' '.join(words.split()) in text, words
    assert all(method['does'] in text and method['lacks'] in text for method in report['methods'])
    assert parsed.tags.count('dl') == 2


def test_nothing_from_outside_becomes_markup():
    text = as_page(made_up('<i>city.py'), '<u>')
    assert not re.search(r'<(broke|i|u)>', text) and 'it &lt;broke&gt;' in text


@pytest.mark.parametrize('width', [PHONE, SCREEN])
def test_a_browser_shows_it_without_scrolling_sideways(browser, tmp_path, page, width):  # noqa: F811
    measures, picture = look(browser, tmp_path, page, width, height=2200)
    assert measures['client'] == width and measures['scroll'] <= width and not measures['wide'], measures
    assert (168, 99, 37) in {tuple(p) for p in picture[:1600].reshape(-1, 3).tolist()}  # the bars' blue, #2563a8
    assert (picture[:40] > 240).mean() > 0.5
