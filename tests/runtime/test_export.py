"""Exporters bake tables into graphs: refused, for each of them; without the encryptors they work."""

from __future__ import annotations

import pickle
from contextlib import nullcontext

import pytest
import torch
import torch._dynamo.functional_export
from functorch.compile import aot_module, nop
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from keyseg_mm import Trace, attach, detach, entries_at, resolve
from keyseg_mm.errors import SecretExposedError
from keyseg_mm.runtime.attach import protection_of
from keyseg_mm.runtime.encryptor import given_tables


@pytest.fixture
def keyed(key):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    x = torch.rand(1, 3, 8, 8)
    sites = resolve(['out:0', 'in:2'], model, Trace.of(model, {'test': lambda: model(x)}))
    attach(model, key, sites, entries_at(sites))
    return model, x


class Around(nn.Module):
    """A module that traces through the one at a point."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner[2].forward(self.inner[0].forward(x))


EXPORTERS = {
    'torch.jit.trace': lambda m, x: torch.jit.trace(m, x),
    'torch.export': lambda m, x: torch.export.export(m, (x,)),
    'torch.export, strict': lambda m, x: torch.export.export(m, (x,), strict=True),
    'torch.export, not strict': lambda m, x: torch.export.export(m, (x,), strict=False),
    'make_fx': lambda m, x: make_fx(m)(x),
    'make_fx, fake': lambda m, x: make_fx(m, tracing_mode='fake', _allow_non_fake_inputs=True)(x),
    'make_fx, symbolic': lambda m, x: make_fx(m, tracing_mode='symbolic', _allow_non_fake_inputs=True)(x),
    'AOTAutograd': lambda m, x: aot_module(m, nop)(x),
    'TorchDynamo': lambda m, x: torch._dynamo.export(m)(x),
    'torch.fx': lambda m, x: torch.fx.symbolic_trace(m),
    'torch.fx, in a module that is no leaf': lambda m, x: torch.fx.symbolic_trace(Around(m)),
    'TorchScript': lambda m, x: torch.jit.script(m),
}


@pytest.mark.parametrize('name', EXPORTERS)
def test_export_is_refused_while_keyed(keyed, name):
    model, x = keyed
    with pytest.raises(Exception, match='secret tables as constants') as caught:
        EXPORTERS[name](model, x)
    assert isinstance(caught.value, SecretExposedError) or 'SecretExposedError' in str(caught.value)
    detach(model)
    EXPORTERS[name](model, x)


@pytest.mark.parametrize('name', [name for name in EXPORTERS if name.startswith('torch.export')])
def test_exporters_are_known_without_their_flags(keyed, name, monkeypatch):
    """torch 2.11's says nothing while the compiler traces for it."""
    model, x = keyed
    for owner in (torch.export._trace, torch._dynamo.eval_frame, torch._dynamo.functional_export):
        monkeypatch.setattr(owner, '_compiling_state_context', nullcontext, raising=False)
    with pytest.raises(Exception, match='secret tables as constants'):
        EXPORTERS[name](model, x)
    torch._dynamo.reset()
    with torch.no_grad():
        assert torch.equal(torch.compile(model, backend='eager', fullgraph=True)(x), model(x))


class Given(nn.Module):
    """A keyed model whose tables are inputs."""

    def __init__(self, model):
        super().__init__()
        self.model, self.encryptors = model, protection_of(model).encryptors

    def forward(self, x, tables):
        with given_tables(self.encryptors, [(table,) for table in tables]):
            return self.model(x)


def test_tables_that_are_inputs_are_in_no_graph(keyed):
    model, x = keyed
    tables = tuple(torch.from_numpy(e.map.tables()['permutation']) for e in protection_of(model).encryptors)
    neutral = tuple(torch.arange(len(table)) for table in tables)
    program = torch.export.export(Given(model), (x, neutral))
    with torch.no_grad():
        assert not torch.allclose(program.module()(x, neutral), model(x))
        assert torch.allclose(program.module()(x, tables), model(x))
    assert not any(torch.equal(value, table) for value in program.constants.values() for table in tables)
    with pytest.raises(SecretExposedError):
        torch.export.export(model, (x,))


def test_a_symbolic_trace_around_the_layers_of_torch_holds_no_table(keyed):
    """fx does not look into them: its graph calls the keyed ones."""
    model, x = keyed
    graph = torch.fx.symbolic_trace(nn.Sequential(*model))
    assert torch.equal(graph(x), model(x))
    assert not [n for n, b in graph.named_buffers() if not n.startswith(('0.', '2.'))]
    assert 'index_select' not in graph.code
    with pytest.raises(SecretExposedError):
        pickle.dumps(graph)
