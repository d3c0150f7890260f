"""Whatever a run of a protected model writes is sealed, and whatever reads a sealed file opens it, or says why not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import mmengine.runner.runner as runner_module
import mmseg
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import _load_checkpoint, _load_checkpoint_with_prefix
from mmseg.apis import init_model
from mmseg.registry import MODELS

import keyseg_mm
from keyseg_mm import Identity, SecretKey, protections, stamps_of
from keyseg_mm.checkpoint.files import read_checkpoint
from keyseg_mm.envelope import SIGNED
from keyseg_mm.errors import IntegrityError, KeyMismatchError, LockError, NotFiredError, SecretExposedError
from keyseg_mm.mm.hooks import GuardHook
from keyseg_mm.runtime.protection import State
from keyseg_mm.seal.nested import tensors_of
from keyseg_mm.seal.sections import Sealing, seal_checkpoint, sealed_stamp, unseal_checkpoint
from keyseg_mm.stamp import is_stamp
from tests.support.configs import keyed_cfg, runner_cfg, tiny_model_cfg
from tests.support.files import KEY, OTHER, opened_weights
from tests.support.runs import keyed_run, run

TOOLS = Path(mmseg.__file__).parent / '.mim' / 'tools'
_TELLING = 64  # values: fewer may look alike by chance


@pytest.fixture(scope='module')
def tuned(tmp_path_factory, tiny_cityscapes):
    """A run with AdamW and EMA, without a line of ours among its hooks, and what it held in memory as it ended."""
    folder = tmp_path_factory.mktemp('sealed')
    keyseg_mm.write_key_file(folder / 'right.key', KEY)
    cfg = keyed_run(tiny_cityscapes, folder / 'work', f'file:{folder}/right.key', 4)
    cfg.optim_wrapper.optimizer = dict(type='AdamW', lr=1e-3)
    cfg.custom_hooks = [dict(type='EMAHook', update_buffers=True)]
    cfg.default_hooks.checkpoint.interval = 2
    cfg.default_hooks.checkpoint.save_best = 'mIoU'
    cfg.default_hooks.checkpoint.rule = 'greater'
    runner, _ = run(cfg)
    return {'folder': folder, 'cfg': cfg, 'runner': runner, 'files': sorted((folder / 'work').glob('*.pth'))}


def floats(value) -> dict[str, torch.Tensor]:
    return {n: t for n, t in tensors_of(value).items() if t.is_floating_point() and not is_stamp(n)}


def alike(a: torch.Tensor, b: torch.Tensor) -> float:
    """How two tensors go together, by the ranks of their values: noise of whatever magnitudes too."""
    ranks = [t.flatten().double().nan_to_num().argsort().argsort().double() for t in (a, b)]
    return abs(float(torch.corrcoef(torch.stack(ranks))[0, 1]))


def test_every_file_of_a_run_is_sealed_with_all_its_tensors(tuned):
    names = {path.name.split('_')[0] for path in tuned['files']}
    assert names == {'iter', 'best'} and len(tuned['files']) >= 3
    live = {**floats(tuned['runner'].model.state_dict()), **floats(tuned['runner'].optim_wrapper.state_dict())}
    for path in tuned['files']:
        sealed = read_checkpoint(path)
        plain = unseal_checkpoint(KEY, sealed)
        for section in {'state_dict', 'ema_state_dict', 'optimizer'} & set(sealed):  # the best one has no optimizer
            noise, right = floats(sealed[section]), floats(plain[section])
            assert noise.keys() == right.keys()
            for name, tensor in right.items():
                assert noise[name].numpy().tobytes() != tensor.numpy().tobytes(), (section, name)
            large = {name: t for name, t in right.items() if t.numel() >= _TELLING and t.std() > 0}
            assert max(alike(noise[name], tensor) for name, tensor in large.items()) < 0.6, section
        hidden = {t.detach().numpy().tobytes() for t in live.values() if t.numel() >= _TELLING}
        hidden |= {t.numpy().tobytes() for v in plain.values() for t in floats(v).values() if t.numel() >= _TELLING}
        content = path.read_bytes()
        assert not any(needle in content for needle in hidden)
        others = [n for n, v in sealed.items() if n not in ('meta',) and tensors_of(v) and sealed_stamp(v) is None]
        assert not others, 'whatever else holds a tensor'


def test_a_sealed_file_of_a_run_is_whole_or_not_there(tuned, tmp_path, monkeypatch):
    content = _load_checkpoint(str(tuned['files'][0]))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, 'fsync', mock.Mock(side_effect=KeyboardInterrupt))
        runner_module.save_checkpoint(content, str(tmp_path / 'new' / 'iter_1.pth'))
    assert list((tmp_path / 'new').iterdir()) == []
    for _ in range(2):  # the second one replaces the first
        runner_module.save_checkpoint(content, str(tmp_path / 'iter_1.pth'))
        assert read_checkpoint(tmp_path / 'iter_1.pth')['state_dict'].keys() == content['state_dict'].keys()
    runner_module.save_checkpoint({'state_dict': {'a': torch.ones(1)}}, str(tmp_path / 'plain.pth'))
    assert torch.load(tmp_path / 'plain.pth')['state_dict']['a'] == 1, "a plain file is the host's business"


def test_a_run_has_a_guard_whatever_its_config_lists(tuned):
    assert sum(isinstance(hook, GuardHook) for hook in tuned['runner'].hooks) == 1
    assert [hook['type'] for hook in tuned['cfg'].custom_hooks] == ['EMAHook']


def test_resumed_in_the_middle_the_losses_go_on(tmp_path, tiny_cityscapes, key_file):
    def cfg(work: str, iterations: int) -> Config:
        made = keyed_run(tiny_cityscapes, tmp_path / work, f'file:{key_file}', 6)
        made.optim_wrapper.optimizer = dict(type='AdamW', lr=1e-3)
        made.custom_hooks = [dict(type='EMAHook')]
        made.model.protection.salt = '07' * 16
        made.train_dataloader.dataset.pipeline = [
            dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')
        ]  # fmt: skip
        made.train_dataloader.batch_size = 4
        made.train_dataloader.sampler.shuffle = False
        made.default_hooks.checkpoint.interval = 3
        made.train_cfg.max_iters = iterations
        return made

    run(cfg('whole', 6))
    run(cfg('split', 3))
    resumed = cfg('split', 6)
    resumed.resume = True
    run(resumed)
    one, two = (unseal_checkpoint(KEY, read_checkpoint(tmp_path / w / 'iter_6.pth')) for w in ('whole', 'split'))
    start = unseal_checkpoint(KEY, read_checkpoint(tmp_path / 'split' / 'iter_3.pth'))
    for section in ('state_dict', 'ema_state_dict', 'optimizer'):
        a, b, c = (floats(content[section]) for content in (one, two, start))
        assert any(not torch.equal(a[name], c[name]) for name in a), section
        for name in a:
            assert torch.allclose(a[name], b[name], atol=1e-5), (section, name)


def test_published_by_the_hosts_tool_the_file_still_opens(tuned, tmp_path):
    # torch's own default refuses what the host puts into its training checkpoints
    environment = {**os.environ, 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD': '1'}
    source = tuned['files'][-1]
    command = [sys.executable, TOOLS / 'misc' / 'publish_model.py', source, tmp_path / 'published.pth']
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=300)
    published = next(tmp_path.glob('published-*.pth'))
    content = read_checkpoint(published)
    assert 'optimizer' not in content and 'optimizer' in read_checkpoint(source)
    assert opened_weights(published).keys() == opened_weights(source).keys()
    config = tmp_path / 'config.py'
    tuned['cfg'].dump(str(config))
    assert protections(init_model(str(config), str(published), 'cpu'))[0].state is State.KEYED


def test_published_keys_of_the_checkpoint_hook(tiny_cityscapes, tmp_path, key_file):
    cfg = keyed_run(tiny_cityscapes, tmp_path / 'work', f'file:{key_file}', 2)
    cfg.default_hooks.checkpoint.published_keys = ['state_dict']
    run(cfg)
    published = [path for path in (tmp_path / 'work').glob('*.pth') if set(read_checkpoint(path)) == {'state_dict'}]
    assert published, 'the hook wrote one'
    assert stamps_of(opened_weights(published[0]))


def test_with_the_hosts_own_train_py(tiny_cityscapes, tmp_path, key_file):
    cfg = keyed_run(tiny_cityscapes, tmp_path / 'work', f'file:{key_file}', 2)
    cfg.custom_hooks = []
    cfg.dump(str(tmp_path / 'config.py'))
    done = subprocess.run(
        [sys.executable, TOOLS / 'train.py', tmp_path / 'config.py'], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert stamps_of(opened_weights(tmp_path / 'work' / 'iter_2.pth'))


def test_a_file_for_research_is_signed_and_readable(tiny_cityscapes, tmp_path, key_file):
    cfg = keyed_run(tiny_cityscapes, tmp_path / 'work', f'file:{key_file}', 2)
    cfg.model.protection.seal = False
    runner, _ = run(cfg)
    content = read_checkpoint(tmp_path / 'work' / 'iter_2.pth')
    assert sealed_stamp(content['state_dict']).seal.mode == SIGNED
    for name, tensor in floats(runner.model.state_dict()).items():
        assert torch.equal(content['state_dict'][name], tensor), name
    content['state_dict']['decode_head.conv_seg.bias'][0] += 1
    torch.save({'state_dict': content['state_dict'], 'meta': {}}, tmp_path / 'altered.pth')
    config = tmp_path / 'config.py'
    cfg.dump(str(config))
    with pytest.raises(IntegrityError, match=r'decode_head\.conv_seg\.bias'):
        init_model(str(config), str(tmp_path / 'altered.pth'), 'cpu')
    init_model(str(config), str(tmp_path / 'altered.pth'), 'cpu', {'model.protection.verify': False})


@pytest.mark.parametrize('locator', ['none', 'random:1'])
def test_training_without_a_real_key_is_refused(locator, tiny_cityscapes, tmp_path):
    cfg = keyed_run(tiny_cityscapes, tmp_path / 'work', locator, 2)
    with pytest.raises(NotFiredError, match='give a real key'):
        run(cfg)
    assert not list(tmp_path.rglob('*.pth'))


def test_recipients_of_a_config_open_what_is_written(tiny_cityscapes, tmp_path, key_file):
    customer = Identity(bytes(32))
    cfg = keyed_run(tiny_cityscapes, tmp_path / 'work', f'file:{key_file}', 2)
    cfg.model.protection.recipients = [customer.recipient.to_text()]
    run(cfg)
    path = tmp_path / 'work' / 'iter_2.pth'
    one, two = opened_weights(path), opened_weights(path, customer)
    assert all(torch.equal(one[name], two[name]) for name in one if not is_stamp(name))
    keyseg_mm.write_key_file(tmp_path / 'customer.identity', customer)
    cfg.dump(str(tmp_path / 'config.py'))
    options = {'model.protection.key': f'file:{tmp_path}/customer.identity', 'model.protection.recipients': None}
    model = init_model(str(tmp_path / 'config.py'), str(path), 'cpu', options)
    owner = init_model(str(tmp_path / 'config.py'), str(path), 'cpu')
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(image), owner(image))
    with pytest.raises(KeyMismatchError, match=customer.id):
        opened_weights(path, OTHER)


@pytest.fixture(scope='module')
def sealed(tmp_path_factory):
    """A plain model, sealed, and sealed behind maps."""
    folder = tmp_path_factory.mktemp('plain')
    torch.manual_seed(0)
    model = MODELS.build(tiny_model_cfg()).eval()
    state = model.state_dict()
    locked = keyseg_mm.lock(state, model, KEY, 'linear')
    for name, content in (('sealed', state), ('locked', locked)):
        torch.save(seal_checkpoint({'state_dict': content, 'meta': {}}, Sealing(KEY)), folder / f'{name}.pth')
    return {'folder': folder, 'state': state, 'model': model}


@pytest.mark.parametrize('name', ['sealed', 'locked'])
def test_a_part_that_starts_from_a_sealed_file_gets_plain_weights(name, sealed):
    path = sealed['folder'] / f'{name}.pth'
    holder = keyseg_mm.attach(torch.nn.Sequential(torch.nn.Linear(4, 4)), KEY, [], [])  # a key at hand
    found = _load_checkpoint_with_prefix('backbone.', str(path))
    assert holder.key is KEY
    for part, value in found.items():
        assert torch.equal(value, sealed['state'][f'backbone.{part}']), part
    cfg = tiny_model_cfg()
    cfg.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(path), prefix='backbone.')
    model = MODELS.build(cfg)
    model.init_weights()
    assert torch.equal(model.backbone.conv1.weight, sealed['model'].backbone.conv1.weight)


def test_without_a_key_at_hand_nothing_starts_from_noise(sealed, tmp_path):
    stranger = SecretKey(bytes(range(7, 39)))
    torch.save(seal_checkpoint({'state_dict': sealed['state']}, Sealing(stranger)), tmp_path / 'theirs.pth')
    with pytest.raises(LockError, match='would start from noise'):
        _load_checkpoint_with_prefix('backbone.', str(tmp_path / 'theirs.pth'))
    # the stock host's way: it loads, and is noise
    raw = CheckpointLoader.load_checkpoint(str(tmp_path / 'theirs.pth'), 'cpu')
    assert not torch.equal(raw['state_dict']['backbone.conv1.weight'], sealed['state']['backbone.conv1.weight'])


def test_another_number_of_classes(sealed, key_file):
    model = MODELS.build(keyed_cfg(tiny_model_cfg(7), f'file:{key_file}', runtime='plain'))
    content = read_checkpoint(sealed['folder'] / 'sealed.pth')
    with pytest.raises(RuntimeError, match='size mismatch'):  # torch's own; the host's loader goes on
        model.load_state_dict(content['state_dict'], strict=False)
    from mmengine.runner.checkpoint import load_state_dict

    model = MODELS.build(keyed_cfg(tiny_model_cfg(7), f'file:{key_file}', runtime='plain'))
    before = model.decode_head.conv_seg.weight.clone()
    load_state_dict(model, read_checkpoint(sealed['folder'] / 'sealed.pth')['state_dict'])
    assert torch.equal(model.backbone.conv1.weight, sealed['model'].backbone.conv1.weight)
    assert torch.equal(model.decode_head.conv_seg.weight, before)


def test_a_config_from_a_checkpoint_runs_no_program(tmp_path):
    text = f"model = dict(type='keyseg_mm.Keyed', protection=dict(key='cmd:touch {tmp_path}/ran'))"
    with pytest.raises(SecretExposedError, match='names a program'):
        Config.fromstring(text, '.py')
    assert Config.fromstring('a = 1', '.py').a == 1
    assert not (tmp_path / 'ran').exists()


def test_state_dict_costs_no_cipher(key_file, monkeypatch):
    """It is memory: it carries the stamp, made once, and nothing is sealed or signed."""
    model = MODELS.build(keyed_cfg(tiny_model_cfg(), f'file:{key_file}'))
    first = model.state_dict()
    monkeypatch.setattr('keyseg_mm.wrapping.close_envelope', None)
    monkeypatch.setattr('keyseg_mm.seal.tensors.seal_buffers', None)
    second = model.state_dict()
    name = next(filter(is_stamp, first))
    assert first[name] is second[name]  # as a parameter is: what overwrites it is noticed


def test_flexible_runner_has_the_guard_too(tiny_cityscapes, tmp_path, key_file):
    from mmengine.runner._flexible_runner import FlexibleRunner

    cfg = runner_cfg(tiny_cityscapes, tmp_path / 'work', keyed_cfg(tiny_model_cfg(), f'file:{key_file}'), 2)
    cfg.custom_hooks = []
    cfg.strategy = dict(type='SingleDeviceStrategy')
    FlexibleRunner.from_cfg(cfg).train()
    assert stamps_of(opened_weights(tmp_path / 'work' / 'iter_2.pth'))


@pytest.mark.parametrize('way', ['runner', 'init_model'])
def test_a_sealed_plain_model_is_opened_by_the_host(way, sealed, tiny_cityscapes, tmp_path, key_file):
    """A file that was sealed alone: its stamp says nothing of maps, and is needed all the same."""
    path = str(sealed['folder'] / 'sealed.pth')
    cfg = runner_cfg(
        tiny_cityscapes, tmp_path / 'work', keyed_cfg(tiny_model_cfg(), f'file:{key_file}', runtime='plain')
    )
    cfg.load_from = path
    if way == 'runner':
        model = run(cfg, 'test')[0].model
    else:
        cfg.dump(str(tmp_path / 'config.py'))
        model = init_model(str(tmp_path / 'config.py'), path, 'cpu')
    assert protections(model)[0].state is State.PLAIN
    for name, value in sealed['state'].items():
        assert torch.equal(model.state_dict()[name], value), name


def test_a_file_without_maps_says_that_nothing_is_encrypted(sealed, key_file, caplog):
    model = MODELS.build(keyed_cfg(tiny_model_cfg(), f'file:{key_file}', points='checkpoint'))
    model.load_state_dict(read_checkpoint(sealed['folder'] / 'locked.pth')['state_dict'])
    assert protections(model)[0].encryptors and 'without encryptors' not in caplog.text
    model = MODELS.build(keyed_cfg(tiny_model_cfg(), f'file:{key_file}', points='checkpoint'))
    model.load_state_dict(read_checkpoint(sealed['folder'] / 'sealed.pth')['state_dict'])
    assert not protections(model)[0].encryptors and 'without encryptors' in caplog.text
