"""Whatever is altered, cut or exchanged in a sealed section or around it is noticed, and none of it is opened."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from keyseg_mm.errors import IntegrityError, LockError, StampError
from keyseg_mm.keys.key import SecretKey
from tests.support.seals import CHUNK, bits, model, noise, raw, sealed, stamp, unsealed


def renamed(section, *names):
    """Names by turns: the value of the first goes to the second, and so on."""
    moved = {name: section[before] for before, name in zip(names, [*names[1:], names[0]])}
    return {name: moved.get(name, value) for name, value in section.items()}


def without(section, name):
    return {n: t for n, t in section.items() if n != name}


def chunks_swapped(section):
    x = section['z.weight'].detach().clone()
    x[: CHUNK // 2], x[CHUNK // 2 : CHUNK] = section['z.weight'][CHUNK // 2 : CHUNK], section['z.weight'][: CHUNK // 2]
    return {**section, 'z.weight': x}


CHANGES = {
    'two tensors of a shape swapped': lambda s: renamed(s, 'a.weight', 'b.weight'),
    'three names moved': lambda s: renamed(s, 'a.weight', 'b.weight', 'z.weight'),
    'a tensor twice': lambda s: {**s, 'b.weight': s['a.weight']},
    'another name': lambda s: {**without(s, 'a.weight'), 'a.height': s['a.weight']},
    'a name that looks like a stamp': lambda s: {
        **without(s, 'a.weight'),
        'a.keyseg_stamp_x': bytes_of(s['a.weight']),
    },
    'one less': lambda s: without(s, 'a.weight'),
    'an empty one less': lambda s: without(s, 'a.none'),
    'a shared one less': lambda s: without(s, 'm.shared'),
    'the first shared one less': lambda s: without(s, 'a.shared'),
    'one more': lambda s: {**s, 'more': torch.zeros(3)},
    'an empty one more': lambda s: {**s, 'more': torch.empty(0)},
    'another shape': lambda s: {**s, 'a.weight': s['a.weight'].view(6, 4)},
    'another shape of an empty one': lambda s: {**s, 'a.none': torch.empty(3, 0)},
    'another dtype': lambda s: {**s, 'a.weight': s['a.weight'].view(torch.int32)},
    'another shared dtype': lambda s: {**s, 'm.shared': s['m.shared'].view(torch.int32)},
    'another shared shape': lambda s: {**s, 'm.shared': s['m.shared'].view(2, 8)},
    'cut': lambda s: {**s, 'z.weight': s['z.weight'][:CHUNK]},
    'longer': lambda s: {**s, 'z.weight': torch.cat([s['z.weight'], s['z.weight'][:20]])},
    'chunks swapped': chunks_swapped,
    'a part stamp altered': lambda s: {**s, 'a.keyseg_stamp_part': stamp(b'pant')},
    'two part stamps swapped': lambda s: renamed(s, 'a.keyseg_stamp_part', 'b.keyseg_stamp_part'),
    'a part stamp less': lambda s: without(s, 'a.keyseg_stamp_part'),
    'a part stamp more': lambda s: {**s, 'c.keyseg_stamp_part': stamp(b'part')},
    'a second root stamp': lambda s: {**s, 'keyseg_stamp_more': stamp(b'root')},
    'a part stamp that is none': lambda s: {**s, 'a.keyseg_stamp_part': 'part'},
    'no bytes': lambda s: {**s, 'a.weight': s['a.weight'].to('meta')},
    'no tensor': lambda s: {**s, 'a.weight': s['a.weight'].tolist()},
}


def bytes_of(tensor):
    return tensor.detach().view(-1).view(torch.uint8)


@pytest.mark.parametrize('mode', ['sealed', 'signed'])
@pytest.mark.parametrize('change', CHANGES)
def test_every_change_of_a_section_is_noticed(change, mode):
    section, seal = sealed(model(), mode)
    unsealed(section, seal)
    with pytest.raises((IntegrityError, LockError, StampError)):
        unsealed(CHANGES[change](section), seal)
    assert bits(unsealed(section, seal)) == bits(model())


@pytest.mark.parametrize('mode', ['sealed', 'signed'])
def test_a_section_opens_only_as_itself(mode):
    """With its own key, stamp and name, and nothing of another file or section."""
    section, seal = sealed(model(), mode)
    other, other_seal = sealed(model(), mode, content=SecretKey(bytes(32)))
    for changed in (
        {'content': SecretKey(bytes(32))},
        {'head': b'heat'},
        {'head': b''},
        {'meta': {'epoch': 4}},
        {'meta': {'epoch': 3, 'more': None}},
        {'seal': other_seal},
        {'seal': replace(seal, section='ema_state_dict')},
        {'seal': replace(seal, mode='signed' if mode == 'sealed' else 'sealed')},
        {'seal': replace(seal, chunk=2 * CHUNK)},
        {'seal': replace(seal, shared={})},
        {'seal': replace(seal, shared={**seal.shared, 'b.weight': 'a.weight'})},
        {'seal': replace(seal, tags=seal.tags[:-16])},
        {'seal': replace(seal, tags=seal.tags + bytes(16))},
        {'seal': replace(seal, tags=seal.tags[16:] + seal.tags[:16])},
        {'seal': replace(seal, meta=b'')},
        {
            'seal': replace(
                seal,
                meta=b'',
            ),
            'meta': None,
        },
    ):
        with pytest.raises(IntegrityError):
            unsealed(section, **{'seal': seal, **changed})
    if mode == 'sealed':
        with pytest.raises(IntegrityError):
            unsealed({**section, 'a.weight': other['a.weight']}, seal)
    for dropped in (None, {}, {'gone': object()}):
        assert bits(unsealed(section, seal, meta=dropped)) == bits(model())


def test_a_file_without_meta_takes_none():
    section, seal = sealed(model(), meta=None)
    assert seal.meta == b'' and sealed(model(), meta={'x': object()})[1].meta == b''
    unsealed(section, seal, meta=None)
    with pytest.raises(IntegrityError, match='meta'):
        unsealed(section, seal, meta={'epoch': 3})


def small(seed=0):
    """A section that opens quickly, so that it can be altered often."""
    shared = noise(24, seed).view(torch.int32)
    return {
        'a': noise(200, seed + 1).view(torch.float32).view(5, 10),
        'b': noise(200, seed + 2).view(torch.float32).view(5, 10),
        'c': noise(66, seed + 3).view(torch.float16),
        'd': shared,
        'e': shared.clone(),
        'n': torch.tensor(7),
        'z': noise(CHUNK + 100, seed + 4),
    }


@pytest.mark.parametrize('mode', ['sealed', 'signed'])
def test_every_altered_bit_of_a_tensor_is_noticed(mode):
    plain = small()
    plain['f'] = plain['d']
    section, seal = sealed(plain, mode)
    section['f'] = section['d'].clone()
    flat = {name: t.view(-1).view(torch.uint8) for name, t in section.items()}
    every = [(name, at) for name, t in flat.items() if name != 'z' for at in range(8 * len(t))]
    drawn = torch.randint(0, 8 * len(flat['z']), (10_000 - len(every),), generator=torch.Generator().manual_seed(0))
    cases = [*every, *(('z', at) for at in drawn.tolist())]
    assert len(cases) == 10_000
    for name, at in cases:
        flat[name][at // 8] ^= 1 << at % 8
        with pytest.raises(IntegrityError):
            unsealed(section, seal)
        flat[name][at // 8] ^= 1 << at % 8
    assert bits(unsealed(section, seal)) == bits(plain)


@pytest.mark.parametrize('mode', ['sealed', 'signed'])
def test_every_altered_bit_of_a_seal_is_noticed(mode):
    section, seal = sealed(small(), mode)
    for field in ('tags', 'meta', 'tag'):
        value = getattr(seal, field)
        for at in range(8 * len(value)):
            altered = bytearray(value)
            altered[at // 8] ^= 1 << at % 8
            with pytest.raises(IntegrityError):
                unsealed(section, replace(seal, **{field: bytes(altered)}))
    unsealed(section, seal)


def test_two_seals_of_the_same_weights_have_nothing_in_common():
    zeros = {'a': torch.zeros(2 * CHUNK, dtype=torch.uint8), 'b': torch.zeros(2 * CHUNK, dtype=torch.uint8)}
    files = [
        sealed(zeros, content=SecretKey(bytes([n]) * 32), section=section) for n in (1, 2) for section in ('x', 'y')
    ]
    blocks = [
        [raw(t)[at : at + 16] for t in section.values() for at in range(0, t.numel(), 16)] for section, _ in files
    ]
    blocks += [[seal.tags[at : at + 16] for at in range(0, len(seal.tags), 16)] for _, seal in files]
    every = list(itertools.chain(*blocks))
    assert len(set(every)) == len(every)
