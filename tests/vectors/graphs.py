"""Sealed and keyed graphs, and such that must be refused and why; ``make.py`` writes them to graphs.json."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import torch

from keyseg_mm.deploy.container import FORMAT, ONNX, digest, with_tables
from keyseg_mm.deploy.exporting import seal_graph, seal_tables
from keyseg_mm.envelope import SIGNED
from keyseg_mm.keys.key import SecretKey
from keyseg_mm.seal.sections import Sealing

_KEY = SecretKey(bytes(range(32)))
_META = {FORMAT: ONNX, 'size': [64, 96], 'image': 'float32 (1, 3, H, W), normalised', 'logits': 'float32 (1, C, H, W)'}
_GRAPH = b'\x08\x0a\x12\x05torch'  # ir_version and producer_name of a ModelProto
_TABLES = {
    'out:a/permutation': torch.tensor([2, 0, 3, 1]),
    'in:b/signs': torch.tensor([1.0, -1.0, -1.0]),
    'in:b/rotation': torch.tensor([[[0.6, -0.8], [0.8, 0.6]]]),
}


def _keyed(graph: bytes = _GRAPH, **changes: Any) -> bytes:
    meta = {**_META, 'tables': list(_TABLES), 'sha256': digest(_GRAPH), **changes}
    return with_tables(graph, seal_tables(_TABLES, Sealing(_KEY), meta))


def good() -> dict[str, dict[str, Any]]:
    """Files, each with what is in it."""
    sealed = seal_graph(_GRAPH, Sealing(_KEY), {**_META, 'classes': ['road', 'sky']})
    tables = {name: table.flatten().tolist() for name, table in _TABLES.items()}
    common = {'key': _KEY.material.hex()}
    return {
        'sealed': {**common, 'file': sealed.hex(), 'graph': _GRAPH.hex(), 'tables': {}},
        'keyed': {**common, 'file': _keyed().hex(), 'graph': '', 'tables': tables},
    }


def bad(cases: dict[str, dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Good files with one thing altered, and what that is; and such that were never right."""
    found = [(f'{of}: {why}', change(bytes.fromhex(cases[of]['file']))) for of, why, change in _CHANGES]
    found += [
        ('signed, not sealed', seal_graph(_GRAPH, Sealing(_KEY, mode=SIGNED), _META)),
        ('no format', seal_graph(_GRAPH, Sealing(_KEY), {'size': None})),
        ('another format', seal_graph(_GRAPH, Sealing(_KEY), {FORMAT: 'caffe'})),
        ('a sealed checkpoint', seal_tables(_TABLES, Sealing(_KEY), _META)),
        ('a graph without tables', _GRAPH),
        ('another graph', _keyed(_GRAPH.replace(b'torch', b'Torch'))),
        ('a table that is not there', _keyed(tables=['in:c/signs'])),
        ('no list of tables', _keyed(tables=None)),
    ]
    return [(why, {'key': _KEY.material.hex(), 'file': content.hex()}) for why, content in found]


def _header(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    def changed(content: bytes) -> bytes:
        stop = 8 + int.from_bytes(content[:8], 'little')
        rows = json.loads(content[8:stop])
        change(rows)
        text = json.dumps(rows).encode()
        return len(text).to_bytes(8, 'little') + text + content[stop:]

    return changed


def _meta(**values: Any) -> Callable[[bytes], bytes]:
    def change(rows: dict[str, Any]) -> None:
        said = rows['__metadata__']
        said['keyseg_mm meta'] = json.dumps({**json.loads(said['keyseg_mm meta']), **values})

    return _header(change)


def _flipped(place: int) -> Callable[[bytes], bytes]:
    return lambda content: content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def _flipped_in_tables(content: bytes) -> bytes:
    start = content.index(b'keyseg_mm.tables') + len('keyseg_mm.tables') + 1
    head, tables = content[: len(_GRAPH)], content[start:]
    at = next(n for n in range(1, 9) if len(tables[n:]) % 4 == 0 and tables[n - 1] < 128)
    inside = bytearray(base64.b64decode(tables[at:]))
    inside[-1] ^= 1
    return with_tables(head, bytes(inside))


_CHANGES: list[tuple[str, str, Callable[[bytes], bytes]]] = [
    ('sealed', 'a bit of the graph', _flipped(-1)),
    ('sealed', 'a byte more', lambda content: content + b'\0'),
    ('sealed', 'a byte less', lambda content: content[:-1]),
    ('sealed', 'cut within its header', lambda content: content[:99]),
    ('sealed', 'another size', _meta(size=[64, 128])),
    ('sealed', 'a class more', _meta(classes=['road', 'sky', 'car'])),
    ('sealed', 'no meta', _header(lambda rows: rows.pop('__metadata__'))),
    ('sealed', 'another name', _header(lambda rows: rows.update(tables=rows.pop('graph')))),
    ('sealed', 'another shape', _header(lambda rows: rows['graph'].update(shape=[1, *rows['graph']['shape']]))),
    ('keyed', 'a bit of the graph', _flipped(5)),
    ('keyed', 'a bit of a table', _flipped_in_tables),
    ('keyed', 'cut', lambda content: content[:-5]),
    ('keyed', 'the graph in front of it twice', lambda content: _GRAPH + content),
]
