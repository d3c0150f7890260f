"""Encryptors in the class of a module: nothing passes them by, nothing is left of them, nothing secret gets out."""

from __future__ import annotations

import copy
import pickle
from typing import Generic, TypeVar

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from keyseg_mm import attach, detach, entries_at, protections
from keyseg_mm.bind import derive_map
from keyseg_mm.errors import NotFiredError, PlanMismatchError, PointError, SecretExposedError
from keyseg_mm.runtime.gates import Gate, add_gates
from tests.support.layers import KEY, POINTS, SALTS, encryptors, keyed_layers, layers, pictures, sites_in

_T = TypeVar('_T')


def by_hand(model, stamp, x):
    """What a keyed model is to give, from the maps themselves."""
    maps = {entry.point: derive_map(KEY, stamp.salt, entry) for entry in stamp.maps}
    for name, layer in model.named_children():
        x = maps[f'in:{name}'](x) if f'in:{name}' in maps else x
        x = layer(x)
        x = maps[f'out:{name}'](x) if f'out:{name}' in maps else x
    return x


@pytest.mark.parametrize('points', [POINTS, ('in:2', 'out:2'), ('out:.',), ('in:0', 'out:0', 'out:1', 'out:.')])
@pytest.mark.parametrize('transform', ['ChannelPermutation', 'SignedChannelPermutation', 'ChannelRotation'])
def test_every_point_encrypts_once(points, transform):
    model, plain, x = keyed_layers(points=points, transform=transform), layers(), pictures()
    stamp = protections(model)[0].stamp
    want = by_hand(plain, stamp, x)
    if 'out:.' in points:
        want = derive_map(KEY, stamp.salt, stamp.maps[-1])(want)
    assert not torch.allclose(want, plain(x), atol=1e-3)
    assert torch.equal(model(x), want)
    assert [encryptor.calls for encryptor in encryptors(model)] == [1] * len(points)


def test_classes_parameters_and_keys_stay():
    model, plain = keyed_layers(), layers()
    for (name, mine), theirs in zip(model.named_modules(), plain.modules()):
        kind, old = type(mine), type(theirs)
        assert isinstance(mine, old)
        assert (kind is not old) == (name in ('', '0', '2', '4'))
        assert (kind.__name__, kind.__qualname__, kind.__module__) == (old.__name__, old.__qualname__, old.__module__)
        assert {base.__name__ for base in old.__bases__} <= {base.__name__ for base in kind.__bases__}
    assert repr(model) == repr(plain)
    assert set(model.state_dict()) - set(plain.state_dict()) == {protections(model)[0].stamp.name}
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert not list(model.buffers())
    assert type(keyed_layers()[2]) is type(model[2])  # one class for all models


def test_a_direct_call_of_forward_is_encrypted():
    model, x = keyed_layers(), pictures()
    hidden = model[1](model[0].forward(x))
    assert torch.equal(model[4].forward(model[3](model[2].forward(hidden))), model(x))


def test_a_layer_is_given_its_map_first_or_by_name():
    model, x = keyed_layers(), torch.rand(1, 32, 8, 8)
    assert not torch.equal(model[2](x), layers()[2](x))
    assert torch.equal(model[2](input=x), model[2](x))
    with pytest.raises(NotFiredError, match='in:2'):
        model[2](x=x)


def test_detach_gives_the_old_classes_back():
    model, plain = keyed_layers(), layers()
    before = [vars(module).keys() for module in plain.modules()]
    assert detach(model) == 3 + 1
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]
    assert [vars(module).keys() for module in model.modules()] == before
    assert not model._state_dict_hooks and not model._load_state_dict_pre_hooks
    assert torch.equal(model(pictures()), plain(pictures()))
    pickle.dumps(model)
    assert detach(model) == 0


def test_tables_go_where_the_module_goes():
    model = keyed_layers()
    encryptor = encryptors(model)[0]
    assert {t.device.type for t in encryptor._tables + encryptor._inverse} == {'cpu'}
    assert encryptor._tables[1].dtype == torch.float32
    model.half()
    assert encryptor._tables[0].dtype == torch.int64 and encryptor._tables[1].dtype == torch.float16
    model.to('meta')
    assert {t.device.type for t in encryptor._tables + encryptor._inverse} == {'meta'}
    assert model(pictures().half().to('meta')).shape == (2, 4, 8, 8)


def test_nothing_secret_is_pickled_or_shown():
    model = keyed_layers()
    for value in (model, model[2], encryptors(model)[0], protections(model)[0]):
        with pytest.raises(SecretExposedError):
            pickle.dumps(value)
    shown = repr([vars(module) for module in model.modules()]) + repr(protections(model))
    table = encryptors(model)[1].map.tables()['permutation'].tolist()
    assert str(table)[1:40] not in shown and 'in:2' in shown


def test_a_shallow_copy_is_as_good():
    model, x = keyed_layers(), torch.rand(1, 32, 8, 8)
    assert torch.equal(copy.copy(model[2])(x), model[2](x))


class Doubled(nn.Conv2d, Generic[_T]):
    """A user's own layer, of a class whose bases cannot all be repeated."""

    def forward(self, input):
        return 2 * super().forward(input)


def test_classes_of_the_user():
    model, x = layers(), pictures()
    model[2] = Doubled(32, 32, 3)
    sites = sites_in(model)
    want = by_hand(model, attach(copy.deepcopy(model), KEY, sites, entries_at(sites), salt=SALTS[0]).stamp, x)
    attach(model, KEY, sites, entries_at(sites), salt=SALTS[0])
    assert torch.equal(model(x), want)


def test_modules_that_take_no_gate_are_refused_before_anything_changes():
    model = layers()
    sites = sites_in(model)
    for stubborn in (torch.jit.script(model[4]), copy.deepcopy(model[4])):
        model[4] = stubborn
        if not isinstance(stubborn, torch.jit.ScriptModule):
            stubborn.forward = lambda input: input
        with pytest.raises(PointError, match='4: its forward'):
            attach(model, KEY, sites, entries_at(sites))
        assert type(model[0]) is nn.Conv2d and not protections(model)


def replace(model):
    model[2] = nn.Conv2d(32, 32, 3)


def wrap(model):
    model[2] = nn.Sequential(model[2])


def remove(model):
    del model[4]


def shadow(model):
    model[2].forward = nn.Conv2d(32, 32, 3).forward


def take_off(model):
    detach(model[2])


def give_another_class(model):
    model[2].__class__ = nn.Conv2d


def exchange(model):
    model[2] = keyed_layers()[2]


def override(model):
    model[2].__class__ = type('Conv2d', (type(model[2]),), {'forward': lambda self, x: x})


@pytest.mark.parametrize(
    ('damage', 'point'),
    [
        (replace, 'in:2'),
        (wrap, 'in:2'),
        (remove, 'in:4'),
        (shadow, 'in:2'),
        (take_off, 'in:2'),
        (give_another_class, 'in:2'),
        (exchange, 'in:2'),
        (override, 'in:2'),
    ],
)
def test_a_model_that_is_not_what_its_stamp_says_is_found_and_not_saved(damage, point):
    model = keyed_layers()
    protections(model)[0].check(model)
    protection = protections(model)[0]
    damage(model)
    for use in (lambda: protection.check(model), model.state_dict):
        with pytest.raises(NotFiredError, match=point):
            use()


def test_torch_compile_and_parametrizations_are_no_damage():
    model, x = keyed_layers(), pictures()
    want = model(x)
    protection = protections(model)[0]
    model[2].forward = torch.compile(model[2].forward, backend='eager')
    protection.check(model)
    del model[2].forward
    parametrizations.weight_norm(model[2])
    protection.check(model)
    assert torch.allclose(model(x), want, atol=1e-5)
    with pytest.raises(PlanMismatchError, match='ParametrizedConv2d'):
        detach(model)
    protection.check(model)  # all or nothing
    parametrize.remove_parametrizations(model[2], 'weight')
    protection.check(model)
    assert detach(model) == 4


def test_a_parametrized_layer_can_be_keyed_and_copied():
    model, x = layers(), pictures()
    parametrizations.weight_norm(model[2])
    sites = sites_in(model)
    attach(model, KEY, sites, entries_at(sites), salt=SALTS[0])
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), model(x)) and not torch.allclose(layers()(x), model(x), atol=1e-3)
    protections(twin)[0].check(twin)
    detach(model)
    assert torch.allclose(model(x), layers()(x), atol=1e-5)


def test_torchs_fused_transformer_layers_call_their_layers():
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 2, 64, batch_first=True), 1).eval()
    x = torch.rand(2, 5, 32)
    with torch.no_grad():
        from keyseg_mm import Trace, resolve

        sites = resolve(['in:layers.0.linear1'], model, Trace.of(model, {'test': lambda: model(x)}))
        plain = model(x)
        attach(model, KEY, sites, entries_at(sites), salt=SALTS[0])
        assert not torch.allclose(model(x), plain, atol=1e-3)
        assert encryptors(model)[0].calls == 1
        twin = copy.deepcopy(model)
        assert torch.equal(twin(x), model(x)) and encryptors(twin)[0].calls == 1
        detach(model)
        assert type(model.layers[0]) is nn.TransformerEncoderLayer and torch.equal(model(x), plain)


def test_gates_of_several_owners_work_one_after_the_other():
    model, x = layers(), pictures()
    seen = []

    class Note(Gate):
        __slots__ = ('name',)

        def __init__(self, name):
            self.name = name

        def enter(self, args, kwargs):
            seen.append(f'{self.name} in')
            return args, kwargs

        def leave(self, output):
            seen.append(f'{self.name} out')
            return output

    add_gates(model, [('2', Note('first'))])
    add_gates(model, [('2', Note('second')), ('.', Note('root'))])
    model(x)
    assert seen == ['root in', 'first in', 'second in', 'first out', 'second out', 'root out']
