"""A fingerprint: put into a copy's weights, and found again in whatever became of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from keyseg_mm import lock, rekey, unlock
from keyseg_mm.errors import LockError
from keyseg_mm.keys.fingerprint import MEAN, STD, STEP, Pattern
from keyseg_mm.maps.order import ROWS
from keyseg_mm.tracing import CERTAIN, STRENGTH, Fingerprint, gather, model_of, search, trace
from keyseg_mm.tracing.marking import carriers, size_of
from keyseg_mm.tracing.scoring import log10_chance
from tests.support.configs import normed_model

NAMES = [f'licensee {i}' for i in range(12)]


@pytest.fixture(scope='module')
def plain():
    return normed_model().state_dict()


@pytest.fixture
def master(other_key):
    return other_key


def copy_for(name, plain, master, strength=STRENGTH):
    tensors = {n: v.clone() for n, v in plain.items()}
    Fingerprint(master, name, strength).put(tensors)
    return tensors


def best(found, plain, master, names=NAMES):
    """The names that are certain, and the largest z of the others."""
    scores = search(gather(found, plain), master, model_of(plain), names)
    return {s.name for s in scores if s.is_certain}, max((s.z for s in scores if not s.is_certain), default=0.0)


def test_a_pattern_is_of_one_licensee_tensor_and_model_and_of_the_master_key_alone(key, master):
    def pattern(holder=master, name='ACME', model=b'', tensor='a.weight'):
        return Pattern(holder, name, model, tensor).read(100_001)

    values = pattern()
    others = [
        pattern(key),
        pattern(master.licensee('ACME')),
        pattern(name='Bolt'),
        pattern(model=b'another one'),
        pattern(tensor='b'),
    ]
    assert np.array_equal(values, pattern(name=' ACME '))
    for other in others:
        assert abs(np.corrcoef(values.astype(float), other)[0, 1]) < 0.02
    assert (values.min(), values.max()) == (0, 30)
    assert abs(values.mean() - MEAN) < 0.1
    assert abs(values.std() / STD - 1) < 0.01
    parts = Pattern(master, 'ACME', b'', 'a.weight')
    assert np.array_equal(np.concatenate([parts.read(40_000), parts.read(60_001)]), values)
    assert repr(parts) == '<Pattern of a.weight>'
    assert ROWS % STEP == 0, 'a weight may be marked part by part'


def test_only_weights_are_changed_and_by_so_little(plain, master):
    marked, marks = copy_for('Bolt', plain, master), carriers(plain)
    assert 'backbone.conv1.weight' in marks
    for name, before in plain.items():
        change = marked[name] - before
        if name not in marks:
            assert not change.any(), name
        else:
            assert size_of(change) == pytest.approx(STRENGTH * size_of(before), rel=0.3)
    odd = {
        'a.weight': torch.ones(8, 16, dtype=torch.int8),
        'b.weight': torch.ones(64, 64).to_sparse(),
        'table': torch.ones(64, 64),
        'c.weight': torch.ones(2000),
        'running_mean': torch.ones(64, 64),
    }
    with pytest.raises(LockError, match='no weights'):
        Fingerprint(master, 'Bolt').put(odd)
    for strength in (0.0, -1.0, 0.2, float('nan')):
        with pytest.raises(LockError, match='strength'):
            Fingerprint(master, 'Bolt', strength)


def test_tied_weights_are_marked_once(plain, master):
    weight = torch.randn(64, 64)
    tied = {'a.weight': weight, 'b.weight': weight, 'c.bias': torch.ones(4)}
    before = weight.clone()
    Fingerprint(master, 'Bolt').put(tied)
    assert tied['b.weight'] is weight
    assert size_of(weight - before) == pytest.approx(STRENGTH * size_of(before), rel=0.1)


def noisy(tensors, share):
    draw = torch.Generator().manual_seed(0)
    return {
        n: v + share * v.std() * torch.randn(v.shape, generator=draw) if v.dim() > 1 else v for n, v in tensors.items()
    }


def shuffled(tensors):
    """Channels of each weight in another order, scale and sign."""
    draw, found = torch.Generator().manual_seed(0), {}
    for name, value in tensors.items():
        if value.dim() > 1:
            rows, columns = (torch.randperm(n, generator=draw) for n in value.shape[:2])
            scale = torch.exp(torch.randn(len(rows), generator=draw)) * (
                torch.randint(2, rows.shape, generator=draw) * 2 - 1
            )
            value = value[rows][:, columns] * scale.view(-1, *[1] * (value.dim() - 1))
        found[name] = value
    return found


def pruned(tensors, share):
    return {n: v * (v.abs() > v.abs().flatten().float().quantile(share)) for n, v in tensors.items()}


def to_integers(tensors):
    return {n: (v / v.abs().max() * 127).round().to(torch.int8) for n, v in tensors.items() if v.dim() > 1}


TREATMENTS = {
    'nothing': lambda t: t,
    'noise of 2 %': lambda t: noisy(t, 0.02),
    'half precision': lambda t: {n: v.half() for n, v in t.items()},
    'bfloat16': lambda t: {n: v.bfloat16() for n, v in t.items()},
    'integers': to_integers,
    'half of the weights pruned': lambda t: pruned(t, 0.5),
    'other order, scale and signs': shuffled,
    'other names': lambda t: {f'onnx::{n}': v for n, (_, v) in enumerate(t.items())},
    'transposed': lambda t: {f'{n}_': v.t() if v.dim() == 2 else v for n, v in t.items()},
    'a data-parallel run': lambda t: {f'module.{n}': v for n, v in t.items()},
    'layers missing, another head': lambda t: {
        n: torch.randn(v.shape) if 'head' in n else v for n, v in t.items() if 'layer4' not in n
    },
    'other channels as well as noise': lambda t: shuffled(noisy(t, 0.02)),
}


@pytest.mark.parametrize('treatment', TREATMENTS)
def test_it_is_found_in_what_became_of_a_copy(treatment, plain, master):
    found = TREATMENTS[treatment](copy_for(NAMES[3], plain, master))
    assert trace(found, plain, master, NAMES).owners == [NAMES[3]]
    innocent = TREATMENTS[treatment](copy_for('somebody else', plain, master))
    guilty, others = best(innocent, plain, master)
    assert guilty == set()
    assert others < 4.5


def by_turns(copies):
    ends = torch.stack([copies.min(0).values.flatten(), copies.max(0).values.flatten()])
    every = torch.arange(ends.shape[1])
    return ends[every % 2, every].view(copies.shape[1:])


def test_another_model_accuses_nobody(plain, master):
    copied = copy_for(NAMES[3], plain, master)
    others = {n: torch.randn(v.shape) if v.dim() > 1 else v for n, v in copied.items()}
    assert len(gather(others, plain)) < len(carriers(plain)) / 3  # of few channels some order is always alike
    assert best(others, plain, master)[0] == set()
    assert search([], master, model_of(plain), NAMES)[0].z == 0
    verdict = trace({'x': torch.ones(3)}, plain, master, NAMES)
    assert (verdict.owners, verdict.weights) == ([], 0)
    assert 'nobody' in verdict.sentence()


COLLUSIONS = {
    'mean': lambda c: c.mean(0),
    'median': lambda c: c.median(0).values,
    'largest': lambda c: c.max(0).values,
    'largest and smallest by turns': by_turns,
    'midpoint': lambda c: (c.max(0).values + c.min(0).values) / 2,
    'beyond': lambda c: c.max(0).values + c.min(0).values - c.median(0).values,
}


@pytest.mark.parametrize('count', [2, 3, 4, 8])
def test_copies_put_together_accuse_those_they_are_of_and_nobody_else(count, plain, master):
    copies = [copy_for(name, plain, master) for name in NAMES[:count]]
    for collude in COLLUSIONS.values():
        found = {n: collude(torch.stack([c[n] for c in copies]).float()) for n in plain}
        guilty, others = best(found, plain, master)
        assert guilty == set(NAMES[:count])
        assert others < 4.5


def test_innocent_names_score_as_chance_says(plain, master):
    scores = search(gather(copy_for('Bolt', plain, master), plain), master, model_of(plain), [*map(str, range(150))])
    z = np.array([score.z for score in scores])
    assert abs(z.mean()) < 0.25
    assert 0.85 < z.std() < 1.15
    assert not any(score.is_certain for score in scores)


def test_the_chance_is_counted_for_all_names():
    assert log10_chance(0.0, 1) == 0.0
    assert log10_chance(-9.0, 1) == 0.0
    assert log10_chance(7.0, 1) == pytest.approx(-49 / 2 / np.log(10))
    assert log10_chance(7.0, 10_000) == pytest.approx(log10_chance(7.0, 1) + 4)
    assert CERTAIN == 1e-6


def test_many_names_are_asked_in_stages(plain, master, monkeypatch):
    found = copy_for('100', plain, master)
    evidence, names = gather(found, plain), [*map(str, range(150))]
    told = []
    whole = search(evidence, master, model_of(plain), names)
    monkeypatch.setattr('keyseg_mm.tracing.scoring._VALUES', 150 * 2000)
    staged = search(evidence, master, model_of(plain), names, told.append)
    assert staged[0] == whole[0]
    assert staged[0].name == '100'
    assert {score.values for score in whole} == {whole[0].values}
    assert min(score.values for score in staged) == 2000
    assert told[-1] == 1.0
    assert told == sorted(told)


def test_opening_a_locked_copy_leaves_it(plain, master):
    from keyseg_mm.bind import licensee_salt

    model = normed_model()
    owners = lock(plain, model, master)
    theirs = master.licensee('Bolt')
    marked = copy_for('Bolt', plain, master)
    locked = lock(marked, model, theirs, salt=licensee_salt(master, 'Bolt', plain))
    assert trace(locked, owners, master, ['Bolt', 'ACME']).owners == ['Bolt']
    opened = unlock(locked, theirs)
    for original in (plain, owners):
        verdict = trace(opened, original, master, ['Bolt', 'ACME'])
        assert verdict.owners == ['Bolt']
        assert verdict.stamp is None
        assert 'copy of' in verdict.sentence()
    unmarked = unlock(rekey(owners, master, theirs), theirs)
    assert trace(unmarked, owners, master, ['Bolt', 'ACME']).owners == []
    assert 'plain weights' in trace(unmarked, owners, master, ['Bolt', 'ACME']).sentence()
