"""``keyseg demo``: its folder, its report, and the whole of it, small."""

from __future__ import annotations

import json
import stat

import cv2
import pytest

from keyseg_mm import KeysegError, SecretKey, find_leaks, read_key_file, write_key_file
from keyseg_mm.checkpoint.files import read_checkpoint, stamps_in
from keyseg_mm.cli import main
from keyseg_mm.cli.status import INTERRUPTED
from keyseg_mm.demo import run as demo
from keyseg_mm.demo.run import BARE, NONE, RIGHT, WRONG, Result, meaning, table
from keyseg_mm.mm.floor import constant_prediction_floor
from keyseg_mm.mm.scenes import make_scene
from keyseg_mm.seal.sections import sealed_stamp
from tests.support.host import registers_kept

COUNTS = {'train': 3, 'val': 2}
ITERATIONS = 2


@pytest.fixture(scope='module')
def demo_run(tmp_path_factory):
    """A whole demo, with one wrong key, in a folder of awkward name; and the process's state before and after."""
    root = tmp_path_factory.mktemp('demo')
    with pytest.MonkeyPatch.context() as patch, registers_kept():
        patch.setattr(demo, 'COUNTS', COUNTS)
        patch.setattr(demo, 'WRONG_TABLES', ('random:1',))
        patch.chdir(root)
        assert main(['demo', '--out', 'deep/demo out', '--iterations', str(ITERATIONS), '--seed', '3']) == 0
    return {'root': root, 'out': root / 'deep' / 'demo out'}


# The folder


def test_a_folder_that_is_not_empty_is_refused_and_left_alone(tmp_path, capsys):
    (tmp_path / 'mine.txt').write_text('mine')
    assert main(['demo', '--out', str(tmp_path)]) == 1
    assert 'is not empty' in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ['mine.txt']


def test_overwrite_removes_what_the_demo_made_and_nothing_else(tmp_path):
    out, mine = tmp_path / 'out', tmp_path / 'mine'
    demo.prepare(out, overwrite=False)
    (out / 'scenes' / 'val').mkdir(parents=True)
    mine.mkdir()
    for path in (out / 'scenes' / 'val' / 'a.png', out / 'demo.key', out / 'mine.txt', mine / 'photo.png'):
        path.write_text('x')
    with pytest.raises(KeysegError, match='is not empty'):
        demo.prepare(out, overwrite=False)
    (out / 'train').symlink_to(mine)
    with pytest.raises(KeysegError, match='train is a link'):
        demo.prepare(out, overwrite=True)
    (out / 'train').unlink()
    write_key_file(out / 'other.key', SecretKey(bytes(32)))
    with pytest.raises(KeysegError, match='other.key holds a key'):
        demo.prepare(out, overwrite=True)
    assert (out / 'demo.key').exists() and (out / 'scenes' / 'val' / 'a.png').exists()
    (out / 'other.key').write_text((out / 'other.key').read_text().replace('# made', '# made by keyseg demo, made'))
    demo.prepare(out, overwrite=True)
    assert sorted(p.name for p in out.iterdir()) == ['demo.log', 'mine.txt']
    assert (mine / 'photo.png').exists()


def test_overwrite_leaves_a_folder_alone_that_no_demo_has_made(tmp_path, capsys):
    (tmp_path / 'demo.key').write_text('mine')
    assert main(['demo', '--out', str(tmp_path), '--overwrite']) == 1
    assert 'no demo is known to have made' in capsys.readouterr().err
    assert (tmp_path / 'demo.key').read_text() == 'mine'


def test_a_file_in_the_folders_place_is_an_error(tmp_path):
    (tmp_path / 'out').write_text('mine')
    with pytest.raises(KeysegError, match='could not make the folder'):
        demo.prepare(tmp_path / 'out', overwrite=True)
    assert (tmp_path / 'out').read_text() == 'mine'


# The report


def results(right: float, bare: float, wrong: float) -> list[Result]:
    sealed = [Result(RIGHT, 'file:demo.key', right), Result(NONE, 'none', 2.0)]
    return [*sealed, Result(BARE, 'none', bare), Result(WRONG, 'random:1', wrong)]


def test_the_table_holds_every_figure_and_the_floor():
    text = table(results(58.0, 1.5, 3.0), 2.0, 'road')
    lines = text.splitlines()
    assert [line[:22].rstrip() for line in lines[2:]] == [RIGHT, NONE, BARE, WRONG, 'constant guess']
    assert '58.00     29.0' in lines[2]
    assert '1.50      0.8' in lines[4]
    assert '2.00      1.0' in lines[6]
    assert [line.count('#') for line in lines[2:]] == [26, 1, 1, 1, 1]


def test_the_words_follow_the_figures():
    locked, leaky, untrained = (meaning(results(*m), 2.0) for m in ((58, 1.5, 3), (58, 1.5, 9), (5, 1.5, 3)))
    assert 'at most 1.5 times' in locked and 'more than' not in locked
    assert 'at most 4.5 times' in leaky and 'more than' in leaky
    assert 'more --iterations' in untrained


# The whole


def test_the_demo_writes_table_figures_and_picture(demo_run):
    out = demo_run['out']
    figures = json.loads((out / 'results.json').read_text())
    expected = {(RIGHT, 'file:demo.key'), (NONE, 'none'), (BARE, 'none'), (WRONG, 'random:1')}
    assert set(figures['mIoU']) == {f'{who}: {key}' for who, key in expected}
    assert len(set(figures['mIoU'].values())) > 1  # the key makes a difference
    labels = [make_scene(3, 'val', i)[1] for i in range(COUNTS['val'])]
    assert figures['floor'] == pytest.approx(constant_prediction_floor(labels, 19))
    text = (out / 'table.txt').read_text()
    assert all(f'{miou:.2f}' in text for miou in (*figures['mIoU'].values(), figures['floor']))
    picture = cv2.imread(str(out / 'segmentations.png'))
    assert picture.shape[1] > 1500
    assert (picture == [128, 64, 128]).all(axis=2).sum() > 1000  # road, as Cityscapes paints it


def test_the_key_file_is_for_its_owner_alone(demo_run):
    assert stat.S_IMODE((demo_run['out'] / 'demo.key').stat().st_mode) == 0o600


def test_nothing_of_the_key_is_outside_its_file(demo_run):
    out = demo_run['out']
    key = read_key_file(out / 'demo.key')
    plans = list(stamps_in(out / 'train' / f'iter_{ITERATIONS}.pth').values())
    assert [plan.key_id for plan in plans] == [key.id]
    assert len(plans[0].entries) == 29  # what each layer reads
    assert sealed_stamp(read_checkpoint(out / 'train' / f'iter_{ITERATIONS}.pth')['state_dict'])
    assert not sealed_stamp(read_checkpoint(out / demo.OPENED)['state_dict'])
    assert stat.S_IMODE((out / demo.OPENED).stat().st_mode) == 0o600
    leaks = find_leaks(demo_run['root'], key, plans)
    assert leaks
    assert all(leak.where == str(out / 'demo.key') for leak in leaks)


def test_nothing_outside_the_folder_is_touched(demo_run):
    assert [p.name for p in demo_run['root'].iterdir()] == ['deep']
    assert [p.name for p in (demo_run['root'] / 'deep').iterdir()] == ['demo out']
    assert {p.name for p in demo_run['out'].iterdir()} == {*demo.MADE}


def test_a_second_demo_overwrites_the_first_quietly(demo_run, monkeypatch, capfd):
    out = demo_run['out']
    first = read_key_file(out / 'demo.key')
    monkeypatch.setattr(demo, 'COUNTS', COUNTS)
    monkeypatch.setattr(demo, 'WRONG_TABLES', ())
    with registers_kept():
        assert main(['demo', '--out', str(out), '--iterations', '1', '--overwrite']) == 0
    assert read_key_file(out / 'demo.key') != first
    assert not (out / 'train' / f'iter_{ITERATIONS}.pth').exists()
    screen = capfd.readouterr()
    for noise in ('mmengine', 'Warning', 'UNAUTHORISED', 'INFO'):
        assert noise not in screen.out + screen.err
    for noise in ('mmengine', 'UNAUTHORISED', 'INFO'):
        assert noise in (out / 'demo.log').read_text()
    for place in ('demo.key', 'segmentations.png', 'protected.py', 'train/iter_1.pth', demo.OPENED):
        assert str(out / place) in screen.out
    assert f'refused. this checkpoint is protected with key {read_key_file(out / "demo.key").id}' in screen.out


# Trouble


def test_a_failure_is_told_in_one_place(tmp_path, monkeypatch, capsys):
    def fail(*args):
        raise OSError('the disk is full')

    monkeypatch.setattr(demo, 'write_scenes', fail)
    assert main(['demo', '--out', str(tmp_path / 'out')]) == 1
    told = capsys.readouterr().err
    assert 'OSError: the disk is full' in told
    assert 'Traceback' not in told
    assert 'Traceback' in (tmp_path / 'out' / 'demo.log').read_text()
    assert [p.name for p in tmp_path.iterdir()] == ['out']


def test_an_interruption_is_answered_and_can_be_overwritten(tmp_path, monkeypatch, capsys):
    def interrupt(root, *args):
        root.mkdir()
        (root / 'half.png').write_text('half')
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, 'write_scenes', interrupt)
    assert main(['demo', '--out', str(tmp_path / 'out')]) == INTERRUPTED
    assert 'stopped, as asked' in capsys.readouterr().err
    demo.prepare(tmp_path / 'out', overwrite=True)
    assert not (tmp_path / 'out' / 'scenes').exists()


@pytest.mark.parametrize('option', [('--iterations', '0'), ('--iterations', 'many'), ('--seed', '-1')])
def test_bad_numbers_are_refused(option, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(['demo', '--out', str(tmp_path / 'out'), *option])
    assert 'takes a whole number' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()
