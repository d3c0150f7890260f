"""The point grammar, tracing and resolving."""

from __future__ import annotations

import pytest
import torch
from mmengine.config import ConfigDict
from mmseg.registry import MODELS
from torch import nn

from keyseg_mm.errors import PointError
from keyseg_mm.mm.dryrun import trace_module
from keyseg_mm.model.points import Point
from keyseg_mm.model.sites import Trace, resolve
from tests.support.configs import tiny_model_cfg


class Toy(nn.Module):
    """Nested outputs, tokens, a module that is called twice and one that never is."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.twice = nn.Conv2d(8, 8, 1)
        self.linear = nn.Linear(8, 6)
        self.unused = nn.Conv2d(8, 8, 1)
        self.branch = Branch()

    def forward(self, x):
        x = self.twice(self.twice(self.depthwise(self.conv(x))))
        self.branch(x)
        return self.linear(x.flatten(2).transpose(1, 2))


class Branch(nn.Module):
    def forward(self, x):
        return (x, [x[:, :4], x.mean((2, 3))]), torch.zeros(2, dtype=torch.int64)


@pytest.fixture
def toy():
    model = Toy()
    return model, Trace.of(model, {'test': lambda: model(torch.rand(2, 3, 8, 8))})


@pytest.mark.parametrize('text', ['out:a.b', 'out:a.b:3', 'in:a.0.conv', 'out:.:0', 'out:.'])
def test_grammar_round_trip(text):
    assert str(Point.parse(text)) == text


@pytest.mark.parametrize(
    'text',
    ['', 'a.b', 'out:', 'in:a:1', 'out:a:b', 'out:a:-1', 'OUT:a', 'out:a:1:2', None, 'out:a:٣', f'out:a:{"9" * 5000}'],
)
def test_grammar_refuses(text):
    with pytest.raises(PointError, match='no encryption point'):
        Point.parse(text)


def test_trace_sees_shapes_dims_and_nested_outputs(toy):
    _, trace = toy
    seen = {str(p): (s.channels, s.dim, s.shape) for p, s in trace.sites.items()}
    assert seen['in:conv'] == (3, 1, (2, 3, 8, 8))
    assert seen['in:linear'] == (8, -1, (2, 64, 8))
    assert seen['out:linear'] == (6, -1, (2, 64, 6))
    assert seen['out:branch:1'] == (4, 1, (2, 4, 8, 8))
    assert seen['out:branch:2'] == (8, -1, (2, 8))
    assert 'out:branch:3' not in seen  # integers are no feature map
    assert seen['out:.'] == (6, -1, (2, 64, 6))


def test_linear_preset_is_all_but_what_is_depthwise_and_never_called(toy):
    model, trace = toy
    assert [str(s.point) for s in resolve('linear', model, trace)] == ['in:conv', 'in:twice', 'in:linear']


def test_all_problems_in_one_message(toy):
    model, trace = toy
    with pytest.raises(PointError) as caught:
        resolve(['in:unused', 'out:brunch', 'in:branch', 'out:branch', 'out:conv:0', 'nonsense', 'neck'], model, trace)
    message = str(caught.value)
    for words in (
        'in:unused: never fires',
        'nearest: branch',
        'in: takes a Conv2d',
        'out:branch:0 to out:branch:3',
        'write out:conv',
        "'nonsense'",
        'no neck',
    ):
        assert words in message


def test_batch_norms_are_refused():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
    trace = Trace.of(model, {'test': lambda: model(torch.rand(2, 3, 4, 4))})
    with pytest.raises(PointError, match='batch norm'):
        resolve('out:1', model, trace)
    assert resolve('out:0', model, trace)


def test_hooks_are_gone_after_a_failed_run():
    model = Toy()
    with pytest.raises(RuntimeError):
        Trace.of(model, {'test': lambda: model(torch.rand(2, 5, 8, 8))})
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_dry_run_of_a_segmentor_sees_training_and_disturbs_nothing():
    model = MODELS.build(tiny_model_cfg())
    model.train()
    model.decode_head.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    torch.manual_seed(3)
    trace = trace_module(model)
    after_run = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(after_run, torch.rand(1))
    assert [m.training for m in model.modules()] == modes
    after = model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert all(p.grad is None for p in model.parameters())
    runs = {str(p): s.runs for p, s in trace.sites.items()}
    assert runs['in:decode_head.conv_seg'] == ('test', 'train')
    assert runs['in:auxiliary_head.conv_seg'] == ('train',)
    assert 'out:decode_head' not in runs  # heads are not called, see their layers
    assert [str(s.point) for s in resolve('stages', model, trace)] == [f'out:backbone:{i}' for i in range(4)]


def test_dry_run_of_uninitialised_weights():
    model = MODELS.build(tiny_model_cfg())
    with torch.no_grad():
        model.decode_head.conv_seg.weight.fill_(float('nan'))
    assert resolve('linear', model, trace_module(model))
    assert model.decode_head.conv_seg.weight.isnan().all()


def test_a_module_that_cannot_be_run_says_why():
    class Broken(nn.Module):
        def forward(self, x):
            raise ValueError('needs a flux capacitor')

    with pytest.raises(PointError, match='flux capacitor'):
        trace_module(Broken())


@pytest.mark.parametrize('part', ['backbone', 'decode_head', 'auxiliary_head'])
def test_parts_can_be_traced_alone(part):
    module = MODELS.build(tiny_model_cfg()[part])
    assert resolve('linear', module, trace_module(module))


def test_neck_inside_and_alone():
    neck = ConfigDict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=16, num_outs=4)
    cfg = ConfigDict(tiny_model_cfg(aux=False), neck=neck)
    cfg.decode_head.in_channels = 16
    model = MODELS.build(cfg)
    assert [s.channels for s in resolve('neck', model, trace_module(model))] == [16] * 4
    alone = MODELS.build(neck)
    assert [s.channels for s in resolve('linear', alone, trace_module(alone))][:4] == [8, 16, 32, 64]
