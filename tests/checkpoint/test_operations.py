"""The files of lock, rekey and unlock: they go round, hold no plain copy, and are refused where they do not belong."""

from __future__ import annotations

import json
import shutil
import stat

import pytest
import torch
from mmseg.registry import MODELS

from keyseg_mm import find_leaks, lock_file, rekey_file, unlock_file
from keyseg_mm.checkpoint.files import read_checkpoint, stamps_in, write_checkpoint
from keyseg_mm.checkpoint.rekeying import change_maps_file
from keyseg_mm.errors import KeyMismatchError, KeysegError, LockError
from keyseg_mm.seal.nested import tensors_of
from keyseg_mm.seal.sections import unseal_checkpoint
from keyseg_mm.stamp import is_stamp
from tests.support.cli import keyseg
from tests.support.configs import tiny_model_cfg
from tests.support.files import (
    KEY,
    META,
    OTHER,
    ROW,
    SUFFIXES,
    VERBS,
    arguments,
    opened_weights,
    same,
    source_of,
    weights_in,
)

MANY = 64  # bytes: so many are not the same by chance

# ---- round trips, and what is written


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_the_commands_make_files_that_go_round(suffix, made, model, tmp_path, capsys):
    """plain -> locked -> rekeyed -> plain, from one format to the other and back, by the command line."""
    back = {'.pth': '.safetensors', '.safetensors': '.pth'}[suffix]
    locked, rekeyed = tmp_path / f'a{back}', tmp_path / f'b{suffix}'
    others, plain = tmp_path / f'c{back}', tmp_path / f'd{suffix}'
    original = made / f'plain{suffix}'
    assert keyseg(*arguments('lock', made, original, locked)) == 0
    assert keyseg(*arguments('rekey', made, locked, rekeyed), '--reseal') == 0
    assert keyseg(*arguments('rekey', made, locked, others), '--new-maps') == 0
    unlock = ['unlock', others, '--key', f'file:{made / "other.key"}', '--out', plain]
    assert keyseg(*unlock) == 0
    printed = capsys.readouterr().out
    assert KEY.id in printed and OTHER.id in printed and 'Traceback' not in printed

    wanted = dict(model.state_dict())
    names = [n for n, t in wanted.items() if t.dim() > 1 and t.shape[1] > 4]  # of three channels chance moves none
    files = ((locked, KEY), (rekeyed, OTHER), (others, OTHER))
    for path, key in files:
        assert [stamp.key_ids for stamp in stamps_in(path).values()] == [(key.id,)]
        for found in (weights_in(path), opened_weights(path, key)):
            assert sorted(n for n in found if not is_stamp(n)) == sorted(wanted)
            assert not any(torch.equal(found[n], wanted[n]) for n in names)
    one, two, three = (opened_weights(path, key) for path, key in files)
    assert all(torch.equal(one[n], two[n]) for n in wanted), 'new recipients, the same maps'
    assert not any(torch.equal(one[n], three[n]) for n in names), '--new-maps'
    assert stamps_in(plain) == {}
    assert same(dict(sorted(weights_in(plain).items())), dict(sorted(wanted.items())))
    for path in (locked, rekeyed, others, plain):
        assert json.loads(json.dumps(read_checkpoint(path)['meta'])) == META
    assert stat.S_IMODE(plain.stat().st_mode) == 0o600


def test_no_key_and_no_table_is_written(made, tmp_path):
    for verb in VERBS:
        for suffix in SUFFIXES:
            more = ['--new-maps'] if verb == 'rekey' else []
            assert keyseg(*arguments(verb, made, source_of(verb, made), tmp_path / f'{verb}{suffix}'), *more) == 0
    plans = [p for path in tmp_path.iterdir() for p in stamps_in(path).values()]
    assert len(plans) == 4 and {p.key_id for p in plans} == {KEY.id, OTHER.id}
    for key in (KEY, OTHER):
        mine = [p for p in plans if p.key_id == key.id]
        assert find_leaks(tmp_path, key, mine) == []
        planted = tmp_path / 'planted.bin'
        planted.write_bytes(b'x' + key.to_text().encode() + b'y')
        assert find_leaks(tmp_path, key, mine)
        planted.unlink()


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_a_training_checkpoint_leaves_no_plain_copy(suffix, made, model, tmp_path, capsys):
    out = tmp_path / f'locked{suffix}'
    assert keyseg(*arguments('lock', made, made / 'training.pth', out)) == 0
    printed = capsys.readouterr().out
    dropped = ('optimizer', 'ema_state_dict', 'message_hub', 'param_schedulers', 'meta.odd')
    assert all(name in printed for name in dropped), printed
    content = read_checkpoint(out)
    assert set(content) == {'meta', 'state_dict'}
    assert set(content['meta']) == {*META, 'time'}
    behind = tmp_path / f'behind{suffix}'
    assert keyseg('unlock', out, '--key', f'file:{made / "right.key"}', '--keep-maps', '--out', behind) == 0

    carried = {name for plan in stamps_in(out).values() for entry in plan.entries for name in entry.weights}
    state = model.state_dict()
    rows = {n: t[0].numpy().tobytes() for n, t in state.items() if n in carried and t.shape[1] >= ROW}
    assert len(rows) > 15
    before, after, taken_off = ((path).read_bytes() for path in (made / 'training.pth', out, behind))
    assert [n for n, row in rows.items() if before.count(row) < 2] == [], 'the search finds weights and their EMA copy'
    assert [n for n, row in rows.items() if row in after or row in taken_off] == []
    untouched = [t.numpy().tobytes() for n, t in state.items() if n not in carried and t.nbytes >= MANY]
    assert untouched and not any(t in after for t in untouched), 'all of it is sealed'
    assert all(t in taken_off for t in untouched), 'which is found, so the file is not compressed or the like'


def test_a_training_checkpoint_is_sealed_whole(made, tmp_path, capsys):
    """Without a config, the file alone is sealed: all that holds tensors, and nothing of it stays in the open."""
    out, key = tmp_path / 'sealed.pth', f'file:{made / "right.key"}'
    assert keyseg('lock', made / 'training.pth', '--key', key, '--out', out) == 0
    assert 'message_hub' in capsys.readouterr().out, 'it holds objects, and is dropped'
    before = torch.load(made / 'training.pth', weights_only=False)
    content = read_checkpoint(out)
    assert set(content) == {'meta', 'state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers'}
    tensors = [t for t in [*tensors_of(before).values()] if t.nbytes >= MANY and t.any() and not (t == 1).all()]
    raw = out.read_bytes()
    assert len(tensors) > 40 and not any(t.numpy().tobytes() in raw for t in tensors)
    opened = unseal_checkpoint(KEY, content)
    for name in ('state_dict', 'ema_state_dict', 'optimizer'):
        one, two = tensors_of(before[name]), tensors_of(opened[name])
        assert list(one) == list(two) and all(torch.equal(t, two[n]) for n, t in one.items())
    assert opened['optimizer']['param_groups'] == [] == opened['param_schedulers']


def test_entries_that_the_model_does_not_know_are_dropped_and_named(made, model, plan, tmp_path):
    source = tmp_path / 'more.pth'
    extra = torch.randn(64)
    torch.save({'state_dict': {**model.state_dict(), 'old_ema.weight': extra}}, source)
    _, dropped = lock_file(source, model, plan, KEY, tmp_path / 'locked.pth')
    assert dropped == ('state_dict.old_ema.weight',)
    assert extra.numpy().tobytes() in source.read_bytes()
    assert 'old_ema.weight' not in opened_weights(tmp_path / 'locked.pth')


# ---- targets


@pytest.fixture
def no_work(monkeypatch):
    """A checkpoint that is read is work done in vain."""

    def read(source, mapped=True):
        raise AssertionError('it was read before the target was looked at')

    for room in ('rekeying', 'opened'):
        monkeypatch.setattr(f'keyseg_mm.checkpoint.{room}.read_checkpoint', read)


@pytest.mark.parametrize('verb', VERBS)
def test_bad_targets_are_refused_before_the_work(verb, made, tmp_path, no_work, capsys):
    taken = tmp_path / 'taken.pth'
    taken.write_bytes(b'mine')
    (tmp_path / 'hangs.pth').symlink_to(tmp_path / 'nowhere')
    source = source_of(verb, made)
    before = source.read_bytes()
    for out, words in (
        (taken, 'exists already and was left as it is'),
        (tmp_path / 'hangs.pth', 'exists already'),
        (tmp_path, 'exists already'),
        (source, 'exists already'),
        (tmp_path / 'missing' / 'out.pth', 'No such file or directory'),
        (taken / 'out.pth', 'Not a directory'),
    ):
        assert keyseg(*arguments(verb, made, source, out)) == 1
        said = capsys.readouterr().err
        assert words in said and str(out) in said and len(said.splitlines()) == 1, said
    assert keyseg(*arguments(verb, made, source, tmp_path), '--overwrite') == 1
    assert taken.read_bytes() == b'mine' and source.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ['hangs.pth', 'taken.pth']
    with pytest.raises(AssertionError, match='before the target'):  # the fixture would have seen it
        keyseg(*arguments(verb, made, source, tmp_path / 'free.pth'))


def test_a_target_that_appears_meanwhile_is_left(made, tmp_path, monkeypatch):
    out = tmp_path / 'out.pth'

    def write(*args, **kwargs):
        out.write_bytes(b'mine')
        return write_checkpoint(*args, **kwargs)

    monkeypatch.setattr('keyseg_mm.checkpoint.opened.write_checkpoint', write)
    with pytest.raises(KeysegError, match='exists already'):
        unlock_file(made / 'locked.pth', KEY, out)
    assert out.read_bytes() == b'mine' and [p.name for p in tmp_path.iterdir()] == ['out.pth']


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_a_file_may_be_replaced_by_its_own_copy(suffix, made, tmp_path):
    path = tmp_path / f'model{suffix}'
    shutil.copy(made / f'locked{suffix}', path)
    for more in ({}, dict(reseal=True)):
        rekey_file(path, KEY, [KEY, OTHER], path, overwrite=True, **more)
        assert stamps_in(path)[''].key_ids == (KEY.id, OTHER.id)
    change_maps_file(path, KEY, OTHER, path, overwrite=True)
    assert stamps_in(path)[''].key_ids == (OTHER.id,)
    unlock_file(path, OTHER, path, overwrite=True)
    assert same(weights_in(path), weights_in(made / f'plain{suffix}'))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


# ---- the wrong file


def test_the_wrong_file(made, model, tmp_path, capsys):
    def says(verb, source, *words):
        out = tmp_path / 'out.pth'
        verb, *more = verb.split()
        assert keyseg(*arguments(verb, made, source, out), *more) == 1
        said = capsys.readouterr().err
        assert all(word in said for word in words) and len(said.splitlines()) == 1, said
        assert not out.exists()

    says('lock', made / 'locked.pth', 'protected already', 'keyseg rekey')
    says('rekey', made / 'plain.pth', 'no seal', 'keyseg lock')
    says('rekey --new-maps', made / 'plain.pth', 'plain', 'no stamp')
    says('unlock --keep-maps', made / 'plain.pth', 'no seal')
    says('unlock', made / 'plain.safetensors', 'plain', 'no stamp')
    other = MODELS.build(tiny_model_cfg(num_classes=7, aux=False))
    torch.save({'state_dict': other.state_dict()}, tmp_path / 'other.pth')
    says('lock', tmp_path / 'other.pth', 'missing', 'auxiliary_head.', 'of another shape', 'conv_seg')
    state = {n: t for n, t in model.state_dict().items() if n != 'backbone.layer2.0.conv1.weight'}
    torch.save(state, tmp_path / 'less.pth')
    says('lock', tmp_path / 'less.pth', '1 missing (backbone.layer2.0.conv1.weight)')


def test_the_wrong_key(made, tmp_path, capsys):
    for verb in ('rekey', 'unlock'):
        line = arguments(verb, made, made / 'locked.pth', tmp_path / 'out.pth')
        line[line.index('--key') + 1] = f'file:{made / "other.key"}'
        assert keyseg(*line) == 1
        said = capsys.readouterr().err
        assert KEY.id in said and OTHER.id in said
    with pytest.raises(KeyMismatchError):
        unlock_file(made / 'locked.pth', OTHER, tmp_path / 'out.pth')
    for act in (
        lambda: unlock_file(made / 'locked.pth', OTHER, tmp_path / 'out.pth', keep_maps=True),
        lambda: rekey_file(made / 'locked.pth', OTHER, [KEY], tmp_path / 'out.pth'),
        lambda: rekey_file(made / 'locked.pth', OTHER, [KEY], tmp_path / 'out.pth', reseal=True),
        lambda: change_maps_file(made / 'locked.pth', OTHER, KEY, tmp_path / 'out.pth'),
    ):
        with pytest.raises(KeyMismatchError):
            act()
    with pytest.raises(LockError, match='at least one recipient'):
        rekey_file(made / 'locked.pth', KEY, [], tmp_path / 'out.pth')
    assert list(tmp_path.iterdir()) == []


def test_errors_leave_the_model_as_it_is(made, model, plan, tmp_path):
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(LockError, match='protected already'):
        lock_file(made / 'locked.pth', model, plan, KEY, tmp_path / 'out.pth')
    assert same(dict(model.state_dict()), before)
