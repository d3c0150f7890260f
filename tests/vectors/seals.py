"""Sealed sections, and such that must be refused and why; ``make.py`` writes them to seal.json."""

from __future__ import annotations

import base64
import copy
import hashlib
from collections.abc import Callable
from typing import Any

import torch

from keyseg_mm.envelope import write_seal
from keyseg_mm.keys.key import SecretKey
from keyseg_mm.seal.tensors import seal_tensors
from tests.support.seals import CHUNK, rows_of

_CONTENTS = (bytes(range(32)), b'\xff' * 32)
_META = {'epoch': 3, 'classes': ['road', 'sky'], 'scale': 0.5, 'seed': None, 'nested': {'ä': [True]}}
_PART = 'neck.keyseg_stamp_part'


def _ramp(size: int, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    data = bytes(n * 7 % 256 for n in range(size))
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(dtype).view(shape)


def _weights() -> dict[str, Any]:
    shared = _ramp(24, torch.float32, 3, 2)
    return {
        'neck.weight': _ramp(40, torch.float16, 4, 5),
        'backbone.weight': _ramp(40, torch.bfloat16, 4, 5),
        'backbone.count': torch.tensor(7),
        'head.embed': shared,
        'backbone.embed': shared,
        'head.none': torch.empty(0, 3),
        'head.mask': torch.tensor([True, False, True]),
        'Ünïcode "quoted"': _ramp(16, torch.complex64, 2),
        _PART: torch.frombuffer(bytearray(b'{"a part": 1}'), dtype=torch.uint8),
    }


def _case(which: int, section: str, head: bytes, mode: str, meta: Any, weights: dict[str, Any]) -> dict[str, Any]:
    sealed, seal = seal_tensors(weights, SecretKey(_CONTENTS[which]), section, head, meta, mode, chunk=CHUNK)
    return {
        'content': _CONTENTS[which].hex(),
        'head': head.hex(),
        'meta': meta,
        'public': [[row['name'], row['stored']] for row in rows_of(sealed) if row['name'] == _PART],
        'tensors': [row for row in rows_of(sealed) if row['name'] != _PART],
        'plain': {row['name']: shown(bytes.fromhex(row['stored'])) for row in rows_of(weights) if row['name'] != _PART},
        'seal': write_seal(seal),
    }


def shown(plain: bytes) -> str:
    """Bytes in hex, and many bytes as their SHA-256."""
    return plain.hex() if len(plain) <= 1024 else f'sha256:{hashlib.sha256(plain).hexdigest()}'


def good() -> dict[str, dict[str, Any]]:
    """Sealed sections, each with its plain bytes."""
    long = {'long': _ramp(CHUNK + 6, torch.int16, CHUNK // 2 + 3)}  # two chunks, the last one short
    return {
        'sealed': _case(0, 'state_dict', b'{"a stamp": 1}', 'sealed', _META, _weights()),
        'signed': _case(0, 'state_dict', b'{"a stamp": 1}', 'signed', _META, _weights()),
        'another key and section, no meta': _case(1, 'optimizer', b'', 'sealed', {}, _weights()),
        'nothing in it': _case(0, 'state_dict', b'{"a stamp": 1}', 'sealed', {}, {}),
        'chunks': _case(0, 'state_dict', b'{"a stamp": 1}', 'sealed', {}, long),
    }


def bad(cases: dict[str, dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Good sections with one thing altered, and what that is."""
    found = []
    for of in ('sealed', 'signed'):
        for why, change in _CHANGES.items():
            case = copy.deepcopy(cases[of])
            del case['plain']
            change(case)
            found.append((f'{of}: {why}', case))
    return found


def _row(case: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(row for row in case['tensors'] if row['name'] == name)
    return found


def _flip(text: str) -> str:
    return f'{int(text[:2], 16) ^ 1:02x}{text[2:]}'


def _swap(case: dict[str, Any]) -> None:
    one, other = _row(case, 'neck.weight'), _row(case, 'backbone.weight')
    one['stored'], other['stored'] = other['stored'], one['stored']
    one['dtype'], other['dtype'] = other['dtype'], one['dtype']


def _seal_bytes(name: str) -> Callable[[dict[str, Any]], None]:
    def change(case: dict[str, Any]) -> None:
        value = base64.b64decode(case['seal'][name])
        case['seal'][name] = base64.b64encode(bytes([value[0] ^ 128]) + value[1:]).decode()

    return change


def _tags_swapped(case: dict[str, Any]) -> None:
    value = base64.b64decode(case['seal']['tags'])
    case['seal']['tags'] = base64.b64encode(value[16:32] + value[:16] + value[32:]).decode()


_CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    'a bit of a tensor': lambda c: _row(c, 'neck.weight').update(stored=_flip(_row(c, 'neck.weight')['stored'])),
    'a bit of a shared tensor': lambda c: _row(c, 'head.embed').update(stored=_flip(_row(c, 'head.embed')['stored'])),
    'a name': lambda c: _row(c, 'neck.weight').update(name='neck.height'),
    'a dtype': lambda c: _row(c, 'neck.weight').update(dtype='bfloat16'),
    'a shape': lambda c: _row(c, 'neck.weight').update(shape=[5, 4]),
    'the shape of an empty tensor': lambda c: _row(c, 'head.none').update(shape=[3, 0]),
    'two tensors swapped': _swap,
    'a tensor less': lambda c: c['tensors'].remove(_row(c, 'backbone.count')),
    'a shared tensor less': lambda c: c['tensors'].remove(_row(c, 'head.embed')),
    'an empty tensor less': lambda c: c['tensors'].remove(_row(c, 'head.none')),
    'a tensor more': lambda c: c['tensors'].append({'name': 'x', 'dtype': 'uint8', 'shape': [1], 'stored': '00'}),
    'an empty tensor more': lambda c: c['tensors'].append({'name': 'x', 'dtype': 'int8', 'shape': [0], 'stored': ''}),
    'a value cut off': lambda c: _row(c, 'head.mask').update(shape=[2], stored=_row(c, 'head.mask')['stored'][:4]),
    'the content key': lambda c: c.update(content=_flip(c['content'])),
    'the head': lambda c: c.update(head=_flip(c['head'])),
    'no head': lambda c: c.update(head=''),
    'a value of meta': lambda c: c['meta'].update(epoch=4),
    'an integer of meta as a float': lambda c: c['meta'].update(epoch=3.0),
    'a value of meta more': lambda c: c['meta'].update(more=None),
    'the stamp of a part': lambda c: c['public'][0].__setitem__(1, _flip(c['public'][0][1])),
    'the stamp of a part less': lambda c: c['public'].clear(),
    'the section': lambda c: c['seal'].update(section='ema_state_dict'),
    'the chunk': lambda c: c['seal'].update(chunk=2 * CHUNK),
    'nothing shared': lambda c: c['seal'].update(shared={}),
    'the mode': lambda c: c['seal'].update(mode='signed' if c['seal']['mode'] == 'sealed' else 'sealed'),
    'a bit of the tags': _seal_bytes('tags'),
    'a bit of the MAC of meta': _seal_bytes('meta'),
    'a bit of the tag': _seal_bytes('tag'),
    'two tags swapped': _tags_swapped,
    'no MAC of meta': lambda c: c['seal'].update(meta=''),
}
