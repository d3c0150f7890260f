"""The MAC of a checkpoint: its format, by an independent computation, and what it notices."""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import replace

import pytest
import torch

from keyseg_mm import SecretKey, Stamp
from keyseg_mm.bind import sign, stamp_tensor, verify
from keyseg_mm.errors import IntegrityError
from keyseg_mm.keys.derive import hkdf
from keyseg_mm.stamp import MapEntry, stamp_of_value

SALT = bytes(range(16))
PLAN = Stamp('ks1x', SALT, (MapEntry('in:a', 4, {'type': 'ChannelPermutation'}, ('a.weight',)),))
# of docs/formats.md for the key 00 01 .. 1f; it must never change
VECTOR = '23782c4a9ef7c1244757f3158f906ea86cc99c0977c772ea1ff495c0c9645ccf'


def tensors():
    return {
        'b.bias': torch.tensor([1.5, -2.0]),
        'a.weight': torch.arange(8, dtype=torch.float16).reshape(2, 4),
        'count': torch.tensor(7),
        'none': torch.empty(0, 3),
    }


def by_the_book(key, plan, tensors):
    """The format's text, with Python's own hashlib and hmac."""
    rows = []
    for name in sorted(tensors):
        raw = tensors[name].contiguous().numpy().tobytes()
        rows.append([name, str(tensors[name].dtype), list(tensors[name].shape), hashlib.sha256(raw).hexdigest()])
    text = json.dumps([replace(plan, mac='').to_json(), rows], separators=(',', ':'))
    mac_key = hkdf(bytes(range(32)), 'keyseg_mm/mac/v1', [], SALT)
    return hmac.new(mac_key, text.encode(), 'sha256').hexdigest()


def test_format(key):
    mac = sign(key, PLAN, tensors()).mac
    assert mac == by_the_book(key, PLAN, tensors())
    assert mac == VECTOR


def test_what_does_not_count(key):
    """Order, memory layout, stamps, and what is no tensor."""
    plan = sign(key, PLAN, tensors())
    other = dict(reversed(tensors().items()), keyseg_stamp_x=torch.ones(1), extra='words')
    other['a.weight'] = other['a.weight'].t().contiguous().t()
    verify(key, plan, other)


CHANGES = {
    'a bit': lambda t: t['b.bias'].view(torch.int32).__setitem__(0, t['b.bias'].view(torch.int32)[0] ^ 1),
    'the sign of a zero': lambda t: t['a.weight'].__setitem__((0, 0), -0.0),
    'a name': lambda t: t.__setitem__('c.bias', t.pop('b.bias')),
    'a shape': lambda t: t.__setitem__('a.weight', t['a.weight'].reshape(4, 2)),
    'a dtype': lambda t: t.__setitem__('b.bias', t['b.bias'].view(torch.int32)),
    'one less': lambda t: t.pop('none'),
    'one more': lambda t: t.__setitem__('more', torch.empty(0)),
}


@pytest.mark.parametrize('change', CHANGES)
def test_every_change_of_the_weights_is_noticed(change, key):
    plan, found = sign(key, PLAN, tensors()), tensors()
    verify(key, plan, found)
    CHANGES[change](found)
    with pytest.raises(IntegrityError, match='altered'):
        verify(key, plan, found)


@pytest.mark.parametrize(
    'change',
    [
        dict(salt=bytes(16)),
        dict(key_id='ks1y'),
        dict(entries=(replace(PLAN.entries[0], weights=('b.weight',)),)),
        dict(entries=(replace(PLAN.entries[0], transform={'type': 'SignedChannelPermutation'}),)),
        dict(mac='00' * 32),
    ],
)
def test_every_change_of_the_stamp_is_noticed(change, key):
    plan = sign(key, PLAN, tensors())
    with pytest.raises(IntegrityError):
        verify(key, replace(plan, **change), tensors())
    with pytest.raises(IntegrityError):
        verify(SecretKey(bytes(32)), plan, tensors())
    assert stamp_of_value(stamp_tensor(plan)).mac == plan.mac
