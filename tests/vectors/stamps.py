"""Stamps of every scheme, and such that must be refused and why; ``make.py`` writes them to stamps.json."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

from keyseg_mm.entries import EmbeddingEntry, ImageEntry, MapEntry, TensorEntry
from keyseg_mm.envelope import SEALED, SIGNED, Seal, Wrapped
from keyseg_mm.stamp import Stamp

KEY_ID, SALT = 'ks16j7kv7aj7ggs6aoj', bytes(range(16))
_LINE = Wrapped(KEY_ID, 'key', bytes(range(92)))
_OTHER = Wrapped('kr1vrlolv6nb3ptfhaa', 'x25519', bytes(range(112)))
_MEMORY = ((_LINE,), 'ab' * 32)
_FILE = ((_LINE, _OTHER), 'cd' * 32)
_SEAL = Seal('state_dict', SEALED, 2**22, {'b': 'a'}, bytes(range(48)), bytes(32), bytes(range(32)))
_SIGNED_SEAL = Seal('optimizer', SIGNED, 2**16, {}, bytes(16), b'', bytes(range(32)))
_SIGNED, _ROTATION = {'type': 'SignedChannelPermutation'}, {'type': 'ChannelRotation', 'block': 16}
_NORM = ('rgb', (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
_MAPS = (
    MapEntry('in:backbone.conv1', 3, _SIGNED, ('backbone.conv1.weight',)),
    MapEntry('out:backbone:1', 128, _ROTATION, ('neck.0.weight', 'neck.1.weight')),
)
_TRAINED = (
    MapEntry('out:backbone:0', 64, {'type': 'BlockShuffle', 'block': 2}, forms=((2, 0), (1, None))),
    MapEntry('out:.', 8, _SIGNED, dim=-1, runs=('test',), forms=((0, 0),)),
)
_LAYERS = (
    MapEntry('in:up', 12, {**_SIGNED, 'groups': 3}, ('up.weight',), 0),
    MapEntry('in:attn', 16, _SIGNED, ('attn.in_proj_weight',), dim=-1),
    MapEntry('back:attn', 16, _SIGNED, ('attn.out_proj.weight', 'attn.out_proj.bias'), 0, -1),
)
_TENSORS = (
    TensorEntry(('a.weight', 'b.weight'), 4, {'type': 'TensorPermutation'}),
    TensorEntry(('c',), 2, {'type': 'SelectiveEncryption', 'share': 0.05}),
)
_EMBEDDINGS = (
    EmbeddingEntry('vit.proj.weight', 'vit.pos_embed', 1, 16, 'all', True, *_NORM),
    EmbeddingEntry('twin.proj.weight', '', 0, 16, 'all', True, *_NORM),
)
_IMAGES = (ImageEntry('SHF', 8), ImageEntry('FFX', 4, '00' * 16))

GOOD = {
    'a locked model': Stamp(KEY_ID, SALT, _MAPS, *_MEMORY),
    'layers of other kinds': Stamp(KEY_ID, SALT, _LAYERS, *_MEMORY),
    'a model trained with the key': Stamp(KEY_ID, SALT, _TRAINED),
    'encrypted parameters': Stamp(KEY_ID, SALT, _TENSORS, *_MEMORY),
    'a locked patch embedding': Stamp(KEY_ID, SALT, _EMBEDDINGS, *_MEMORY),
    'encrypted images': Stamp(KEY_ID, SALT, _IMAGES, *_MEMORY),
    'encrypted maps and images': Stamp(KEY_ID, SALT, (*_TRAINED, *_IMAGES), *_MEMORY),
    'without an envelope': Stamp(KEY_ID, SALT, _MAPS),
    'a sealed file': Stamp(KEY_ID, SALT, (), *_FILE, _SEAL),
    'a sealed file of a locked model': Stamp(KEY_ID, SALT, _MAPS, *_FILE, _SEAL),
    'a signed section': Stamp(KEY_ID, SALT, (), *_FILE, _SIGNED_SEAL),
    "a licensee's copy": Stamp(KEY_ID, SALT, _MAPS, *_FILE, _SEAL, 0.001),
}


def document(name: str) -> dict[str, Any]:
    """One of the good stamps, as JSON has it."""
    found: dict[str, Any] = json.loads(GOOD[name].to_json())
    return found


def _with(name: str, *path: Any, value: Any) -> str:
    """A good stamp with one value put in at some place."""
    changed = copy.deepcopy(document(name))
    where: Any = changed
    for step in path[:-1]:
        where = where[step]
    where[path[-1]] = value
    return json.dumps(changed, separators=(',', ':'))  # else it would be refused for its spaces


def _without(name: str, *path: Any) -> str:
    changed = document(name)
    where: Any = changed
    for step in path[:-1]:
        where = where[step]
    del where[path[-1]]
    return json.dumps(changed, separators=(',', ':'))  # else it would be refused for its spaces


def _mixed(*names: str) -> str:
    rows = [row for name in names for row in document(name)['entries']]
    return json.dumps({**document(names[0]), 'entries': rows}, separators=(',', ':'))


_LOCKED, _PARAMETERS, _EMBEDDED, _PICTURES = (
    'a locked model',
    'encrypted parameters',
    'a locked patch embedding',
    'encrypted images',
)
_SEALED_MODEL = 'a sealed file of a locked model'
_ENTRY = ('entries', 0)
_WRONG_VALUES: list[tuple[str, tuple[Any, ...], list[Any]]] = [
    (_LOCKED, ('format',), ['keyseg_mm patch stamp', 3, None]),
    (_LOCKED, ('version',), [2, 0, True, 1.0, '1', [1], None]),
    (_LOCKED, ('key_id',), ['', 'KS1', 'a' * 65, 'a b', 'a\n', 3, None]),
    (_LOCKED, ('salt',), ['', '00', 'x' * 32, '00' * 17, ' ' + '00' * 16, 'AB' * 16, 3, None]),
    (_LOCKED, ('commitment',), ['z' * 64, 'ab', 'AB' * 32, 'ab' * 33, 3, None, '']),
    (_LOCKED, ('recipients',), [[], {}, None, 'x', [3], [[]], [{}]]),
    (_LOCKED, ('recipients', 0, 'id'), ['', 'KS1', 'ks1x', 'a' * 65, 3, None]),
    (_LOCKED, ('recipients', 0, 'kind'), ['', 'rsa', 3, None]),
    (_LOCKED, ('recipients', 0, 'data'), ['', 'x', 'AAA', 'AA=A', 'AB==', 'A' * 4000, 3, None]),
    (_SEALED_MODEL, ('fingerprint',), [0, 1, 0.0, 1.0, -0.1, '0.1', True, [], None]),
    (_SEALED_MODEL, ('seal',), [{}, [], 'x', 3, None]),
    (_SEALED_MODEL, ('seal', 'section'), ['', 'a b', 'a' * 129, 3, None]),
    (_SEALED_MODEL, ('seal', 'mode'), ['', 'none', 3, None]),
    (_SEALED_MODEL, ('seal', 'chunk'), [0, 2**15, 2**31, 3 * 2**20, 4.0, True, None]),
    (_SEALED_MODEL, ('seal', 'shared'), [{'a': 'b'}, {'a': 'a'}, {'b': 3}, [], None]),
    (_SEALED_MODEL, ('seal', 'tags'), ['x', 'AAAA', 3, None]),
    (_SEALED_MODEL, ('seal', 'meta'), ['AAAA', 3, None]),
    (_SEALED_MODEL, ('seal', 'tag'), ['', 'AAAA', 3, None]),
    (_LOCKED, ('entries',), [[], {}, None, 'x', [3], [[]], [{}], ['features']]),
    (_LOCKED, (*_ENTRY, 'scheme'), ['sealed', 'images', [], None]),
    (
        _LOCKED,
        (*_ENTRY, 'point'),
        ['linear', 'in:', 'up:x', 'in:x:1', 'out:x:-1', '', 'in:a\x1b[31m', 'in:' + 'a' * 512],
    ),
    (_LOCKED, (*_ENTRY, 'channels'), [-1, 0, 2**20 + 1, 10**300, 3.0, True, '3', None, [3]]),
    (_LOCKED, (*_ENTRY, 'transform'), [{}, 'ChannelPermutation', None, [], {'type': ''}, {'type': 3}]),
    (_LOCKED, (*_ENTRY, 'transform', 'block'), [[16], {'x': 1}, None, 10**300, 'x' * 513]),
    (_LOCKED, (*_ENTRY, 'along'), [1, 2, -1, 0.0, False, '0', None]),
    (_LOCKED, (*_ENTRY, 'dim'), [0, 1, 9, -9, 2.0, True, '2', None]),
    (_LOCKED, (*_ENTRY, 'runs'), ['test', [], ['test', 'train'], ['test', 'test'], [''], [3], None]),
    (_LOCKED, (*_ENTRY, 'forms'), [[], [[0]], [[0, 0, 0]], [[-1, 0]], [[0, 1025]], [['0', 0]], [0], 'x', None]),
    (_LOCKED, (*_ENTRY, 'weights'), ['x', [''], [3], None, ['a', 'a'], ['a' * 513], ['\ud800']]),
    (_PARAMETERS, (*_ENTRY, 'names'), [[], 'ab', [3], ['a', 'a'], ['a' * 513], ['c'], None]),
    (_PARAMETERS, (*_ENTRY, 'count'), [1, 0, -4, 4.0, True, 2**36 + 1, None]),
    (_EMBEDDED, (*_ENTRY, 'weight'), ['', 3, 'twin.proj.weight', None]),
    (_EMBEDDED, (*_ENTRY, 'offset'), [3, None, 'a' * 513]),
    (_EMBEDDED, (*_ENTRY, 'skip'), [-1, 3, True, '1']),
    (_EMBEDDED, (*_ENTRY, 'patch'), [1, 257, 10**9, 16.0, 8]),
    (_EMBEDDED, (*_ENTRY, 'permute'), ['x', 'none', None]),
    (_EMBEDDED, (*_ENTRY, 'negate'), [1, 0, None, False]),
    (_EMBEDDED, (*_ENTRY, 'order'), ['gbr', None]),
    (_EMBEDDED, (*_ENTRY, 'mean'), [[1, 2], [1, 2, 3, 4], None, 3, 'abc', [1, 2, True], [1, 2, '3'], [1, 2, 10**400]]),
    (_EMBEDDED, (*_ENTRY, 'std'), [[0, 1, 1], [-1, 1, 1]]),
    (_PICTURES, (*_ENTRY, 'method'), ['AES', 'PATCH', 3, None]),
    (_PICTURES, (*_ENTRY, 'block'), [0, 65, 8.0, True]),
    (_PICTURES, (*_ENTRY, 'salt'), ['00', 'x' * 32, 3, None, False]),
]
_FIELDS = {
    _LOCKED: ('format', 'version', 'key_id', 'salt', 'entries', 'recipients', 'commitment'),
    f'{_LOCKED} 0': ('scheme', 'point', 'channels', 'transform'),
    f'{_PARAMETERS} 0': ('scheme', 'names', 'count', 'transform'),
    f'{_EMBEDDED} 0': ('scheme', 'weight', 'offset', 'skip', 'patch', 'permute', 'negate', 'order', 'mean', 'std'),
    f'{_PICTURES} 0': ('scheme', 'method', 'block'),
}


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 50 else f'{text[:20]} ... of {len(text)} characters'


def _bad() -> list[tuple[str, str]]:
    found = [
        (f'{path[-1]} is {_shown(value)}', _with(name, *path, value=value))
        for name, path, values in _WRONG_VALUES
        for value in values
    ]
    for name, fields in _FIELDS.items():
        where = _ENTRY if name.endswith(' 0') else ()
        found += [(f'no {field} in {name}', _without(name.removesuffix(' 0'), *where, field)) for field in fields]
        found.append((f'an unknown field in {name}', _with(name.removesuffix(' 0'), *where, 'more', value=1)))
    good = GOOD[_LOCKED].to_json()
    found += [
        ('no JSON', 'stamp'),
        ('nothing', ''),
        ('a list', '[]'),
        ('cut short', good[:-1]),
        ('something behind it', good + ' {}'),
        ('NaN', good.replace('"block":16', '"block":NaN')),
        ('Infinity', good.replace('"block":16', '"block":Infinity')),
        ('a number that is infinite', good.replace('"block":16', '"block":1e999')),
        ('a mean that is NaN', GOOD[_EMBEDDED].to_json().replace('123.675', 'NaN')),
        ('a mean that is infinite', GOOD[_EMBEDDED].to_json().replace('123.675', '1e999')),
        ('the same point twice', _mixed(_LOCKED, _LOCKED)),
        ('the same point, written otherwise', good.replace('in:backbone.conv1', 'out:backbone:01')),
        ('the same tensor twice', _mixed(_PARAMETERS, _PARAMETERS)),
        ('the same embedding twice', _mixed(_EMBEDDED, _EMBEDDED)),
        ('maps and parameters', _mixed(_LOCKED, _PARAMETERS)),
        ('maps and embeddings', _mixed(_LOCKED, _EMBEDDED)),
        ('parameters and images', _mixed(_PARAMETERS, _PICTURES)),
        ('embeddings and images', _mixed(_EMBEDDED, _PICTURES)),
        ('a field of another scheme', _with(_LOCKED, *_ENTRY, 'patch', value=16)),
        ('nine parameters of a transform', _with(_LOCKED, *_ENTRY, 'transform', value=dict.fromkeys('abcdefghi', 1))),
    ]
    return found


#: Reason and text.
BAD = _bad()


def _entries(count: int) -> bytes:
    rows = ','.join(f'{{"scheme":"images","method":"SHF","block":{1 + i % 64}}}' for i in range(count))
    return GOOD[_PICTURES].to_json().partition('"entries":')[0].encode() + f'"entries":[{rows}]}}'.encode()


#: By the reason: what makes stamps that are too large to be written down, or are no text.
LARGE: dict[str, Callable[[], bytes]] = {
    '20,001 entries': lambda: _entries(20_001),
    'a million entries': lambda: b'{"format":"keyseg_mm stamp","version":1,"entries":[' + b'{},' * 10**6 + b'{}]}',
    'a million names': lambda: _with(_PARAMETERS, *_ENTRY, 'names', value=list(map(str, range(500_000)))).encode(),
    'an index of 5,000 digits': lambda: _with(_LOCKED, *_ENTRY, 'point', value='out:a:' + '9' * 5000).encode(),
    'a number of 5,000 digits': lambda: GOOD[_LOCKED].to_json().replace(':3,', ':' + '9' * 5000 + ',').encode(),
    'lists in lists': lambda: b'[' * 10**6,
    'a transform of lists in lists': lambda: (
        _with(_LOCKED, *_ENTRY, 'transform', 'block', value=0)
        .encode()
        .replace(b'"block":0', b'"block":' + b'[' * 10**5 + b']' * 10**5)
    ),
    'larger than 4 MiB': lambda: GOOD[_LOCKED].to_bytes() + b' ' * 4 * 2**20,
    'no UTF-8': lambda: GOOD[_LOCKED].to_bytes().replace(b'conv1', b'conv\xff'),
    'a surrogate in UTF-8': lambda: GOOD[_LOCKED].to_bytes().replace(b'conv1', b'conv\xed\xa0\x80'),
    'UTF-16': lambda: GOOD[_LOCKED].to_json().encode('utf-16'),
    'zeros': lambda: bytes(4 * 2**20),
}
