"""Every place where a run may write something: a secret that is put there is found, and a real run leaves none.

The reports of audit, compare and demo, and the caches of torch.compile, are searched in the tests of these.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import traceback
from contextlib import redirect_stderr, redirect_stdout

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from mmengine.visualization.vis_backend import LocalVisBackend, TensorboardVisBackend
from mmseg.registry import MODELS
from torch.utils.data import DataLoader, Dataset

from keyseg_mm import KeysegError, SecretKey, find_leaks, locate, protections, write_key_file
from keyseg_mm.bind import map_subkey
from keyseg_mm.checkpoint.files import stamps_in
from tests.support.cli import keyseg
from tests.support.configs import keyed_cfg, tiny_model_cfg
from tests.support.files import OTHER
from tests.support.runs import keyed_run, run

KEY = SecretKey(bytes((73 * n * n + 11 * n + 5) % 256 for n in range(32)))


@pytest.fixture(scope='module')
def ran(tmp_path_factory, tiny_cityscapes):
    """A real run, with all that it may write to: its folder, its live model, its stamps."""
    folder = tmp_path_factory.mktemp('sinks')
    write_key_file(folder / 'right.key', KEY)
    cfg = keyed_run(tiny_cityscapes, folder / 'work', f'file:{folder}/right.key', 2)
    cfg.optim_wrapper.optimizer = dict(type='AdamW', lr=1e-3)
    cfg.custom_hooks = [dict(type='EMAHook')]
    cfg.vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
    cfg.visualizer.update(vis_backends=cfg.vis_backends, name=str(folder))
    cfg.train_dataloader.update(num_workers=1, multiprocessing_context='fork')
    (folder / 'said').mkdir()
    with open(folder / 'said' / 'out.txt', 'w') as said, redirect_stdout(said), redirect_stderr(said):
        runner, _ = run(cfg)
    return {'folder': folder, 'model': runner.model, 'stamps': list(stamps_in(folder / 'work' / 'iter_2.pth').values())}


@pytest.fixture
def secrets(ran):
    """What may leak, as whoever is careless has it at hand."""
    protection = protections(ran['model'])[0]
    last = protection.encryptors[-1]
    return {
        'text': KEY.to_text(),
        'raw': KEY.material,
        'subkey': map_subkey(protection.features, protection.stamp.salt, protection.stamp.maps[-1]),
        'table': last.map.tables()['permutation'],
    }


def leaks(ran, folder):
    return find_leaks(folder, KEY, [*ran['stamps'], protections(ran['model'])[0].stamp])


# ---- what the run wrote: where it is, and how something secret would get there

WRITTEN = {
    'log': ('work/*/*.log', lambda to, s: log(to, f'channels are {s["table"]}')),
    'output': ('said/out.txt', lambda to, s: (to / 'out.txt').write_text(f'{s["raw"]!r}')),
    'copy of the config': ('work/*.py', lambda to, s: Config(dict(note=s['text'])).dump(str(to / 'config.py'))),
    'meta': ('work/iter_2.pth', lambda to, s: torch.save({'meta': {'cfg': s['raw'].hex(' ')}}, to / 'a.pth')),
    'message hub': ('work/iter_2.pth', lambda to, s: hub(to, s['subkey'])),
    'optimizer': (
        'work/iter_2.pth',
        lambda to, s: torch.save({'state': {0: {'step': torch.from_numpy(s['table']).float()}}}, to / 'a.pth'),
    ),
    'EMA': (
        'work/iter_2.pth',
        lambda to, s: torch.save({'ema_state_dict': {'module.order': torch.from_numpy(s['table'])}}, to / 'a.pth'),
    ),
    'visualizer': (
        'work/*/vis_data/*.json',
        lambda to, s: LocalVisBackend(str(to)).add_scalars({'a': str(list(s['subkey']))}),
    ),
    'config of the visualizer': ('work/*/vis_data/config.py', lambda to, s: backend(LocalVisBackend, to, s['text'])),
    'tensorboard': ('work/*/vis_data/events.out*', lambda to, s: backend(TensorboardVisBackend, to, s['text'].lower())),
}


def log(to, text):
    logger = MMLogger(f'sinks {to}', log_file=str(to / 'a.log'))
    logger.info(text)
    for handler in logger.handlers:
        handler.close()


def hub(to, value):
    found = MessageHub.get_instance(f'sinks {to}')
    found.update_info('note', list(value))
    torch.save(found.state_dict(), to / 'hub.pth')


def backend(kind, to, text):
    made = kind(str(to))
    made.add_config(Config(dict(note=text)))
    made.close()


@pytest.mark.parametrize('sink', WRITTEN)
def test_a_run_leaves_nothing_secret_in(sink, ran, secrets, tmp_path):
    place, plant = WRITTEN[sink]
    files = list(ran['folder'].glob(place))
    assert files and sum(path.stat().st_size for path in files) > 0
    assert [leak for path in files for leak in leaks(ran, path)] == []
    plant(tmp_path, secrets)
    assert leaks(ran, tmp_path), 'what is planted is found'


def test_nor_anywhere_else(ran):
    (ran['folder'] / 'right.key').rename(ran['folder'].parent / 'moved.key')
    try:
        assert leaks(ran, ran['folder']) == []
    finally:
        (ran['folder'].parent / 'moved.key').rename(ran['folder'] / 'right.key')


# ---- what a live model is handed to: each writes what it gets, from a real model or from somebody careless


def by_pickle(to, ran, careless):
    with open(to / 'model.pkl', 'wb') as file:
        pickle.dump(careless and {'tables': careless['table'].tolist()} or ran['model'], file)


def by_save(to, ran, careless):
    torch.save(careless and [careless['subkey']] or ran['model'].state_dict(), to / 'a.pth')


def by_repr(to, ran, careless):
    protection = protections(ran['model'])[0]
    objects = [ran['model'], protection, protection.key, protection.features, *protection.encryptors, protection.rules]
    seen = [careless] if careless else [*objects, *(vars(m) for m in ran['model'].modules())]
    (to / 'seen.txt').write_text('\n'.join(map(repr, seen)))


def by_traceback(to, ran, careless):
    def fail(key, model):
        raw = careless['raw'] if careless else None  # noqa: F841 - what a traceback with locals shows
        model.load_state_dict({'conv.weight': torch.ones(1)})

    try:
        fail(careless or KEY, ran['model'])
    except Exception as error:
        found = traceback.TracebackException.from_exception(error, capture_locals=True)
        (to / 'traceback.txt').write_text(''.join(found.format()))


def by_graph(to, ran, careless):
    table = torch.from_numpy(careless['table']) if careless else None
    what = (lambda x: x[:, table]) if careless else ran['model']
    torch.jit.trace(what, torch.rand(1, 64 if careless else 3, 64, 64)).save(str(to / 'graph.pt'))


class Nosy(Dataset):
    """Writes all that a worker process knows of its surroundings."""

    def __init__(self, to):
        self.to = to

    def __len__(self):
        return 1

    def __getitem__(self, index):
        (self.to / 'worker.txt').write_text(f'{os.environ} {sys.argv}')
        return 0


def by_worker(to, ran, careless):
    take_key_of_environment(careless)
    list(DataLoader(Nosy(to), num_workers=1, multiprocessing_context='fork'))


def by_child(to, ran, careless):
    take_key_of_environment(careless)
    (to / 'child.txt').write_bytes(subprocess.check_output([sys.executable, '-c', 'import os; print(os.environ)']))


def take_key_of_environment(careless):
    os.environ['SINKS_KEY'] = KEY.to_text()
    assert careless or locate('env:SINKS_KEY').key == KEY


def by_argv(to, ran, careless):
    given = KEY.to_text() if careless else f'file:{ran["folder"]}/right.key'
    with open(f'/proc/{os.getpid()}/cmdline', 'rb') as file:
        (to / 'history.txt').write_bytes(file.read() + f'\nkeyseg scan work_dirs --key {given}'.encode())
    if not careless:
        assert keyseg('scan', to, '--key', KEY.to_text()) == 1, 'a key that is typed is refused'


def by_commands(to, ran, careless):
    key, out = f'file:{ran["folder"]}/right.key', ran['folder'] / 'work' / 'iter_2.pth'
    write_key_file(to.parent / 'other.key', OTHER)
    with open(to / 'said.txt', 'w') as said, redirect_stdout(said), redirect_stderr(said):
        print(careless or 'nothing')
        for arguments in (
            ('show', ran['folder'] / 'right.key'),
            ('show', out),
            ('rekey', out, '--key', key, '--new-key', f'file:{to.parent}/other.key', '--out', to / 'rekeyed.pth'),
            ('rekey', out, '--key', key, '--to', 'nobody', '--out', to / 'no.pth'),
            ('unlock', to / 'rekeyed.pth', '--key', key, '--out', to / 'no.pth'),
            ('trace', out, '--master', key, '--licensees', ran['folder'] / 'said' / 'out.txt'),
            ('keygen', '--master', key, '--licensee', 'ACME', '--out', to.parent / 'acme.key'),
        ):
            keyseg(*arguments)


def by_temporary_files(to, ran, careless):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, 'tempdir', str(to))
        patch.setenv('TMPDIR', str(to))
        (to / 'there').touch()
        key = f'file:{ran["folder"]}/right.key'
        arguments = ('rekey', ran['folder'] / 'work' / 'iter_2.pth', '--key', key, '--new-key', key, '--reseal')
        assert keyseg(*arguments, '--out', to.parent / 'resealed.pth') == 0
        MODELS.build(keyed_cfg(tiny_model_cfg(), f'file:{ran["folder"]}/right.key'))
        if careless:
            with tempfile.NamedTemporaryFile(delete=False) as file:
                file.write(careless['raw'])


HANDED = {
    'pickle': by_pickle,
    'state_dict': by_save,
    'repr': by_repr,
    'traceback with locals': by_traceback,
    'graph': by_graph,
    'worker process': by_worker,
    'child process': by_child,
    'command line': by_argv,
    'output of commands': by_commands,
    'temporary files': by_temporary_files,
}


@pytest.mark.parametrize('sink', HANDED)
def test_nothing_secret_leaves_by(sink, ran, secrets, tmp_path, monkeypatch):
    monkeypatch.setenv('SINKS_KEY', '')  # put back afterwards
    for name, careless in (('real', None), ('careless', secrets)):
        to = tmp_path / name / 'sink'
        to.mkdir(parents=True)
        try:
            HANDED[sink](to, ran, careless)
        except KeysegError as error:
            (to / 'error.txt').write_text(str(error))
        assert any(path.stat().st_size or name == 'real' for path in to.iterdir()), 'something was written'
        assert bool(leaks(ran, to)) == (careless is not None), name
