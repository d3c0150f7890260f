"""Exporters bake tables into graphs: refused, for each of them; without the encryptors they work."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from keyseg_mm import Trace, attach, detach, resolve
from keyseg_mm.errors import SecretExposedError


@pytest.fixture
def keyed(key):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    x = torch.rand(1, 3, 8, 8)
    attach(model, key, resolve(['out:0', 'in:2'], model, Trace.of(model, {'test': lambda: model(x)})))
    return model, x


EXPORTERS = {
    'torch.jit.trace': lambda m, x: torch.jit.trace(m, x),
    'torch.export': lambda m, x: torch.export.export(m, (x,)),
    'torch.export, not strict': lambda m, x: torch.export.export(m, (x,), strict=False),
}


@pytest.mark.parametrize('name', EXPORTERS)
def test_export_is_refused_while_keyed(keyed, name):
    model, x = keyed
    with pytest.raises(Exception, match='secret tables as constants') as caught:
        EXPORTERS[name](model, x)
    assert isinstance(caught.value, SecretExposedError) or 'SecretExposedError' in str(caught.value)
    detach(model)
    EXPORTERS[name](model, x)


def test_script_of_a_keyed_model_fails_and_of_a_plain_one_works(keyed):
    model, _ = keyed
    with pytest.raises(Exception):  # noqa: B017 - TorchScript raises errors of several kinds about hooks
        torch.jit.script(model)
    detach(model)
    torch.jit.script(model)


def test_symbolic_trace_holds_no_table(keyed):
    """fx runs no hooks of leaf modules: its graph is the plain one."""
    model, x = keyed
    graph = torch.fx.symbolic_trace(model)
    assert not [n for n, b in graph.named_buffers() if not n.startswith(('0.', '2.'))]
    assert 'index_select' not in graph.code


def test_compile_keeps_results(keyed):
    model, x = keyed
    with torch.no_grad():
        want = model(x)
        compiled = torch.compile(model, backend='eager')
        assert torch.equal(compiled(x), want)
        detach(model)
        assert not torch.allclose(model(x), want)
