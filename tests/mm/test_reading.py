"""Whatever reads a file, here or in the host, runs nothing of it, and good files are read as before."""

from __future__ import annotations

import subprocess
import sys
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.infer import infer
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, Runner, checkpoint
from mmseg.apis import MMSegInferencer, init_model
from mmseg.registry import MODELS

import keyseg_mm
from keyseg_mm.checkpoint.files import read_checkpoint, stamps_in, write_checkpoint
from keyseg_mm.errors import KeysegError
from keyseg_mm.mm.compat import HOST_NAMES
from keyseg_mm.mm.sources import from_bytes
from tests.support.cli import keyseg
from tests.support.configs import keyed_cfg, runner_cfg, tiny_model_cfg
from tests.support.hostile import WITNESS, attacks, runs_here

REFUSED = 'more than weights|cut short or no checkpoint|names a program|more than plain values'


@pytest.fixture(scope='module')
def here(tmp_path_factory, tiny_cityscapes):
    """Configs of a plain and a keyed model, a key, and a Runner of each that has not run."""
    folder = tmp_path_factory.mktemp('reading')
    keyseg_mm.write_key_file(folder / 'right.key', keyseg_mm.SecretKey(bytes(range(32))))
    (folder / 'names.txt').write_text('somebody\n')
    made = {'folder': folder, 'key': f'file:{folder / "right.key"}', 'evil': attacks(folder)}
    for name, model in (('plain', tiny_model_cfg()), ('keyed', keyed_cfg(tiny_model_cfg(), made['key']))):
        cfg = runner_cfg(tiny_cityscapes, folder / name, model)
        cfg.dump(str(folder / f'{name}.py'))
        made[name] = str(folder / f'{name}.py')
        made[f'{name} runner'] = Runner.from_cfg(cfg)
    made['good'] = folder / 'good.safetensors'
    write_checkpoint(made['good'], MODELS.build(tiny_model_cfg()).state_dict(), {})
    return SimpleNamespace(**{name.replace(' ', '_'): value for name, value in made.items()})


def elsewhere(scheme):
    """A loader of the host that fetches a file before it reads it; what it fetches is the file."""

    def load(path, here, patch):
        patch.setenv('MMENGINE_HOME', str(path.parent))
        (path.parent / 'open_mmlab.json').write_text(f'{{"near": "{path.name}", "far": "https://host/{path.name}"}}')
        (path.parent / 'hub').mkdir(exist_ok=True)
        (path.parent / 'hub' / 'checkpoints').unlink(missing_ok=True)
        (path.parent / 'hub' / 'checkpoints').symlink_to(path.parent)
        patch.setattr(torch.hub, 'get_dir', lambda: str(path.parent / 'hub'))
        urls = {'a': f'https://host/{path.name}'}
        patch.setattr(checkpoint, 'get_torchvision_models', lambda: urls)
        patch.setattr(checkpoint, 'get_mmcls_models', lambda: urls)
        store = SimpleNamespace(get=lambda _: path.read_bytes())
        patch.setattr(checkpoint, 'get_file_backend', lambda *_, **__: store)
        fetched = SimpleNamespace(name='a.pth', download=lambda to: Path(to).write_bytes(path.read_bytes()))
        patch.setitem(sys.modules, 'pavi', SimpleNamespace(modelcloud=SimpleNamespace(get=lambda _: fetched)))
        return CheckpointLoader.load_checkpoint(scheme.format(path.name), 'cpu')

    return load


def by_init_cfg(prefix):
    def load(path, here, patch):
        cfg = tiny_model_cfg()
        cfg.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(path), **prefix)
        MODELS.build(cfg).init_weights()

    return load


def by_runner(kind, how):
    return lambda path, here, patch: getattr(getattr(here, f'{kind}_runner'), how)(str(path))


def by_command(*arguments):
    """What a command says as it fails is raised."""

    def call(path, here, patch):
        words = [str(a).format(path=path, **vars(here)) for a in arguments]
        with redirect_stderr(StringIO()) as said:
            status = keyseg(*words)
        if status:
            raise KeysegError(said.getvalue())

    return call


OUT = ('--key', '{key}', '--out', '{folder}/out.pth')
ROUTES = {
    'read_checkpoint': lambda path, here, patch: read_checkpoint(path),
    'stamps_in': lambda path, here, patch: stamps_in(path),
    'load': lambda path, here, patch: keyseg_mm.load(MODELS.build(tiny_model_cfg()), path),
    'load of bytes': lambda path, here, patch: keyseg_mm.load(MODELS.build(tiny_model_cfg()), path.read_bytes()),
    'show': by_command('show', '{path}'),
    'lock': by_command('lock', '{path}', '--config', '{plain}', *OUT),
    'unlock': by_command('unlock', '{path}', *OUT),
    'rekey': by_command('rekey', '{path}', '--new-key', '{key}', *OUT),
    'trace': by_command('trace', '{path}', '--master', '{key}', '--licensees', '{folder}/names.txt'),
    'audit': by_command('audit', '{plain}', '{path}', '--key', '{key}', '--out', '{folder}/audit'),
    'lock near public weights': by_command('lock', '{good}', '--config', '{plain}', '--public', '{path}', *OUT),
    'encrypt_images': by_command(
        *('tool', 'encrypt_images', '--key', '{key}', '--checkpoint', '{path}', '--config', '{plain}'),
        *('{path}', '{folder}/a.png'),
    ),
    'the local loader': lambda path, here, patch: checkpoint.load_from_local(str(path), 'cpu'),
    'http': elsewhere('https://host/{}'),
    'torchvision': elsewhere('torchvision://a'),
    'modelzoo': elsewhere('modelzoo://a'),
    'openmmlab': elsewhere('openmmlab://near'),
    'openmmlab, fetched': elsewhere('open-mmlab://far'),
    'mmcls': elsewhere('mmcls://a'),
    's3': elsewhere('s3://bucket/{}'),
    'keyseg': lambda path, here, patch: CheckpointLoader.load_checkpoint(f'keyseg://{path}', 'cpu'),
    'keyseg, memory': lambda path, *_: CheckpointLoader.load_checkpoint(from_bytes(path.read_bytes()), 'cpu'),
    'petrel': elsewhere('cluster:petrel://bucket/{}'),
    'pavi': elsewhere('pavi://a'),
    'load_checkpoint': lambda path, here, patch: checkpoint.load_checkpoint(MODELS.build(tiny_model_cfg()), str(path)),
    'init_cfg': by_init_cfg({}),
    'init_cfg of a part': by_init_cfg({'prefix': 'w'}),
    'init_model': lambda path, here, patch: init_model(here.plain, str(path), 'cpu'),
    'init_model, keyed': lambda path, here, patch: init_model(here.keyed, str(path), 'cpu'),
    'inferencer': lambda path, here, patch: MMSegInferencer(here.plain, str(path), device='cpu'),
    'inferencer, keyed': lambda path, here, patch: MMSegInferencer(here.keyed, str(path), device='cpu'),
    'inferencer of weights': lambda path, here, patch: MMSegInferencer(None, str(path), device='cpu', scope='mmseg'),
    'load_from': by_runner('plain', 'load_checkpoint'),
    'load_from, keyed': by_runner('keyed', 'load_checkpoint'),
    'resume': by_runner('plain', 'resume'),
    'resume, keyed': by_runner('keyed', 'resume'),
}


def test_all_loaders_of_the_host_are_tried():
    tried = {scheme for scheme in CheckpointLoader._schemes if scheme}
    assert len(tried) == 11, 'a new one is to be tried here'


@pytest.mark.parametrize('route', ROUTES)
def test_no_route_runs_code(route, here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with torch.serialization.safe_globals([getattr, __import__]):  # whatever the process lets torch load
        for path in here.evil:
            with monkeypatch.context() as patch, pytest.raises(KeysegError, match=REFUSED):
                ROUTES[route](path, here, patch)
            assert not WITNESS.exists(), path


def test_the_attacks_would_work(here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(here.evil) == 9 and all(map(runs_here, here.evil))


@pytest.mark.parametrize('where', ['a child that imports the host first', 'a child that imports it later'])
def test_importing_the_package_is_enough(where, here, tmp_path):
    host = 'from mmseg.apis import MMSegInferencer'
    lines = [host, 'import keyseg_mm'] if 'first' in where else ['import keyseg_mm', host]
    code = '\n'.join([*lines, f'MMSegInferencer(None, {str(here.evil[0])!r}, device="cpu", scope="mmseg")'])
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert 'KeysegError' in done.stderr and 'more than weights' in done.stderr, done.stderr
    assert not (tmp_path / WITNESS).exists()


@pytest.mark.parametrize(
    'content', [{'state_dict': [1]}, {'state_dict': None}, {'state_dict': {1: torch.ones(1)}}, {2: 'a'}]
)
def test_what_is_no_state_dict_is_said_to_be_none(content, here, tmp_path):
    torch.save(content, tmp_path / 'a.pth')
    for act in (
        lambda: init_model(here.plain, str(tmp_path / 'a.pth'), 'cpu'),
        lambda: here.keyed_runner.load_checkpoint(str(tmp_path / 'a.pth')),
        lambda: read_checkpoint(tmp_path / 'a.pth'),
    ):
        with pytest.raises(KeysegError, match='a.pth holds no state_dict'):
            act()


# ---- configs in checkpoints

PROGRAMS = {
    'a statement': 'import os; os.system("touch ran")',
    'a call': 'model = __import__("os").system("touch ran")',
    'a call in a dict': 'model = dict(a=[open("ran", "w")])',
    'a base': '_base_ = "evil.py"',
    'imports': 'custom_imports = dict(imports=["evil"])',
    'another dict': 'model = dict(**{"a": 1})',
    'a text of the environment': 'a = "{{$HOME:x}}"',
    'a formatted text': "a = f\"{open('ran', 'w')}\"",
    'an object of any module': 'model = dict(type="subprocess.Popen", args="touch ran", shell=True)',
    'an object of the host': 'model = dict(type="mmengine.load", file="evil.pkl")',
    'a type in a literal': 'model = {"type": "os.system", "command": "touch ran"}',
    'a type in pairs': 'model = dict([("type", "subprocess.Popen"), ("args", "touch ran"), ("shell", True)])',
    'a module': 'model = dict(type="evil")',
    'a program for the key': 'model = dict(protection=dict(key="cmd:touch ran"))',
    'no python': 'a = (',
    'deep': 'a = ' + '[' * 5000 + ']' * 5000,
    'zero': 'a = "\0"',
}


@pytest.mark.parametrize('program', PROGRAMS)
def test_a_config_in_a_checkpoint_runs_nothing(program, here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'evil.py').write_text('open("ran", "w")')
    text = PROGRAMS[program]
    torch.save({'state_dict': {}, 'meta': {'cfg': text, 'config': text, 'epoch': 0, 'iter': 0}}, 'a.pth')
    for act in (
        lambda: Config.fromstring(text, '.py'),
        lambda: MMSegInferencer(None, 'a.pth', device='cpu', scope='mmseg'),
        lambda: here.plain_runner.resume('a.pth'),
    ):
        with pytest.raises(KeysegError, match=REFUSED):
            act()
    assert not WITNESS.exists()


def test_configs_that_the_host_dumps_are_read(here, tmp_path):
    rare = dict(
        keys={'a.b': dict(lr_mult=0.1), 'c': {}}, t=(1,), e=(), n=None, f=-1e-5, s='it\'s "q"\n', b=[dict(a={1: 2})]
    )
    for cfg in (Config.fromfile(here.plain), Config.fromfile(here.keyed), Config(rare)):
        assert Config.fromstring(cfg.pretty_text, '.py').to_dict() == cfg.to_dict() != {}
    weights = MODELS.build(tiny_model_cfg()).state_dict()
    meta = {'cfg': Config.fromfile(here.plain).pretty_text, 'dataset_meta': {'classes': ['a'], 'palette': [[0, 0, 0]]}}
    torch.save({'state_dict': weights, 'meta': meta}, tmp_path / 'whole.pth')
    found = MMSegInferencer(None, str(tmp_path / 'whole.pth'), device='cpu', scope='mmseg').model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())
    assert infer.Config is Config


# ---- good training checkpoints


def training(folder):
    curve = HistoryBuffer([1.0, 2.0], [1, 1])
    hub = {'log_scalars': {'loss': curve}, 'runtime_info': {'best': np.float32(0.5)}, 'resumed_keys': {}}
    torch.save({'message_hub': hub, 'state_dict': {'w': torch.ones(2)}}, folder / 'a.pth')
    return str(folder / 'a.pth')


def test_the_host_gets_its_curves_back(tmp_path):
    found = checkpoint._load_checkpoint(training(tmp_path), map_location='cpu')['message_hub']
    curve = found['log_scalars']['loss']
    assert type(curve) is HistoryBuffer and curve.mean() == 1.5 and curve.statistics('max') == 2
    curve.update(6.0)
    assert curve.mean() == 3 and found['runtime_info']['best'] == 0.5


def test_a_curve_brings_no_methods(tmp_path, monkeypatch):
    before = dict(HistoryBuffer._statistics_methods)
    monkeypatch.setitem(HistoryBuffer._statistics_methods, 'mean', HistoryBuffer.max)
    path = training(tmp_path)
    monkeypatch.setattr(HistoryBuffer, '_statistics_methods', before)
    checkpoint._load_checkpoint(path, map_location='cpu')
    assert HistoryBuffer._statistics_methods['mean'] is HistoryBuffer.mean


def test_we_need_no_classes_of_the_host(tmp_path):
    path = training(tmp_path)
    curve = ('mmengine.logging.history_buffer', 'HistoryBuffer')
    assert HOST_NAMES[curve].kind is HistoryBuffer
    assert type(read_checkpoint(path)['message_hub']['log_scalars']['loss']) is not HistoryBuffer


def test_no_list_of_the_host_holds_getattr():
    kept = torch.serialization.get_safe_globals()
    assert not any(entry in (getattr, np.dtype, np.ndarray) for entry in kept)
    assert getattr(checkpoint, 'get_torch_safe_globals', list)() == []
