"""One small config of every family that mmsegmentation ships: protected, tested and trained."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from mmseg.registry import MODELS
from torch import Tensor

from keyseg_mm.mm.dryrun import trace_module
from keyseg_mm.runtime.attach import detach, protection_of
from keyseg_mm.stamp import stamp_names
from tests.support.configs import keyed_cfg
from tests.support.families import DEPTH, FAMILIES, SIDES, STOCK, build, loss, plain_or_skip, predict, small_model

LINEAR = ('fcn', 'segformer', 'swin', 'setr', 'fastscnn', 'knet', 'mask2former')


def test_every_family_of_this_stack_is_here():
    shipped = {path.parent.name for path in STOCK.glob('*/*.py')} - {'_base_'}
    assert shipped
    assert shipped == set(FAMILIES)


def test_every_type_of_segmentor_is_here():
    types = {family: small_model(family).type for family in ('fcn', 'ocrnet', 'san', 'vpd')}
    assert types == dict(
        fcn='EncoderDecoder', ocrnet='CascadeEncoderDecoder', san='MultimodalEncoderDecoder', vpd='DepthEstimator'
    )
    assert DEPTH['type'] == types['vpd']


@pytest.mark.parametrize('family', FAMILIES)
def test_family(family, key_file):
    cfg = small_model(family)
    side = SIDES.get(family, 64)
    plain = plain_or_skip(family, cfg, side)
    check(cfg, plain, side, key_file, 'stages')


@pytest.mark.parametrize('family', ['ddrnet', 'pidnet'])
def test_maps_that_leave_the_backbone_in_training_only(family, key_file):
    """The map that both kinds of pass share meets one and the same table, and the others do not go by in the clear."""
    keyed = MODELS.build(keyed_cfg(small_model(family), f'file:{key_file}'))
    inputs = torch.rand(2, 3, 64, 64)
    backbone = keyed.backbone.eval()

    def maps(training: bool) -> list[Tensor]:
        backbone.training = training  # its flag alone, so that statistics and dropout stay those of testing
        with torch.no_grad():
            found = backbone(inputs)
        return [found] if isinstance(found, Tensor) else list(found)

    tested, trained = maps(False), maps(True)
    shared = [index for index, x in enumerate(trained) if x.shape == tested[0].shape and torch.equal(x, tested[0])]
    assert len(tested) == len(shared) == 1 < len(trained)
    protection = protection_of(keyed)
    assert len(protection.encryptors) == len(trained)
    assert [e.site.runs for e in protection.encryptors] == [
        ('test', 'train') if index in shared else ('train',) for index in range(len(trained))
    ]
    detach(keyed)
    for plain, encrypted in zip(maps(True), trained):
        assert not torch.allclose(plain, encrypted)


def test_the_dry_run_leaves_nothing_behind():
    class Remembers(torch.nn.Module):
        """A backbone that keeps what it computed first, as the host's CLIP text encoder does."""

        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 1)
            self.norm = torch.nn.BatchNorm2d(4)
            self.memory = {}

        def forward(self, x):
            self.memory.setdefault('first', self.norm(self.conv(x)))
            return self.memory['first']

    module = Remembers().eval()
    before, state = {n: v.clone() for n, v in module.state_dict().items()}, torch.get_rng_state()
    assert trace_module(module).sites
    assert module.memory == {}
    assert not module.training
    assert all(torch.equal(v, before[n]) for n, v in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    module(torch.rand(1, 3, 8, 8))
    assert module.memory


def test_depth_estimator(key_file):
    plain = build(DEPTH)
    check(DEPTH, plain, 64, key_file, 'stages')


@pytest.mark.parametrize('family', LINEAR)
def test_linear_points(family, key_file):
    cfg = small_model(family)
    plain = plain_or_skip(family, cfg, 64)
    protection = check(cfg, plain, 64, key_file, 'linear')
    assert len(protection.encryptors) > 15
    assert 'out' not in {e.site.point.side for e in protection.encryptors}


def check(cfg, plain, side: int, key_file: Path, points: str):
    """Protect the model, and hold it to the plain one of the same weights."""
    keyed = MODELS.build(keyed_cfg(copy.deepcopy(cfg), f'file:{key_file}', points=points))
    protection = protection_of(keyed)
    assert isinstance(keyed, type(plain)) and type(keyed).__name__ == type(plain).__name__
    stamps = stamp_names(keyed.state_dict())
    assert stamps == [protection.stamp.name]
    assert [name for name in keyed.state_dict() if name not in stamps] == list(plain.state_dict())

    weights = {name: value.clone() for name, value in plain.state_dict().items()}
    put(keyed, weights)
    wanted = predict(plain, side)
    with fires(protection, 'test'):
        found = predict(keyed, side)
    assert found.shape == wanted.shape
    assert torch.isfinite(found).all()
    assert not torch.allclose(found, wanted, rtol=1e-4, atol=1e-6)

    with fires(protection, 'train'):
        loss(keyed, side).backward()
    grads = [p.grad for p in keyed.parameters() if p.grad is not None]
    assert all(torch.isfinite(grad).all() for grad in grads)
    assert any(grad.abs().max() > 0 for grad in grads)

    put(keyed, weights)
    detach(keyed)
    assert list(keyed.state_dict()) == list(plain.state_dict())
    assert torch.equal(predict(keyed, side), wanted)
    return protection


def put(model, weights):
    """Plain values into a keyed model, as they are: its encryptors make something else of its maps then."""
    own = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    with torch.no_grad():
        for name, tensor in own:
            if name in weights:
                tensor.copy_(weights[name])


@contextmanager
def fires(protection, run: str):
    """Every encryptor that the dry run saw in this kind of pass is called in the block."""
    expected = [e for e in protection.encryptors if run in e.site.runs]
    assert expected
    before = {e: e.calls for e in expected}
    yield
    assert [str(e.site.point) for e in expected if e.calls == before[e]] == []
