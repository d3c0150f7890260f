"""Real runs by the host's Runner and inference APIs: each path gives the right key the same result, others an error."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner import Runner
from mmengine.runner.amp import autocast
from mmseg.apis import init_model

from keyseg_mm import find_leaks, protections, stamps_of
from keyseg_mm.checkpoint.files import read_checkpoint, stamps_in
from keyseg_mm.errors import KeyFileError, KeyMismatchError, PlainCheckpointError, PlanMismatchError
from keyseg_mm.stamp import is_stamp
from tests.support.configs import runner_cfg, tiny_model_cfg
from tests.support.files import opened_weights
from tests.support.runs import (
    by_ema,
    by_inferencer,
    by_init_model,
    by_resume,
    by_runner_test,
    by_tta,
    keyed_run,
    opened,
    predicted,
    run,
)

ROOT = Path(__file__).parents[2]


@OPTIM_WRAPPERS.register_module(force=True)
class CpuBf16OptimWrapper(OptimWrapper):
    """bf16 autocast on the CPU, where the host's AmpOptimWrapper insists on a GPU."""

    @contextmanager
    def optim_context(self, model):
        with super().optim_context(model), autocast(dtype=torch.bfloat16):
            yield


PATHS = [by_init_model, by_inferencer, by_runner_test, by_tta, by_resume, by_ema]


@pytest.mark.parametrize('path', PATHS, ids=lambda p: p.__name__)
def test_right_key_gives_the_same_result_on_each_path(path, trained):
    got = path(trained, f'file:{trained["folder"]}/right.key', trained['checkpoint'])
    assert torch.equal(got, trained['logits'])
    assert not torch.allclose(got, by_init_model(trained, 'none', trained['checkpoint']), atol=1e-2)


@pytest.mark.parametrize('path', PATHS, ids=lambda p: p.__name__)
def test_wrong_and_missing_keys_are_errors_on_each_path(path, trained):
    with pytest.raises(KeyMismatchError, match='protected with key'):
        path(trained, f'file:{trained["folder"]}/other.key', trained['checkpoint'])
    with pytest.raises(KeyFileError):
        path(trained, f'file:{trained["folder"]}/no_such.key', trained['checkpoint'])


@pytest.mark.parametrize('path', PATHS, ids=lambda p: p.__name__)
def test_plain_checkpoints_are_errors_on_each_path(path, trained, tmp_path):
    checkpoint = {'meta': {}, 'state_dict': opened_weights(trained['checkpoint'])}
    for name in [n for n in checkpoint['state_dict'] if 'keyseg_stamp' in n]:
        del checkpoint['state_dict'][name]
    torch.save(checkpoint, tmp_path / 'plain.pth')
    with pytest.raises(PlainCheckpointError):
        path(trained, f'file:{trained["folder"]}/right.key', tmp_path / 'plain.pth')


@pytest.mark.parametrize('path', [by_init_model, by_inferencer, by_runner_test, by_tta], ids=lambda p: p.__name__)
def test_unauthorised_on_purpose_runs_degraded(path, trained):
    for locator in ('none', 'random:1'):
        got = path(trained, locator, trained['checkpoint'])
        assert not torch.allclose(got, trained['logits'], atol=1e-2)


VARIANTS = {
    'bf16': dict(optim_wrapper=dict(type='CpuBf16OptimWrapper')),
    'ema': dict(custom_hooks=[dict(type='keyseg_mm.GuardHook'), dict(type='EMAHook')]),
    'ema of buffers': dict(custom_hooks=[dict(type='EMAHook', update_buffers=True), dict(type='keyseg_mm.GuardHook')]),
    'ema that starts late': dict(custom_hooks=[dict(type='EMAHook', begin_iter=3), dict(type='keyseg_mm.GuardHook')]),
    'accumulation': dict(optim_wrapper=dict(accumulative_counts=2)),
    'checkpointed activations': {'model.backbone.with_cp': True},
}


@pytest.mark.parametrize('variant', VARIANTS)
def test_training_variants(variant, tmp_path, tiny_cityscapes, key_file, other_key_file):
    """Each trains, saves a stamped checkpoint, and that one opens with the right key alone."""
    cfg = keyed_run(tiny_cityscapes, tmp_path / 'work', f'file:{key_file}', **VARIANTS[variant])
    runner, _ = run(cfg)
    checkpoint = tmp_path / 'work' / 'iter_4.pth'
    assert stamps_in(checkpoint) == {'': protections(runner.model)[0].stamp}
    weights = opened_weights(checkpoint)
    assert all(torch.isfinite(v).all() for v in weights.values() if v.is_floating_point())
    cfg.load_from = str(checkpoint)
    right, again = (run(cfg.copy(), 'test')[1] for _ in range(2))
    assert right == again
    cfg.model.protection.key = f'file:{other_key_file}'
    with pytest.raises(KeyMismatchError):
        run(cfg, 'test')


class OtherTables(Hook):
    """After the second iteration the averaged copy gets the tables of another salt."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        copy = next(hook.ema_model.module for hook in runner.hooks if hasattr(hook, 'ema_model'))
        own = protections(copy)[0]
        if batch_idx == 1:
            sites = [encryptor.site for encryptor in own.encryptors]
            own.become_keyed(copy, replace(own.stamp, salt=bytes(16)), sites)


def test_an_average_of_weights_behind_other_tables_is_an_error(tmp_path, tiny_cityscapes, key_file):
    cfg = keyed_run(tiny_cityscapes, tmp_path / 'work', f'file:{key_file}', **VARIANTS['ema'])
    runner = Runner.from_cfg(cfg)
    runner.register_hook(OtherTables(), 'VERY_HIGH')
    with pytest.raises(PlanMismatchError, match='whose weights EMAHook averages has other tables'):
        runner.train()
    assert not list((tmp_path / 'work').glob('*.pth'))


def test_bf16_inference(trained):
    cfg = opened(trained['config'], trained['checkpoint'], test_cfg=dict(type='TestLoop', fp16=True))
    _, metrics = run(cfg, 'test')
    assert metrics['aAcc'] == pytest.approx(trained['metrics']['aAcc'], abs=2.0)


def test_resume_in_the_middle_goes_on_as_if_nothing_had_happened(tmp_path, tiny_cityscapes, key_file):
    """Six iterations in one go, and three and three, meet in the same weights: the checkpoint carries the salt."""
    changes = {'train_dataloader.batch_size': 4, 'train_dataloader.sampler.shuffle': False}
    plain_pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]

    def cfg(work, iterations):
        made = keyed_run(tiny_cityscapes, tmp_path / work, f'file:{key_file}', 6, **changes)
        made.train_dataloader.dataset.pipeline = plain_pipeline
        made.train_cfg.max_iters = iterations
        made.default_hooks.checkpoint.interval = 3
        return made

    run(cfg('split', 3))
    salt = stamps_in(tmp_path / 'split' / 'iter_3.pth')[''].salt
    resumed = cfg('split', 6)
    resumed.resume = True
    runner, _ = run(resumed)
    assert runner.iter == 6
    assert stamps_in(tmp_path / 'split' / 'iter_6.pth')[''].salt == salt
    whole = cfg('whole', 6)
    whole.model.protection.salt = salt.hex()
    run(whole)
    one, two = (opened_weights(tmp_path / w / 'iter_6.pth') for w in ('whole', 'split'))
    start = opened_weights(tmp_path / 'split' / 'iter_3.pth')
    assert not torch.equal(start['backbone.conv1.weight'], one['backbone.conv1.weight'])
    for name in filter(lambda n: not is_stamp(n), one):
        assert torch.allclose(one[name].double(), two[name].double(), atol=1e-5), name


def test_load_from_a_plain_model_to_fine_tune(tmp_path, tiny_cityscapes, key_file):
    run(runner_cfg(tiny_cityscapes, tmp_path / 'plain', tiny_model_cfg(), 2))
    cfg = keyed_run(tiny_cityscapes, tmp_path / 'tuned', f'file:{key_file}', 2)
    cfg.load_from = str(tmp_path / 'plain' / 'iter_2.pth')
    with pytest.raises(PlainCheckpointError):
        run(cfg.copy())
    cfg.model.protection.start = 'plain'
    run(cfg)
    assert stamps_in(tmp_path / 'tuned' / 'iter_2.pth')


def free_port() -> str:
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return str(s.getsockname()[1])


@pytest.mark.parametrize('tool', ['train', 'test'])
def test_two_processes(tool, trained, tmp_path):
    """torchrun with gloo: all processes share one salt, train one model, and the result opens with the key."""
    cfg = Config.fromfile(str(trained['config']))
    config = tmp_path / 'two.py'
    cfg.model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None)
    cfg.dump(str(config))
    files = [str(config)] if tool == 'train' else [str(config), str(trained['checkpoint'])]
    arguments = [str(ROOT / 'tools' / f'dist_{tool}.sh'), *files, '2', '--work-dir', str(tmp_path / 'work')]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PORT': free_port(), 'PYTHON': sys.executable}
    done = subprocess.run(['bash', *arguments], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-8000:]  # what aborts says so before the tracebacks
    if tool == 'test':
        result = sorted((tmp_path / 'work').glob('*/*.json'))[-1]
        # the host lets each process write it, so an end of the longer text may stand behind the other
        metrics = json.JSONDecoder().raw_decode(result.read_text())[0]
        assert metrics['mIoU'] == pytest.approx(trained['metrics']['mIoU'], abs=0.02)
        return
    checkpoint = tmp_path / 'work' / 'iter_4.pth'
    assert stamps_in(checkpoint)
    model = init_model(str(config), str(checkpoint), device='cpu')
    degraded = init_model(str(config), str(checkpoint), 'cpu', {'model.protection.key': 'none'})
    got, less = (predicted(m, trained['picture']) for m in (model, degraded))
    assert not torch.allclose(got, less, atol=1e-2)


def test_ranks_share_one_salt(tmp_path, key_file):
    """Each process builds its own model; without a shared salt they would encrypt differently and learn nothing."""
    code = tmp_path / 'salts.py'
    code.write_text(
        'import sys, torch.distributed as d\n'
        "sys.path.insert(0, sys.argv[1]); d.init_process_group('gloo')\n"
        'from mmengine.registry import init_default_scope\n'
        'from mmseg.registry import MODELS\n'
        'from tests.support.configs import keyed_cfg, tiny_model_cfg\n'
        'from keyseg_mm import protections\n'
        "init_default_scope('mmseg')\n"
        'model = MODELS.build(keyed_cfg(tiny_model_cfg(), sys.argv[2]))\n'
        "open(sys.argv[3] + str(d.get_rank()), 'w').write(protections(model)[0].stamp.salt.hex())\n"
        'from keyseg_mm.mm.compat import end_together\n'
        'end_together()\n'  # together: one that is gone may take the other along
    )
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node=2', '--standalone', str(code)]
    command += [str(ROOT), f'file:{key_file}', str(tmp_path / 'salt')]
    subprocess.run(command, check=True, capture_output=True, timeout=300, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    salts = [(tmp_path / f'salt{rank}').read_text() for rank in range(2)]
    assert salts[0] == salts[1] and len(salts[0]) == 32


def test_new_style_config(tmp_path, key_file, image):
    """Pure-Python configs name classes instead of strings."""
    config = tmp_path / 'new_style.py'
    config.write_text(
        'from mmseg.models import EncoderDecoder, FCNHead, ResNet, SegDataPreProcessor\n'
        'from mmseg.models.losses import CrossEntropyLoss\n'
        'from keyseg_mm.mm import GuardHook, Keyed\n'
        "norm_cfg = dict(type='BN')\n"
        'custom_hooks = [dict(type=GuardHook)]\n'
        'model = dict(type=Keyed, of=EncoderDecoder,\n'
        f"    protection=dict(key='file:{key_file}', points='stages'),\n"
        '    data_preprocessor=dict(type=SegDataPreProcessor),\n'
        '    backbone=dict(type=ResNet, depth=18, base_channels=8, stem_channels=8, norm_cfg=norm_cfg),\n'
        '    decode_head=dict(type=FCNHead, in_channels=64, in_index=3, channels=16, num_convs=1, concat_input=False,\n'
        '        num_classes=19, norm_cfg=norm_cfg, loss_decode=dict(type=CrossEntropyLoss)),\n'
        "    train_cfg=dict(), test_cfg=dict(mode='whole'))\n"
    )
    from mmseg.registry import MODELS

    cfg = Config.fromfile(str(config), lazy_import=True)
    model = MODELS.build(cfg.model).eval()
    cfg.dump(str(tmp_path / 'dumped.py'))
    again = MODELS.build(Config.fromfile(str(tmp_path / 'dumped.py')).model).eval()
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(again(image), model(image))
    assert len(protections(model)[0].encryptors) == 1


def test_a_run_writes_nothing_secret(trained, tmp_path, tiny_cityscapes):
    """Work dir, logs, config dumps, checkpoints and tensorboard files, searched for the key and all tables."""
    from keyseg_mm import read_key_file

    key = read_key_file(trained['folder'] / 'right.key')
    cfg = opened(trained['config'], trained['checkpoint'])
    cfg.load_from, cfg.work_dir = None, str(tmp_path / 'work')
    cfg.vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
    cfg.visualizer.update(vis_backends=cfg.vis_backends, name=str(tmp_path))  # the host keeps visualizers by name
    run(cfg)
    plans = list(stamps_in(tmp_path / 'work' / 'iter_4.pth').values())
    kinds = {p.suffix for p in (tmp_path / 'work').rglob('*') if p.is_file()}
    assert {'.pth', '.log', '.py', '.json'} <= kinds and list((tmp_path / 'work').rglob('events.out*'))
    assert find_leaks(tmp_path / 'work', key, plans) == []
    (tmp_path / 'work' / 'planted.txt').write_text('see ' + key.to_text())
    assert len(find_leaks(tmp_path / 'work', key, plans)) == 1


def test_metrics_are_those_of_the_checkpoint(trained):
    assert np.isfinite(trained['metrics']['mIoU'])
    assert stamps_of(read_checkpoint(trained['checkpoint'])['state_dict'])
