"""The files of lock, rekey and unlock: they go round, hold no plain copy, and are refused where they do not belong."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from mmseg.registry import MODELS

from keyseg_mm import find_leaks, lock_file, rekey_file, unlock_file
from keyseg_mm.checkpoint.files import read_checkpoint, stamps_in, write_checkpoint
from keyseg_mm.errors import KeyMismatchError, KeysegError, LockError
from tests.support.cli import keyseg
from tests.support.configs import tiny_model_cfg
from tests.support.files import KEY, META, OTHER, ROW, SUFFIXES, VERBS, arguments, same, source_of, weights_in

# ---- round trips, and what is written


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_the_commands_make_files_that_go_round(suffix, made, model, tmp_path, capsys):
    """plain -> locked -> rekeyed -> plain, from one format to the other and back, by the command line."""
    back = {'.pth': '.safetensors', '.safetensors': '.pth'}[suffix]
    locked, rekeyed, plain = tmp_path / f'a{back}', tmp_path / f'b{suffix}', tmp_path / f'c{back}'
    original = made / f'plain{suffix}'
    assert keyseg(*arguments('lock', made, original, locked)) == 0
    assert keyseg(*arguments('rekey', made, locked, rekeyed)) == 0
    unlock = ['unlock', rekeyed, '--key', f'file:{made / "other.key"}', '--out', plain]
    assert keyseg(*unlock) == 0
    printed = capsys.readouterr().out
    assert KEY.id in printed and OTHER.id in printed and 'Traceback' not in printed

    wanted = dict(model.state_dict())
    names = [n for n, t in wanted.items() if t.dim() > 1 and t.shape[1] > 4]  # of three channels chance moves none
    for path, key in ((locked, KEY), (rekeyed, OTHER)):
        assert [stamp.key_id for stamp in stamps_in(path).values()] == [key.id]
        found = weights_in(path)
        assert sorted(found) == sorted(wanted)
        assert not any(torch.equal(found[n], wanted[n]) for n in names)
    assert not any(torch.equal(weights_in(locked)[n], weights_in(rekeyed)[n]) for n in names)
    assert stamps_in(plain) == {}
    assert same(dict(sorted(weights_in(plain).items())), dict(sorted(wanted.items())))
    for path in (locked, rekeyed, plain):
        assert json.loads(json.dumps(read_checkpoint(path)['meta'])) == META


def test_no_key_and_no_table_is_written(made, tmp_path):
    for verb in VERBS:
        for suffix in SUFFIXES:
            assert keyseg(*arguments(verb, made, source_of(verb, made), tmp_path / f'{verb}{suffix}')) == 0
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

    carried = {name for plan in stamps_in(out).values() for entry in plan.entries for name in entry.weights}
    state = model.state_dict()
    rows = {n: t[0].numpy().tobytes() for n, t in state.items() if n in carried and t.shape[1] >= ROW}
    assert len(rows) > 15
    before, after = (made / 'training.pth').read_bytes(), out.read_bytes()
    assert [n for n, row in rows.items() if before.count(row) < 2] == [], 'the search finds weights and their EMA copy'
    assert [n for n, row in rows.items() if row in after] == []
    untouched = state['backbone.layer4.0.bn1.running_var'].numpy().tobytes()
    assert untouched in after, 'what carries no transform is found, so the file is not compressed or the like'


def test_entries_that_the_model_does_not_know_are_dropped_and_named(made, model, plan, tmp_path):
    source = tmp_path / 'more.pth'
    extra = torch.randn(64)
    torch.save({'state_dict': {**model.state_dict(), 'old_ema.weight': extra}}, source)
    _, dropped = lock_file(source, model, plan, KEY, tmp_path / 'locked.pth')
    assert dropped == ('state_dict.old_ema.weight',)
    assert extra.numpy().tobytes() in source.read_bytes()
    assert extra.numpy().tobytes() not in (tmp_path / 'locked.pth').read_bytes()


# ---- targets


@pytest.fixture
def no_work(monkeypatch):
    """A checkpoint that is read is work done in vain."""

    def read(path):
        raise AssertionError('it was read before the target was looked at')

    monkeypatch.setattr('keyseg_mm.checkpoint.operations.read_checkpoint', read)


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

    monkeypatch.setattr('keyseg_mm.checkpoint.operations.write_checkpoint', write)
    with pytest.raises(KeysegError, match='exists already'):
        unlock_file(made / 'locked.pth', KEY, out)
    assert out.read_bytes() == b'mine' and [p.name for p in tmp_path.iterdir()] == ['out.pth']


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_a_file_may_be_replaced_by_its_own_copy(suffix, made, tmp_path):
    path = tmp_path / f'model{suffix}'
    shutil.copy(made / f'locked{suffix}', path)
    rekey_file(path, KEY, OTHER, path, overwrite=True)
    assert stamps_in(path)[''].key_id == OTHER.id
    unlock_file(path, OTHER, path, overwrite=True)
    assert same(weights_in(path), weights_in(made / f'plain{suffix}'))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


# ---- the wrong file


def test_the_wrong_file(made, model, tmp_path, capsys):
    def says(verb, source, *words):
        out = tmp_path / 'out.pth'
        assert keyseg(*arguments(verb, made, source, out)) == 1
        said = capsys.readouterr().err
        assert all(word in said for word in words) and len(said.splitlines()) == 1, said
        assert not out.exists()

    says('lock', made / 'locked.pth', 'protected already', 'keyseg rekey')
    says('rekey', made / 'plain.pth', 'plain', 'no stamp')
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
    with pytest.raises(KeyMismatchError):
        rekey_file(made / 'locked.pth', OTHER, KEY, tmp_path / 'out.pth')
    assert list(tmp_path.iterdir()) == []


def test_errors_leave_the_model_as_it_is(made, model, plan, tmp_path):
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(LockError, match='protected already'):
        lock_file(made / 'locked.pth', model, plan, KEY, tmp_path / 'out.pth')
    assert same(dict(model.state_dict()), before)
