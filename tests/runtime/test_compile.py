"""torch.compile: one graph for all keyed models, never that of a plain one, and nothing secret in what it writes."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch._dynamo
from torch._dynamo.utils import counters

from keyseg_mm import attach, detach, entries_at, find_leaks, protections
from tests.support.layers import KEY, SALTS, keyed_layers, layers, pictures, sites_in

ROOT = Path(__file__).parents[2]
KINDS = ('ChannelPermutation', 'SignedChannelPermutation', 'ChannelRotation')


@pytest.fixture(autouse=True)
def _afresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs():
    return counters['stats']['unique_graphs']


def step(model, run, training):
    """What a model gives, and its gradients."""
    model.train(training).zero_grad()
    with torch.set_grad_enabled(training):
        found = run(pictures())
    if not training:
        return [found]
    found.square().sum().backward()
    return [found.detach(), *(p.grad.clone() for p in model.parameters())]


def is_right(model, compiled, training):
    want = step(model, model, training)
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(want, step(model, compiled, training)))


def compiled(model):
    return torch.compile(model, backend='aot_eager', fullgraph=True)


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('kind', KINDS)
def test_one_graph_serves_all_keyed_models_and_no_plain_one(kind, training):
    plain, first, second = layers(), keyed_layers(SALTS[0], kind), keyed_layers(SALTS[1], kind, seed=1)
    outputs = [step(m, m, training)[0] for m in (plain, first, second)]
    assert all(not torch.allclose(a, b, atol=1e-3) for a, b in zip(outputs, outputs[1:]))
    for model, expected in ((plain, 1), (first, 2), (second, 2), (copy.deepcopy(second), 2), (layers(3), 2)):
        run = compiled(model)
        for _ in range(3):
            assert is_right(model, run, training)
        assert graphs() == expected


def test_what_was_compiled_stays_right_when_the_model_changes():
    model, training = layers(), False
    sites = sites_in(model)
    run = compiled(model)
    assert is_right(model, run, training)
    attach(model, KEY, sites, entries_at(sites), salt=SALTS[0])
    assert is_right(model, run, training)
    (before,) = step(model, run, training)
    model.load_state_dict(keyed_layers(SALTS[1], 'ChannelPermutation', seed=1).state_dict())
    assert is_right(model, run, training) and not torch.allclose(step(model, run, training)[0], before, atol=1e-3)
    assert graphs() == 2
    detach(model)
    assert is_right(model, run, training)
    assert torch.allclose(step(model, run, training)[0], layers(1)(pictures()), atol=1e-6)
    assert graphs() == 2


def test_compiled_maps_are_checked_as_others_are():
    model = keyed_layers(points=('in:4',))
    model[2] = torch.nn.Conv2d(32, 40, 3)
    with pytest.raises(Exception, match='a map of 32 channels met 40 of them'):
        compiled(model)(pictures())


BACKENDS = {'clean': 'inductor', 'planted': 'eager'}  # the control need not take long
CHILD = """
import sys, torch
sys.path.insert(0, {root!r})
from keyseg_mm import protections
from keyseg_mm.runtime.leaks import Needles
from tests.support.layers import keyed_layers, pictures
torch.set_num_threads(1)
model = keyed_layers()
table = protections(model)[0].encryptors[0].map.tables()['permutation'].tolist()
run = model if {how!r} == 'clean' else lambda x: model(x) + torch.tensor(table).sum()
compiled = torch.compile(run, fullgraph=True, backend={backend!r})
for _ in range(2):
    compiled(pictures()).square().sum().backward()
"""


def written_by(folder, how):
    """All that torch writes in a process that compiles a keyed model for training, and is asked to tell everything."""
    env = {
        **os.environ,
        'TORCH_LOGS': '+dynamo,guards,recompiles,graph_code,aot_graphs,output_code,+aot,+inductor',
        'TORCH_TRACE': str(folder / 'trace'),
        'TORCHINDUCTOR_CACHE_DIR': str(folder / 'cache'),
        'TORCH_COMPILE_DEBUG': '1',
        'TORCH_COMPILE_DEBUG_DIR': str(folder / 'debug'),
        'OMP_NUM_THREADS': '1',
    }
    command = [sys.executable, '-W', 'ignore', '-c', CHILD.format(root=str(ROOT), how=how, backend=BACKENDS[how])]
    done = subprocess.run(command, capture_output=True, env=env, cwd=folder, check=False)
    (folder / 'stderr').write_bytes(done.stderr)
    assert done.returncode == 0, done.stderr[-3000:].decode()
    return [path for path in folder.rglob('*') if path.is_file()]


@pytest.mark.parametrize('how', BACKENDS)
def test_nothing_secret_in_logs_traces_and_caches_of_a_compiler(how, tmp_path):
    files = written_by(tmp_path, how)
    assert sum(path.stat().st_size for path in files) > 1e5 and (how == 'planted' or len(files) > 20)
    (protection,) = protections(keyed_layers())
    found = find_leaks(tmp_path, KEY, [protection.stamp])
    assert bool(found) == (how == 'planted'), found
