"""The files of lock, rekey and unlock: whole or not there at all, whatever happens on the way, and with no plain copy.

Children are forked from one process that has imported everything, so that each of many short runs takes no seconds.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmseg.registry import MODELS

from keyseg_mm import SecretKey, find_leaks, lock_file, plan_lock, rekey_file, stamps_of, unlock_file, write_key_file
from keyseg_mm.bind import stamp_tensor
from keyseg_mm.checkpoint.files import read_checkpoint, stamps_in, write_checkpoint
from keyseg_mm.cli import main
from keyseg_mm.errors import IntegrityError, KeyMismatchError, KeysegError, LockError, StampError
from keyseg_mm.stamp import Stamp
from tests.support.configs import tiny_model_cfg

KEY, OTHER = SecretKey(bytes(range(32))), SecretKey(bytes(range(1, 33)))
SUFFIXES = ('.pth', '.safetensors')
META = {'epoch': 3, 'iter': 12, 'dataset_meta': {'classes': ['road', 'sky'], 'palette': [[1, 2, 3], [4, 5, 6]]}}
ROW = 8  # weights of so many input channels: of fewer, chance may leave a row as it was

# Runs jobs one by one, each in a fork of its own: keyseg's arguments, and how the run is to end early. A job
# with 'after' is killed when it has made that share of the calls that the first one made.
CHILD = """
import json, os, resource, signal, sys
from multiprocessing import RawValue
import keyseg_mm.checkpoint.operations, keyseg_mm.keys.locator, safetensors.torch
from keyseg_mm.cli import main

CALLS = RawValue('q')  # shared with the forks

def kill(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

def run(job, last):
    def called(frame, event, argument):
        CALLS.value += 1
        if CALLS.value == last:
            kill()

    CALLS.value = 0
    if 'at' not in job and 'size' not in job:
        sys.setprofile(called)
    if 'size' in job:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if job.get('dies') else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (job['size'], job['size']))
    if 'at' in job:
        module, _, name = job['at'].rpartition('.')
        setattr(sys.modules[module], name, kill)
    return main(job['arguments'])

def end(job, calls=0):
    said, said_here = os.pipe()  # no file, which would have a limit of size too
    child = os.fork()
    if child == 0:
        os.dup2(said_here, 1)
        os.dup2(said_here, 2)
        code = 70
        try:
            code = run(job, int(job.get('after', -1) * calls))
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    os.close(said_here)
    text = open(said).read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return dict(code=code, said=text, calls=CALLS.value, files=os.listdir(job['folder']))

jobs = json.load(sys.stdin)
if any(job['arguments'][0] == 'lock' for job in jobs):
    import keyseg_mm.mm.bench
whole = end(jobs[0])
print(json.dumps([whole, *(end(job, whole['calls']) for job in jobs[1:])]))
"""


def in_children(jobs: list[dict]) -> list[dict]:
    """Run jobs; each gets a folder of its own, and the result has what was said and which files lie there."""
    for job in jobs:
        Path(job['folder']).mkdir(parents=True)
        job['arguments'] = [str(a) for a in job['arguments']]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(
        [sys.executable, '-c', CHILD], input=json.dumps(jobs), capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def keyseg(*arguments) -> int:
    return main([str(a) for a in arguments])


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    return MODELS.build(tiny_model_cfg())


@pytest.fixture(scope='module')
def plan(model):
    return plan_lock(model)


@pytest.fixture(scope='module')
def made(tmp_path_factory, model, plan):
    """A folder with a config, keys, and the plain and the protected checkpoint in both formats; nobody changes it."""
    folder = tmp_path_factory.mktemp('made')
    Config(dict(model=tiny_model_cfg().to_dict())).dump(str(folder / 'config.py'))
    write_key_file(folder / 'right.key', KEY)
    write_key_file(folder / 'other.key', OTHER)
    torch.save(training_checkpoint(model.state_dict()), folder / 'training.pth')
    for suffix in SUFFIXES:
        write_checkpoint(folder / f'plain{suffix}', model.state_dict(), META)
        lock_file(folder / f'plain{suffix}', model, plan, KEY, folder / f'locked{suffix}')
    return folder


def training_checkpoint(weights: dict) -> dict:
    """What a training leaves behind: plain copies of the weights in more places than one."""
    curve = HistoryBuffer()
    curve.update(1.5)
    return {
        'meta': {**META, 'time': object.__name__, 'odd': torch.ones(3)},
        'state_dict': dict(weights),
        'ema_state_dict': {f'module.{n}': t.clone() for n, t in weights.items()},
        'optimizer': {'state': {0: {'momentum_buffer': next(iter(weights.values())).clone()}}, 'param_groups': []},
        'message_hub': {'log_scalars': {'loss': curve}, 'runtime_info': {}, 'resumed_keys': {}},
        'param_schedulers': [],
    }


def weights_in(path: Path) -> dict:
    return {n: t for n, t in read_checkpoint(path)['state_dict'].items() if 'keyseg_stamp' not in n}


def same(one: dict, other: dict) -> bool:
    return list(one) == list(other) and all(
        torch.equal(t, other[n]) and t.dtype == other[n].dtype for n, t in one.items()
    )


def arguments(verb: str, made: Path, source: Path, out: Path) -> list:
    """A command line of lock, rekey or unlock."""
    key = ['--key', f'file:{made / "right.key"}', '--out', out]
    if verb == 'lock':
        return [verb, made / 'config.py', source, *key]
    return [verb, source, *key, *(['--new-key', f'file:{made / "other.key"}'] if verb == 'rekey' else [])]


def source_of(verb: str, made: Path, suffix: str = '.pth') -> Path:
    return made / f'{"plain" if verb == "lock" else "locked"}{suffix}'


VERBS = ('lock', 'rekey', 'unlock')


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


# ---- killed, or out of space


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_killed_at_any_moment(suffix, made, tmp_path):
    """The target is not there, or it is whole; the source is as it was; and a second run makes it."""
    source, whole = source_of('unlock', made, suffix), (made / f'plain{suffix}').stat().st_size
    before = source.read_bytes()
    jobs: list[dict] = [{}]
    jobs += [{'at': call} for call in ('tempfile.mkstemp', 'os.fchmod', 'os.fsync', 'os.link', 'os.unlink')]
    jobs += [{'size': size, 'dies': True} for size in (0, 1, 4096, whole // 2, whole - 600)]
    jobs += [{'after': part / 13} for part in range(1, 13)]
    for index, job in enumerate(jobs):
        job['folder'] = str(tmp_path / f'run{index}')
        job['arguments'] = arguments('unlock', made, source, tmp_path / f'run{index}' / f'out{suffix}')
    wanted = weights_in(made / f'plain{suffix}')
    killed = []
    for job, result in zip(jobs, in_children(jobs)):
        killed.append(result['code'] in (-signal.SIGKILL, -signal.SIGXFSZ))
        assert killed[-1] or (result['code'] == 0 and (not job.keys() & {'at', 'size'})), (job, result)
        out = Path(job['folder']) / f'out{suffix}'
        assert out.exists() or killed[-1]
        if out.exists():
            assert same(weights_in(out), wanted)
            assert job.get('at') in (None, 'os.unlink') and 'size' not in job
        assert [n for n in result['files'] if not n.startswith('.') and n != out.name] == []
    assert killed == [False] + 22 * [True]
    assert (Path(jobs[5]['folder']) / f'out{suffix}').exists()
    assert source.read_bytes() == before
    out = Path(jobs[4]['folder']) / f'out{suffix}'  # beside what the killed run left
    assert list(out.parent.iterdir())
    unlock_file(source, KEY, out)
    assert same(weights_in(out), wanted)


def test_a_full_disk(made, tmp_path):
    jobs = []
    for index, (verb, suffix, size) in enumerate(itertools.product(VERBS, SUFFIXES, (5000, 400_000))):
        folder = tmp_path / f'run{index}'  # the host copies a config before it reads it, so no size is below a config's
        jobs.append({'size': size, 'folder': str(folder)})
        jobs[-1]['arguments'] = arguments(verb, made, source_of(verb, made), folder / f'out{suffix}')
    before = {verb: source_of(verb, made).read_bytes() for verb in VERBS}
    for job, result in zip(jobs, in_children(jobs)):
        verb, out = job['arguments'][0], job['arguments'][job['arguments'].index('--out') + 1]
        assert result['code'] == 1, result
        assert 'Traceback' not in result['said']
        last = result['said'].splitlines()[-1]
        assert last.startswith(f'keyseg {verb}: could not write {out}: ') and 'File too large' in last
        assert result['files'] == []
    assert all(source_of(verb, made).read_bytes() == content for verb, content in before.items())


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_a_full_file_system(suffix, made, tmp_path, capsys):
    disk = tmp_path / 'disk'
    disk.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=400k', 'tmpfs', str(disk)]
    try:
        if subprocess.run(mount, capture_output=True).returncode:
            pytest.skip('no right to mount a small file system here')
    except FileNotFoundError:
        pytest.skip('no mount here')
    try:
        assert keyseg(*arguments('rekey', made, source_of('rekey', made), disk / f'out{suffix}')) == 1
        assert 'No space left on device' in capsys.readouterr().err
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(['umount', str(disk)], check=True)


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


# ---- damaged files


def try_all(path: Path, out: Path, model, plan) -> list[KeysegError]:
    """What lock, rekey and unlock say of a file; what they write is looked at by the caller."""
    errors = []
    for act in (
        lambda: lock_file(path, model, plan, KEY, out, overwrite=True),
        lambda: rekey_file(path, KEY, OTHER, out, overwrite=True),
        lambda: unlock_file(path, KEY, out, overwrite=True),
    ):
        with pytest.raises(KeysegError) as caught:
            act()
        errors.append(caught.value)
    assert not out.exists()
    return errors


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_files_cut_short(suffix, made, model, plan, tmp_path, capsys):
    whole = (made / f'locked{suffix}').read_bytes()
    bad = tmp_path / f'bad{suffix}'
    for length in (0, 1, 7, 8, 100, 2000, len(whole) // 2, len(whole) - 1000, len(whole) - 1):
        bad.write_bytes(whole[:length])
        for error in try_all(bad, tmp_path / 'out.pth', model, plan):
            assert 'cut short' in str(error) and str(bad) in str(error), length
    for verb in VERBS:
        assert keyseg(*arguments(verb, made, bad, tmp_path / 'out.pth')) == 1
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert keyseg(*arguments('unlock', made, tmp_path / 'none.pth', tmp_path / 'out.pth')) == 1
    assert 'no such file' in capsys.readouterr().err


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_a_flipped_bit_of_a_weight(suffix, made, tmp_path):
    """Anywhere in a weight or statistic, of carried weights and others: the MAC does not fit."""
    whole = (made / f'locked{suffix}').read_bytes()
    tensors = weights_in(made / f'locked{suffix}')
    names = [n for n, t in tensors.items() if t.numel() > 3]
    rng = np.random.default_rng(0)
    out, bad = tmp_path / 'out.pth', tmp_path / f'bad{suffix}'
    for name in rng.choice(names, 12, replace=False):
        data = tensors[name].contiguous().numpy().tobytes()
        start = whole.index(data)
        content = bytearray(whole)
        content[start + rng.integers(len(data))] ^= 1 << rng.integers(8)
        bad.write_bytes(content)
        with pytest.raises(IntegrityError, match=f'altered after the holder of key {KEY.id}'):
            unlock_file(bad, KEY, out)
        with pytest.raises(IntegrityError):
            rekey_file(bad, KEY, OTHER, out)
        assert not out.exists()
    unlock_file(bad, KEY, out, check=False)
    assert not same(weights_in(out), weights_in(made / f'plain{suffix}'))


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_flipped_bits_anywhere(suffix, made, tmp_path):
    """In the heads of the files too: an error of the package, or else the flip was of no account."""
    whole = (made / f'locked{suffix}').read_bytes()
    wanted = weights_in(made / f'plain{suffix}')
    out, bad = tmp_path / 'out.pth', tmp_path / f'bad{suffix}'
    rng = np.random.default_rng(1)
    regions = ((0, 16_000), (len(whole) - 16_000, len(whole)), (0, len(whole)))
    said = []
    for index in range(150):
        content = bytearray(whole)
        for _ in range(1 if index % 2 else 20):
            content[rng.integers(*regions[index % 3])] ^= 1 << rng.integers(8)
        bad.write_bytes(content)
        try:
            unlock_file(bad, KEY, out, overwrite=True)
        except KeysegError as error:
            said.append(error)
        else:
            assert same(weights_in(out), wanted)
    assert len(said) > 75
    assert any(isinstance(e, IntegrityError) for e in said) and any('restore it from a copy' in str(e) for e in said)


class Malicious:
    """Its pickle creates a file when it is read by an unguarded reader."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), 'w'))


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('place', ['beside', 'in the state_dict', 'in meta'])
def test_code_in_a_pickle_is_never_run(place, zipped, made, model, plan, tmp_path):
    witness, bad = tmp_path / 'witness', tmp_path / 'bad.pth'
    content = torch.load(made / 'locked.pth', weights_only=True)
    {'beside': content, 'in the state_dict': content['state_dict'], 'in meta': content['meta']}[place]['x'] = Malicious(
        witness
    )
    torch.save(content, bad, _use_new_zipfile_serialization=zipped)
    try_all(bad, tmp_path / 'out.pth', model, plan)
    assert not witness.exists()
    torch.load(bad, weights_only=False)
    assert witness.exists(), 'it would have worked'


def test_what_is_no_state_dict(model, plan, tmp_path):
    bad = tmp_path / 'bad.pth'
    good = model.state_dict()
    for content in (
        [1, 2],
        {1: torch.ones(2)},
        {'state_dict': {**good, 1: torch.ones(2)}},
        {'state_dict': {**good, 'x': torch.eye(3).to_sparse()}},
        {'state_dict': {**good, 'x': torch.ones(3, device='meta')}},
        {},
    ):
        torch.save(content, bad)
        try_all(bad, tmp_path / 'out.pth', model, plan)


# ---- stamps


def restamped(made: Path, path: Path, change, rename: str | None = None) -> Path:
    """A copy of the protected checkpoint with another text in its stamp."""
    content = torch.load(made / 'locked.pth', weights_only=True)
    name = next(n for n in content['state_dict'] if 'keyseg_stamp' in n)
    stamp = content['state_dict'].pop(name)
    text = change(bytes(stamp.tolist()).decode()) if change else None
    value = stamp if change is None else text
    if isinstance(text, (str, dict)):
        text = text if isinstance(text, str) else json.dumps(text, separators=(',', ':'))
        value = torch.tensor(list(text.encode()), dtype=torch.uint8)
    content['state_dict'][rename or name] = value
    torch.save(content, path)
    return path


DAMAGES = {
    'empty': lambda text: '',
    'cut': lambda text: text[: len(text) // 2],
    'a letter': lambda text: text.replace('{', '(', 1),
    'another format': lambda text: text.replace('keyseg_mm stamp', 'keyseg_mm stomp'),
    'a list': lambda text: '[1]',
    'deep': lambda text: '[' * 100_000,
    'endless channels': lambda text: text.replace('"channels":3', '"channels":1e999'),
    'no point': lambda text: text.replace('in:backbone', 'on:backbone', 1),
    'short salt': lambda text: {**json.loads(text), 'salt': 'ab'},
    'odd MAC': lambda text: {**json.loads(text), 'mac': 'xyz'},
    'a float tensor': lambda text: torch.ones(5),
    'no tensor': lambda text: None,
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_damaged_stamps(damage, made, model, plan, tmp_path, capsys):
    content = read_checkpoint(made / 'locked.pth')['state_dict']
    text = bytes(next(t for n, t in content.items() if 'keyseg_stamp' in n).tolist()).decode()
    changed = DAMAGES[damage](text)
    assert not isinstance(changed, (str, dict)) or changed not in (text, json.loads(text))
    bad = restamped(made, tmp_path / 'bad.pth', DAMAGES[damage])
    assert {type(error) for error in try_all(bad, tmp_path / 'out.pth', model, plan)} == {StampError}
    assert keyseg(*arguments('unlock', made, bad, tmp_path / 'out.pth'), '--no-verify') == 1
    assert 'stamp' in capsys.readouterr().err


def test_a_stamp_with_a_transform_that_is_not_known_here(made, model, tmp_path, capsys):
    """It is whole, and shows what it is; nothing that needs the transform is done."""
    bad = restamped(
        made, tmp_path / 'bad.pth', lambda text: text.replace('SignedChannelPermutation', 'PermutationOfTomorrow', 1)
    )
    assert keyseg('show', bad) == 0
    assert 'PermutationOfTomorrow' in capsys.readouterr().out
    for verb in ('rekey', 'unlock'):
        assert keyseg(*arguments(verb, made, bad, tmp_path / 'out.pth'), '--no-verify') == 1
        assert 'PermutationOfTomorrow' in capsys.readouterr().err
    with pytest.raises(StampError, match='not known here'):
        unlock_file(bad, KEY, tmp_path / 'out.pth', check=False)


def test_a_stamp_of_a_later_version(made, tmp_path):
    bad = restamped(made, tmp_path / 'bad.pth', lambda text: text.replace('"version":1', '"version":99'))
    with pytest.raises(StampError, match='newer keyseg_mm'):
        unlock_file(bad, KEY, tmp_path / 'out.pth')


def test_a_stamp_under_another_name_or_twice(made, model, plan, tmp_path):
    plain = read_checkpoint(made / 'locked.pth')['state_dict']
    name = next(n for n in plain if 'keyseg_stamp' in n)
    bad = restamped(made, tmp_path / 'bad.pth', None, name.replace(KEY.id, OTHER.id))
    assert {type(error) for error in try_all(bad, tmp_path / 'out.pth', model, plan)} == {StampError}
    other = Stamp(OTHER.id, bytes(16), stamps_of(plain)[''].entries)
    torch.save({'state_dict': {**plain, other.name: stamp_tensor(other)}}, bad)
    assert {type(error) for error in try_all(bad, tmp_path / 'out.pth', model, plan)} == {StampError}


ALTERATIONS = {
    'another point': lambda text: text.replace('in:backbone.layer1.0.conv1', 'in:backbone.layer1.0.conv9', 1),
    'another salt': lambda text: {**json.loads(text), 'salt': '00' * 16},
    'another transform': lambda text: text.replace('SignedChannelPermutation', 'ChannelPermutation', 1),
    'another weight': lambda text: text.replace('layer1.0.conv1.weight', 'layer1.0.conv2.weight', 1),
    'one point less': lambda text: {**json.loads(text), 'entries': json.loads(text)['entries'][1:]},
    'no MAC': lambda text: {n: v for n, v in json.loads(text).items() if n != 'mac'},
    'another MAC': lambda text: {**json.loads(text), 'mac': '00' * 32},
}


@pytest.mark.parametrize('alteration', ALTERATIONS)
def test_altered_stamps(alteration, made, tmp_path, capsys):
    bad = restamped(made, tmp_path / 'bad.pth', ALTERATIONS[alteration])
    before, after = stamps_in(made / 'locked.pth')[''], stamps_in(bad)['']
    assert before.to_json() != after.to_json()
    words = 'without a MAC' if alteration == 'no MAC' else 'do not fit its MAC'
    for verb in ('rekey', 'unlock'):
        assert keyseg(*arguments(verb, made, bad, tmp_path / 'out.pth')) == 1
        said = capsys.readouterr().err
        assert words in said and '--no-verify' in said and len(said.splitlines()) == 1
    with pytest.raises(IntegrityError):
        unlock_file(bad, KEY, tmp_path / 'out.pth')
    assert not (tmp_path / 'out.pth').exists()


def test_no_verify_reads_an_intact_file_without_its_mac(made, tmp_path):
    bad = restamped(made, tmp_path / 'bad.pth', ALTERATIONS['no MAC'])
    assert keyseg(*arguments('unlock', made, bad, tmp_path / 'out.pth'), '--no-verify') == 0
    assert same(weights_in(tmp_path / 'out.pth'), weights_in(made / 'plain.pth'))


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
