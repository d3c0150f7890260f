"""torch.compile in every order of what can happen to a model: plain, keyed, loaded again, copied, opened."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch._dynamo
from torch import nn
from torch._dynamo.utils import counters

from keyseg_mm import Trace, attach, detach, entries_at, protections, unlock_model
from tests.support.layers import KEY, SALTS, keyed_layers, layers, pictures, sites_in

POINTS = ('in:2', 'in:4')  # linear layers read their maps, so that the model can be opened


@pytest.fixture(autouse=True)
def _afresh(monkeypatch):
    monkeypatch.setattr(Trace, 'by_dry_run', classmethod(lambda cls, model: trace_of(model)))
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


class Net(nn.Sequential):
    """A model of a user's own class: torch.compile looks into one of torch's only if it was given it as such."""

    def forward(self, x):
        return super().forward(x)


def trace_of(model):
    plain = copy.deepcopy(model)
    detach(plain)
    return Trace.of(plain, {'test': lambda: plain(pictures())})


def key(model):
    sites = sites_in(model, POINTS)
    attach(model, KEY, sites, entries_at(sites, 'SignedChannelPermutation'), salt=SALTS[0])
    return model


def load(model):
    content = keyed_layers(SALTS[1], points=POINTS, seed=1).state_dict()
    keyed = bool(protections(model))
    model.load_state_dict(content if keyed else layers(1).state_dict())
    return model


def twin(model):
    return copy.deepcopy(model)


def unlock(model):
    if protections(model):
        unlock_model(model)
    return model


STEPS = (key, load, twin, unlock)
ORDERS = list(itertools.permutations(STEPS))[::4]  # all 24 pass, and would take half a minute


def outcome(model, run, training):
    """What a run gives, and the gradients of its weights."""
    model.train(training).zero_grad()
    with torch.set_grad_enabled(training):
        found = run(pictures())
    if training:
        found.square().sum().backward()
    return [found.detach(), *(p.grad.clone() for p in model.parameters() if training)]


def graphs():
    return counters['stats']['unique_graphs']


@pytest.mark.parametrize('training', [False, True], ids=['testing', 'training'])
@pytest.mark.parametrize('order', ORDERS, ids=lambda order: '-'.join(f.__name__ for f in order))
def test_every_order(order, training):
    model = layers()
    model.__class__ = Net
    runs = [(model, torch.compile(model, backend='aot_eager', fullgraph=True))]
    seen = [outcome(model, model, training)[0]]
    for step in (lambda model: model, *order):
        model = step(model)
        if all(model is not known for known, _ in runs):
            runs.append((model, torch.compile(model, backend='aot_eager', fullgraph=True)))
        for known, run in runs:
            want = outcome(known, known, training)
            assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(outcome(known, run, training), want))
            before = graphs()
            outcome(known, run, training)
            assert graphs() == before  # warm: no call compiles again
        seen.append(outcome(model, model, training)[0])
    assert graphs() <= 2  # that of plain models, and that of keyed ones
    keyed = 1 + order.index(key) + 1
    assert not torch.allclose(seen[keyed], seen[keyed - 1], atol=1e-3)
