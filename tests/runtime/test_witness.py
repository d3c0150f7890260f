"""What a protected model hands out is what its stamp says, or it is an error: no path passes an encryptor by."""

from __future__ import annotations

import copy
import threading
import time

import pytest
import torch
import torch._dynamo
from torch import nn
from torch._dynamo.utils import counters

from keyseg_mm import Trace, attach, detach, entries_at, protections, resolve
from keyseg_mm.errors import KeyMismatchError, NotFiredError
from keyseg_mm.runtime.attach import run_without_key
from keyseg_mm.runtime.protection import Rules
from tests.support.layers import KEY, SALTS, pictures


class Net(nn.Module):
    """A small network that is run as the host's segmentors are, and whose path can be led elsewhere."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        self.head, self.aux = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
        self.features = lambda model, x: model.body(x)
        self.scores = lambda model, x: model.head(x)

    def forward(self, x, mode='tensor'):
        return {'loss': self.loss, 'predict': self.predict, 'tensor': self._forward}[mode](x)

    def _forward(self, x):
        return self.scores(self, self.features(self, x))

    def predict(self, x):
        return self.encode_decode(x).softmax(1)

    def encode_decode(self, x):
        return self._forward(x)

    def loss(self, x):
        x = self.features(self, x)
        return {'loss': (self.scores(self, x) + self.aux(x)).square().mean()}


def net(**rules):
    model = Net()
    passes = {'test': lambda: model.predict(pictures()), 'train': lambda: model.loss(pictures())}
    sites = resolve(['out:body', 'in:head', 'in:aux'], model, Trace.of(model, passes))
    attach(model, KEY, sites, entries_at(sites), salt=SALTS[0], rules=Rules(**rules))
    return model.eval()


RUNS = {
    'predict': lambda model: model(pictures(), mode='predict'),
    'loss': lambda model: model.train()(pictures(), mode='loss')['loss'],
    'tensor': lambda model: model(pictures()),
    'a part of testing': lambda model: model.encode_decode(pictures()),
    'the method itself': lambda model: model.predict(pictures()),
}


def use_the_weight(model):
    model.scores = lambda model, x: nn.functional.conv2d(x, model.head.weight, model.head.bias)


def keep_an_old_forward(model):
    model.features = lambda model, x: nn.Sequential.forward(model.body, x)


def call_a_copy(model):
    twin = [copy.deepcopy(model.head)]
    model.scores = lambda model, x: twin[0](x)


def replace(model):
    model.head = nn.Conv2d(8, 4, 1)


def adapt(model):
    """As libraries for low-rank adapters do: what is added sees the plain map."""

    class Adapted(nn.Module):
        def __init__(self, base_layer):
            super().__init__()
            self.base_layer, self.more = base_layer, nn.Conv2d(8, 4, 1)

        def forward(self, x):
            return self.base_layer(x) + self.more(x)

    model.head = Adapted(model.head)


def replace_the_part_around(model):
    model.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())


DAMAGES = {
    f.__name__: (f, point)
    for f, point in (
        (use_the_weight, 'in:head'),
        (keep_an_old_forward, 'out:body'),
        (call_a_copy, 'in:head'),
        (replace, 'in:head'),
        (adapt, 'in:head'),
        (replace_the_part_around, 'out:body'),
    )
}


@pytest.mark.parametrize('run', RUNS)
@pytest.mark.parametrize('damage', DAMAGES)
def test_a_result_of_another_model_is_not_returned(damage, run):
    model = net()
    change, point = DAMAGES[damage]
    assert RUNS[run](model) is not None
    change(model)
    for _ in range(2):
        with pytest.raises(NotFiredError, match=point):
            RUNS[run](model)
    detach(model)
    RUNS[run](model)


def test_points_of_training_are_asked_for_in_training():
    model = net()
    assert [e.calls for e in protections(model)[0].encryptors] == [0, 0, 0]
    model(pictures())
    assert [e.calls for e in protections(model)[0].encryptors] == [1, 1, 0]
    model.aux.forward = nn.Conv2d(8, 4, 1).forward
    model(pictures())
    with pytest.raises(NotFiredError, match='in:aux'):
        model.train()(pictures(), mode='loss')


def test_a_run_that_fails_leaves_the_next_one_as_it_was():
    model = net()
    want = model(pictures())
    for _ in range(3):
        with pytest.raises(RuntimeError):
            model(torch.rand(1, 5, 12, 12))
    assert torch.equal(model(pictures()), want)
    use_the_weight(model)
    with pytest.raises(NotFiredError):
        model(pictures())


def test_a_copy_has_a_witness_of_its_own():
    model, twin = net(), copy.deepcopy(net())
    use_the_weight(twin)
    assert model(pictures()).shape == (2, 4, 10, 10)
    with pytest.raises(NotFiredError):
        twin(pictures())
    twin = copy.deepcopy(model)
    del model
    assert twin(pictures()).shape == (2, 4, 10, 10)
    replace(twin)
    with pytest.raises(NotFiredError, match='in:head'):
        twin(pictures())


def test_threads_share_a_model():
    model, found = net(), []
    model.scores = lambda model, x: (model.head(x), time.sleep(0.001))[0]
    want = model(pictures())

    def work():
        with torch.no_grad():
            found.extend(bool(torch.allclose(model(pictures()), want)) for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 120


@pytest.fixture
def _afresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures('_afresh')
@pytest.mark.parametrize('damage', DAMAGES)
def test_compiled_models_are_watched_too(damage):
    model = net()
    compiled = torch.compile(model, backend='eager', fullgraph=True)
    for _ in range(3):
        assert torch.allclose(compiled(pictures(), mode='predict'), model.predict(pictures()))
    assert counters['stats']['unique_graphs'] == 1
    DAMAGES[damage][0](model)
    with pytest.raises(Exception, match='NotFiredError|ran past|not what its stamp says'):
        compiled(pictures(), mode='predict')
    with pytest.raises(NotFiredError):
        torch.compile(model, backend='eager')(pictures(), mode='predict')


@pytest.mark.parametrize('make', ['none', 'wrong'])
def test_a_model_without_its_key_is_tested_and_not_trained(make):
    model = net(deliberate=True) if make == 'wrong' else Net()
    if make == 'none':
        run_without_key(model)
    with torch.no_grad():
        assert model.train()(pictures(), mode='loss')['loss'] > 0
    assert model.eval()(pictures(), mode='predict').shape == (2, 4, 10, 10)
    with pytest.raises(KeyMismatchError, match='not trained'):
        model.train()(pictures(), mode='loss')


def test_a_part_without_its_key_is_not_trained():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1))
    run_without_key(model[0])
    loss = model(pictures()).sum()
    with pytest.raises(KeyMismatchError, match='not trained'):
        loss.backward()
    model.eval()(pictures()).sum().backward()
