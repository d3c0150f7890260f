"""What torch, mmcv and peft do with a model, done to a keyed one and to an opened one: it works, or is refused."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from mmcv.cnn.utils import fuse_conv_bn
from mmseg.registry import MODELS
from torch import nn

from keyseg_mm import SecretKey, Trace, attach, lock, plan_lock, write_key_file
from keyseg_mm.errors import LockError, NotFiredError
from keyseg_mm.runtime.attach import protections
from keyseg_mm.runtime.written import lock_opened
from tests.support.configs import keyed_cfg, normed_model, tiny_model_cfg

KEY = SecretKey(bytes(range(32)))
IMAGE = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
RUNTIMES = ('keyed', 'plain')


@pytest.fixture(scope='module')
def plain():
    return normed_model()


@pytest.fixture(scope='module', params=RUNTIMES)
def protected(request, plain, tmp_path_factory):
    """A locked model, loaded, whose weights are in memory what its runtime says."""
    path = tmp_path_factory.mktemp('keys') / 'key'
    write_key_file(path, KEY)
    model = MODELS.build(keyed_cfg(tiny_model_cfg(), f'file:{path}', points='checkpoint', runtime=request.param))
    model.load_state_dict(lock(plain.state_dict(), plain, KEY))
    return model.eval()


def scores(model, image=IMAGE):
    with torch.no_grad():
        return model(image, mode='tensor').float()


def gap(one, other) -> float:
    return float((one - other).norm() / other.norm())


def is_keyed(model) -> bool:
    return bool(protections(model)[0].encryptors)


WAYS = {
    'channels_last': (lambda m: m.to(memory_format=torch.channels_last), 1e-5),
    'float64': (lambda m: m.double(), 1e-5),
    'bfloat16': (lambda m: m.bfloat16(), 0.05),
    'fused conv and bn': (fuse_conv_bn, 1e-4),
    'SyncBN': (nn.SyncBatchNorm.convert_sync_batchnorm, 1e-5),
}


@pytest.mark.parametrize('way', WAYS)
def test_what_works_with_both(way, plain, protected):
    change, limit = WAYS[way]
    model = change(copy.deepcopy(protected))
    dtype = next(model.parameters()).dtype
    other = scores(MODELS.build(tiny_model_cfg()).eval())
    assert gap(other, scores(plain)) > 0.1
    assert gap(scores(model, IMAGE.to(dtype)), scores(plain)) < limit
    if is_keyed(model):
        assert all(
            encryptor.calls for p in protections(model) for encryptor in p.encryptors if 'test' in encryptor.site.runs
        )


def test_autocast(plain, protected):
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert gap(scores(protected), scores(plain)) < 0.05


def test_an_opened_model_is_traced(plain, protected):
    if is_keyed(protected):
        pytest.skip('a keyed model is refused, see tests/runtime/test_export.py')

    class Scores(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = copy.deepcopy(protected)

        def forward(self, x):
            return self.model(x, mode='tensor')

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter('ignore')
        traced = torch.jit.trace(Scores(), IMAGE)
        assert gap(traced(IMAGE), scores(plain)) < 1e-5


class Head(nn.Module):
    """Tokens behind a convolution, with a linear layer to exchange."""

    def __init__(self):
        super().__init__()
        self.conv, self.proj = nn.Conv2d(3, 16, 8, stride=8), nn.Linear(16, 5)

    def forward(self, x):
        return self.proj(self.conv(x).flatten(2).transpose(1, 2))


@pytest.fixture
def head():
    plain = Head().eval()
    keyed = copy.deepcopy(plain)
    plan = plan_lock(plain, trace=Trace.of(plain, {'test': lambda: plain(IMAGE)}))
    attach(keyed, KEY, plan.sites, plan.entries).carry(keyed)
    return plain, keyed


def quantised(model):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def test_dynamic_int8(head):
    """It exchanges linear layers by their class: those of an opened model, and none that has an encryptor."""
    plain, keyed = head
    with torch.no_grad():
        want = plain(IMAGE)
        assert 1e-4 < gap(quantised(plain)(IMAGE), want) < 0.1
        assert gap(quantised(keyed)(IMAGE), want) < 1e-5
    assert type(quantised(plain).proj) is not nn.Linear and isinstance(quantised(keyed).proj, nn.Linear)


def test_adapters_of_peft(head):
    peft = pytest.importorskip('peft')
    plain, keyed = head
    config = peft.LoraConfig(target_modules=['proj'], r=2)
    want = plain(IMAGE).detach()
    adapted = peft.get_peft_model(copy.deepcopy(plain), config)
    assert gap(adapted(IMAGE), want) < 1e-6
    adapted(IMAGE).square().mean().backward()
    assert [n for n, p in adapted.named_parameters() if p.grad is not None and 'lora_B' in n]
    with pytest.raises(NotFiredError, match="runtime='plain'"):
        peft.get_peft_model(keyed, config)(IMAGE)


def test_an_opened_model_with_exchanged_layers_is_not_written(protected):
    if is_keyed(protected):
        pytest.skip('refused before it runs')
    model = copy.deepcopy(protected)
    whole = {'state_dict': dict(model.state_dict())}
    assert lock_opened(model, whole)['state_dict'].keys() != whole['state_dict'].keys()
    del whole['state_dict']['decode_head.conv_seg.weight']
    with pytest.raises(LockError, match='decode_head.conv_seg.weight'):
        lock_opened(model, whole)
