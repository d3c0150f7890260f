"""A sealed section opens bit by bit to what it was, whatever kinds of tensors are in it, and to nothing else."""

from __future__ import annotations

import io

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from keyseg_mm.envelope import write_seal
from keyseg_mm.errors import IntegrityError, LockError
from tests.support.seals import CHUNK, CONTENT, bits, by_the_book, model, noise, raw, rows_of, sealed, unsealed

DTYPES = sorted({d for d in vars(torch).values() if isinstance(d, torch.dtype) and 'qint' not in str(d)}, key=str)
DTYPES = [d for d in DTYPES if not str(d).startswith('torch.quint')]
SIZE = 48
LAYOUTS = {
    'whole': lambda x: x,
    'matrix': lambda x: x.view(6, 8),
    'scalar': lambda x: x[5],
    'one': lambda x: x[7:8].view(1, 1, 1),
    'empty': lambda x: x[:0],
    'empty matrix': lambda x: x[:0].view(0, 3),
    'part': lambda x: x[3:29],
    'transposed': lambda x: x.view(6, 8).t(),
    'every other': lambda x: x[1::2],
    'expanded': lambda x: x[:4].view(4, 1).expand(4, 9),
    'channels last': lambda x: x.view(2, 2, 4, 3).permute(0, 3, 1, 2),
    'windows': lambda x: x.as_strided((10, 4), (2, 1)),
}


def of_dtype(dtype):
    return {name: layout(noise(SIZE * dtype.itemsize).view(dtype)) for name, layout in LAYOUTS.items()}


def logical(dtype):
    """The bytes that :func:`of_dtype` has in the order of indices, found by the indices themselves."""
    rows = noise(SIZE * dtype.itemsize).view(SIZE, dtype.itemsize)
    return {name: raw(rows[layout(torch.arange(SIZE)).reshape(-1)].clone()) for name, layout in LAYOUTS.items()}


@pytest.mark.parametrize('mode', ['sealed', 'signed'])
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_every_dtype_and_layout_comes_back(dtype, mode):
    plain, wanted = of_dtype(dtype), logical(dtype)
    section, seal = sealed(plain, mode)
    opened = unsealed(section, seal)
    assert list(section) == list(opened) == list(plain)
    for name, before in plain.items():
        assert section[name].dtype == opened[name].dtype == before.dtype
        assert section[name].shape == opened[name].shape == before.shape
        if mode == 'signed':
            assert section[name] is opened[name] is before
            continue
        assert section[name].is_contiguous()
        if len(wanted[name]) >= 8:
            assert raw(section[name]) != wanted[name]
        assert raw(opened[name]) == wanted[name]
    assert raw(plain['whole']) == raw(noise(SIZE * dtype.itemsize))


@pytest.mark.parametrize('dtype', [torch.complex64, torch.complex128], ids=str)
def test_conjugates_and_negatives_are_sealed_as_they_read(dtype):
    x = torch.randn(6, dtype=dtype, generator=torch.Generator().manual_seed(0))
    plain = {'conj': x.conj(), 'neg': x.conj().imag}
    assert plain['conj'].is_conj() and plain['neg'].is_neg()
    for mode in ('sealed', 'signed'):
        section, seal = sealed(plain, mode)
        opened = unsealed(section, seal)
        assert torch.equal(opened['conj'].resolve_conj(), torch.complex(x.real, -x.imag))
        assert torch.equal(opened['neg'].resolve_neg(), -x.imag)
    section, seal = sealed({'x': x})
    assert torch.equal(unsealed(section, seal)['x'], x)


@pytest.mark.parametrize('mode', ['sealed', 'signed'])
def test_a_section_of_everything(mode):
    plain, before = model(), bits(model())
    section, seal = sealed(plain, mode)
    assert list(section) == list(plain) and seal.shared == {'m.shared': 'a.shared'}
    assert len(seal.tags) == 16 * (3 + 4) and len(seal.meta) == 32
    assert bits(plain) == before
    for name in ('extra_state', 'keyseg_stamp_root', 'a.keyseg_stamp_part'):
        assert section[name] is plain[name]
    altered = {name for name, value in bits(section).items() if value != before[name]}
    weights = {name for name, t in plain.items() if 'stamp' not in name and isinstance(t, torch.Tensor) and t.numel()}
    assert altered == (weights if mode == 'sealed' else set())
    opened = unsealed(section, seal)
    assert bits(opened) == before and list(opened) == list(plain)
    assert opened['m.shared'] is opened['a.shared']


@pytest.mark.parametrize('mode', ['sealed', 'signed'])
def test_the_format_by_an_independent_reader(mode):
    plain = {name: value for name, value in model().items() if isinstance(value, torch.Tensor)}
    section, seal = sealed(plain, mode, meta={'b': [1, (2.5, None)], 'a': 'ä', 'gone': object()})
    weights = {name: value for name, value in section.items() if 'stamp' not in name}
    found = by_the_book(
        {
            'content': CONTENT.hex(),
            'head': b'head'.hex(),
            'meta': {'a': 'ä', 'b': [1, [2.5, None]]},
            'public': [['a.keyseg_stamp_part', b'part'.hex()], ['b.keyseg_stamp_part', b'other'.hex()]],
            'tensors': rows_of(weights),
            'seal': write_seal(seal),
        }
    )
    assert found == {name: raw(plain[name]) for name in weights if name != 'm.shared'}


def test_what_does_not_count():
    """The order of names, how tensors lie in memory, and values that are no tensors."""
    for mode in ('sealed', 'signed'):
        section, seal = sealed(model(), mode)
        other = {**dict(reversed(section.items())), 'extra_state': 'others', 'more': None}
        other['a.weight'] = section['a.weight'].t().contiguous().t()
        assert not other['a.weight'].is_contiguous()
        opened = unsealed(other, seal)
        assert bits(opened) == {**bits(model()), 'extra_state': 'others', 'more': None}
        assert list(opened) == list(other)


def test_a_pth_file_keeps_one_tensor_and_a_safetensors_file_has_copies():
    plain, buffer = model(), io.BytesIO()
    section, seal = sealed(plain)
    torch.save(section, buffer)
    buffer.seek(0)
    read = torch.load(buffer, weights_only=True)
    assert read['m.shared'].data_ptr() == read['a.shared'].data_ptr()
    assert bits(unsealed(read, seal)) == bits(plain)

    def written():
        return load(save({name: t.clone() for name, t in section.items() if isinstance(t, torch.Tensor)}))

    wanted = bits({name: t for name, t in plain.items() if isinstance(t, torch.Tensor)})
    for own in (False, True):
        opened = unsealed(written(), seal, own=own)
        assert bits(opened) == wanted and opened['m.shared'] is opened['a.shared']
    for name in ('m.shared', 'a.shared'):
        copies = written()
        copies[name].view(torch.int32)[0, 0] ^= 1
        with pytest.raises(IntegrityError):
            unsealed(copies, seal)


def test_views_that_overlap_are_sealed_each_by_itself():
    x = noise(64).clone()
    for own in (False, True):
        views = {'left': x[:40], 'right': x[20:60], 'square': x.view(8, 8), 'turned': x.view(8, 8).t(), 'all': x}
        section, seal = sealed(views, own=own)
        assert not seal.shared
        assert len({t.untyped_storage().data_ptr() for t in section.values()}) == 5
        opened = unsealed(section, seal)
        assert torch.equal(opened['left'], noise(64)[:40]) and torch.equal(opened['right'], noise(64)[20:60])
        assert torch.equal(opened['all'], noise(64)) and torch.equal(opened['turned'], noise(64).view(8, 8).t())
        assert torch.equal(x, noise(64))


def test_own_tensors_are_sealed_and_opened_where_they_lie():
    plain = model()
    where = {name: t.data_ptr() for name, t in plain.items() if isinstance(t, torch.Tensor) and t.numel()}
    section, seal = sealed(plain, own=True)
    assert {name: section[name].data_ptr() for name in where} == where
    assert raw(plain['a.weight']) != raw(model()['a.weight'])
    opened = unsealed(section, seal, own=True)
    assert {name: opened[name].data_ptr() for name in where} == where
    assert bits(opened) == bits(model())
    section, seal = sealed(opened, own=False)
    assert bits(opened) == bits(model())


def test_what_lies_beside_an_own_tensor_is_not_written_in_the_open():
    """torch.save writes the whole memory that a view lies in."""
    x = noise(4096).clone()
    buffer = io.BytesIO()
    section, seal = sealed({'x': x[100:200], 'y': noise(4096, 1)[1000:1100].view(10, 10)}, own=True)
    torch.save(section, buffer)
    assert torch.equal(x, noise(4096)) and len(buffer.getvalue()) < 4096
    written, plain = buffer.getvalue(), raw(x)
    assert not any(plain[at : at + 16] in written for at in range(0, len(plain) - 16))
    assert torch.equal(unsealed(section, seal)['x'], x[100:200])


def test_opened_into_the_memory_of_a_model():
    plain = model()
    into = {name: t.detach().clone().zero_() for name, t in plain.items() if isinstance(t, torch.Tensor)}
    into['a.weight'] = nn.Parameter(into['a.weight'])
    into['b.weight'] = into['b.weight'].double()
    into['a.count'] = into['a.count'].view(1)
    into['unknown'] = torch.zeros(3)
    section, seal = sealed(plain)
    for own in (False, True):
        version = into['a.weight']._version
        opened = unsealed(section, seal, into=into, own=own)
        assert bits(opened) == bits(plain)
        taken = {name for name, t in opened.items() if t is into.get(name)}
        assert taken == {'z.weight', 'a.weight', 'a.shared'}
        assert into['a.weight']._version > version and into['a.weight'].requires_grad
        assert opened['m.shared'] is into['a.shared']
        assert not into['b.weight'].any() and not into['unknown'].any()


@pytest.mark.parametrize('why', ['transposed', 'tied', 'overlapping', 'where it is read', 'meta', 'no tensor'])
def test_memory_that_cannot_be_opened_into_is_left_alone(why):
    x = torch.zeros(6, 4)
    long = torch.zeros(40)
    plain = {'a': noise(96).view(torch.float32).view(4, 6), 'b': noise(96, 1).view(torch.float32).view(4, 6)}
    section, seal = sealed(plain)
    into = {
        'transposed': {'a': x.t(), 'b': x.t()},
        'tied': {'a': x.view(4, 6), 'b': x.view(4, 6)},
        'overlapping': {'a': long[:24].view(4, 6), 'b': long[16:].view(4, 6)},
        'where it is read': {'a': section['b'], 'b': section['a']},
        'meta': {'a': torch.empty(4, 6, device='meta')},
        'no tensor': {'a': 'words'},
    }[why]
    opened = unsealed(section, seal, into=into)
    assert bits(opened) == bits(plain) and not x.any() and not long.any()
    assert all(opened[name] is not into[name] for name in into)


def failing(large):
    """A section with an altered chunk near its end."""
    plain = {'a': noise(96).view(torch.float32), 'z': noise(large, 1).view(torch.int64)}
    section, seal = sealed(plain)
    section['z'][-1] ^= 1
    return plain, section, seal


@pytest.mark.parametrize('size', [CHUNK, 5 * 2**22], ids=['one thread', 'several threads'])
def test_nothing_is_left_of_what_fails(size):
    plain, section, seal = failing(size)
    into = {name: torch.ones_like(t) for name, t in plain.items()}
    with pytest.raises(IntegrityError, match='z in state_dict was altered'):
        unsealed(section, seal, into=into)
    assert not any(t.any() for t in into.values()) and section['a'].any()
    with pytest.raises(IntegrityError):
        unsealed(section, seal, own=True)
    assert not any(t.any() for t in section.values())


def test_what_does_not_fit_its_list_changes_no_memory():
    section, seal = sealed(model())
    into = {'a.weight': torch.ones(4, 6)}
    with pytest.raises(IntegrityError, match='do not fit together'):
        unsealed(section, seal, into=into, head=b'other')
    assert into['a.weight'].all()


class Special(torch.Tensor):
    pass


REFUSED = {
    'meta': lambda: torch.empty(3, device='meta'),
    'sparse': lambda: torch.eye(3).to_sparse(),
    'compressed': lambda: torch.eye(3).to_sparse_csr(),
    'quantised': lambda: torch.quantize_per_tensor(torch.randn(3), 0.1, 0, torch.qint8),
    'nested': lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    'mkldnn': lambda: torch.ones(3).to_mkldnn(),
    'subclass': lambda: torch.ones(3).as_subclass(Special),
    'uninitialised': lambda: nn.UninitializedParameter(),
}


@pytest.mark.parametrize('kind', REFUSED)
def test_tensors_without_bytes_of_their_own_are_refused_by_name(kind):
    odd = {'in.order': torch.ones(2), f'the.{kind}': REFUSED[kind](), 'also.bad': torch.empty(3, device='meta')}
    for mode in ('sealed', 'signed'):
        with pytest.raises(LockError, match=f'the.{kind} .*also.bad|also.bad .*the.{kind}'):
            sealed(odd, mode, own=True)
    section, seal = sealed({name: torch.ones(2) for name in odd})
    with pytest.raises(LockError, match=f'the.{kind}'):
        unsealed({**section, f'the.{kind}': odd[f'the.{kind}']}, seal)
    assert odd['in.order'].all()
    with pytest.raises(LockError, match='3 \\(no name\\)'):
        sealed({3: torch.ones(2)})


def test_nothing_secret_shows():
    section, seal = sealed(model())
    with pytest.raises(IntegrityError) as caught:
        unsealed({**section, 'a.weight': section['b.weight']}, seal)
    shown = f'{seal!r} {caught.value!r} {caught.value.__cause__!r}'
    assert CONTENT.hex() not in shown and repr(CONTENT) not in shown
    assert '\\x' not in repr(seal)
