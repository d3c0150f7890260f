"""Compiled models of the host: whole in one graph, and trained by its Runner."""

from __future__ import annotations

import copy
from pathlib import Path

import mmseg
import pytest
import torch
import torch._dynamo
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import HOOKS
from mmseg.registry import MODELS
from torch._dynamo.utils import counters

from keyseg_mm import protections
from keyseg_mm.errors import NotFiredError
from keyseg_mm.runtime.gates import remove_gates
from tests.support.configs import keyed_cfg, runner_cfg, tiny_model_cfg
from tests.support.runs import run

STOCK = Path(mmseg.__file__).parent / '.mim' / 'configs'
FILES = {
    'Fast-SCNN': 'fastscnn/fast_scnn_8xb4-160k_cityscapes-512x1024.py',
    'SegFormer': 'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
}


@pytest.fixture(autouse=True)
def _afresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def stock(name, key_file):
    cfg = Config.fromfile(str(STOCK / FILES[name])).model
    cfg.pretrained = cfg.backbone.init_cfg = None
    torch.manual_seed(0)
    model = revert_sync_batchnorm(MODELS.build(keyed_cfg(cfg, f'file:{key_file}', salt='00' * 16)))
    for module in model.modules():  # chance would differ
        for name in ('p', 'drop_prob'):
            if hasattr(module, name):
                setattr(module, name, 0.0)
    return model


def gap(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('name', FILES)
def test_a_cold_compile_gives_one_graph_that_is_right(name, training, key_file):
    model = stock(name, key_file).train(training)
    eager, x = copy.deepcopy(model), torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(model, backend='eager', fullgraph=True)

    def step(network):
        with torch.set_grad_enabled(training):
            found = network(x, mode='tensor')
            found = found if torch.is_tensor(found) else found[0]
        if training:
            found.square().mean().backward()
        return found.detach() - found.detach().mean((2, 3), keepdim=True)  # what differs from place to place

    for _ in range(2):
        got, want = step(compiled), step(eager)
        assert gap(got, want) < 1e-3
    assert counters['stats']['unique_graphs'] == 1
    assert all(encryptor.calls for encryptor in protections(eager)[0].encryptors)
    for mine, theirs in zip(model.parameters(), eager.parameters()):
        if training and mine.grad is not None:
            assert torch.allclose(mine.grad, theirs.grad, rtol=1e-2, atol=1e-4)
    remove_gates(eager)
    assert gap(step(eager), got) > 0.1


@HOOKS.register_module(force=True)
class LateDetachHook(Hook):
    """Takes an encryptor off when the first iteration is over."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        remove_gates(runner.model.backbone)


@pytest.mark.parametrize('hooks', [[], [dict(type='LateDetachHook')]], ids=['a good run', 'a bad run'])
def test_a_compiled_training_of_the_host(hooks, tiny_cityscapes, tmp_path, key_file):
    model = keyed_cfg(tiny_model_cfg(), f'file:{key_file}', salt='00' * 16)
    changes = dict(compile=dict(backend='eager'), custom_hooks=[*hooks, dict(type='keyseg_mm.GuardHook')])
    cfg = runner_cfg(tiny_cityscapes, tmp_path / 'compiled', model, 2, **changes)
    if hooks:
        with pytest.raises(NotFiredError, match='out:backbone:2'):
            run(cfg)
        assert not list((tmp_path / 'compiled').glob('*.pth'))
        return
    runner, _ = run(cfg)
    assert counters['stats']['unique_graphs']
    eager, _ = run(runner_cfg(tiny_cityscapes, tmp_path / 'eager', model, 2))
    calls = [[e.calls for e in protections(r.model)[0].encryptors] for r in (runner, eager)]
    assert all(0 < mine < theirs for mine, theirs in zip(*calls))  # the first iteration and the validation
    mine, theirs = (r.model.state_dict() for r in (runner, eager))
    assert all(torch.allclose(value, theirs[name], atol=1e-4) for name, value in mine.items() if 'stamp' not in name)
