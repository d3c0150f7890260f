"""The format of a sealed section, read by nothing of the package: json, hmac and ``cryptography`` as they come."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from torch import nn

from keyseg_mm.envelope import Seal
from keyseg_mm.keys.key import SecretKey
from keyseg_mm.seal.tensors import open_tensors, seal_tensors

SEALS = Path(__file__).parents[1] / 'vectors' / 'seal.json'
CONTENT = bytes(range(32))
CHUNK = 2**16
# the content key is always the same here and seals over and over, which no real one may
COMMON: dict[str, Any] = {'content': SecretKey(CONTENT), 'head': b'head', 'meta': {'epoch': 3}}


class Refused(Exception):
    """What the independent reader says of a section that is not as it was sealed."""


def by_the_book(case: dict[str, Any]) -> dict[str, bytes]:
    """The plain bytes of a sealed section.

    Args:
        case: ``content`` and ``head`` in hex; ``meta``; ``public``, names and bytes in hex of the stamps of parts;
            ``tensors``, each with its ``name``, ``dtype``, ``shape`` and ``stored`` bytes in hex; the ``seal``.
    """
    seal, content = case['seal'], bytes.fromhex(case['content'])
    tags, meta, tag = (base64.b64decode(seal[name]) for name in ('tags', 'meta', 'tag'))
    section, chunk = seal['section'], seal['chunk']
    stored = {row['name']: row for row in case['tensors']}
    for name, first in seal['shared'].items():
        copy = {**stored.pop(name), 'name': first} if name in stored else None
        refuse_unless(copy == stored.get(first))
    rows = [[n, r['dtype'], r['shape'], -(-len(r['stored']) // 2 // chunk)] for n, r in sorted(stored.items())]
    public = sorted(case['public'])
    said = text(['keyseg_mm/manifest/v1', section, seal['mode'], chunk, rows, seal['shared'], public])
    parts = [part for body in (said, bytes.fromhex(case['head']), tags, meta) for part in (length(body), body)]
    refuse_unless(mac(subkey(content, 'keyseg_mm/manifest/v1', section), b''.join(parts)) == tag)
    if case['meta']:
        refuse_unless(mac(subkey(content, 'keyseg_mm/meta/v1'), text(case['meta'])) == meta)
    numbered = enumerate(tags[at : at + 16] for at in range(0, len(tags), 16))
    key = AESGCM(subkey(content, 'keyseg_mm/section/v1', section))
    found = {name: opened(key, seal, row, count, numbered) for row, (name, *_, count) in zip(ordered(stored), rows)}
    refuse_unless(next(numbered, None) is None)
    return found


def opened(key: AESGCM, seal: dict[str, Any], row: dict[str, Any], count: int, tags: Iterator[Any]) -> bytes:
    """The plain bytes of one tensor."""
    data, found = bytes.fromhex(row['stored']), b''
    for place in range(count):
        number, tag = next(tags, (0, b''))
        refuse_unless(tag)
        piece = data[place * seal['chunk'] : (place + 1) * seal['chunk']]
        said = text(['keyseg_mm/chunk/v1', seal['section'], row['name'], row['dtype'], row['shape'], place, count])
        nonce = (number + 1).to_bytes(12, 'big')
        try:
            if seal['mode'] == 'sealed':
                found += key.decrypt(nonce, piece + tag, said)
            else:
                found += key.decrypt(nonce, tag, length(said) + said + piece) + piece
        except InvalidTag:
            raise Refused from None
    return found


def ordered(stored: dict[str, Any]) -> list[dict[str, Any]]:
    return [stored[name] for name in sorted(stored)]


def text(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(',', ':')).encode()


def length(body: bytes) -> bytes:
    return len(body).to_bytes(8, 'big')


def subkey(content: bytes, *fields: str) -> bytes:
    return HKDF(SHA256(), 32, None, text(list(fields))).derive(content)


def mac(key: bytes, body: bytes) -> bytes:
    return hmac.digest(key, body, 'sha256')


def refuse_unless(right: object) -> None:
    if not right:
        raise Refused


def raw(tensor: torch.Tensor) -> bytes:
    """The bytes of a contiguous tensor."""
    return bytes(tensor.detach().reshape(-1).view(torch.uint8).numpy()) if tensor.numel() else b''


def rows_of(tensors: dict[str, Any], field: str = 'stored') -> list[dict[str, Any]]:
    """Tensors as a case has them."""
    return [
        {'name': name, 'dtype': str(t.dtype)[6:], 'shape': list(t.shape), field: raw(t).hex()}
        for name, t in tensors.items()
    ]


def tensors_of(rows: list[dict[str, Any]], field: str = 'stored') -> dict[str, torch.Tensor]:
    """The tensors of a case."""
    return {row['name']: _tensor(bytes.fromhex(row[field]), row) for row in rows}


def _tensor(data: bytes, row: dict[str, Any]) -> torch.Tensor:
    flat = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    return flat.view(getattr(torch, row['dtype'])).reshape(row['shape'])


def sealed(tensors: dict[str, Any], mode: str = 'sealed', **options: Any) -> tuple[dict[str, Any], Seal]:
    """Seal with what the tests have in common."""
    return seal_tensors(tensors, mode=mode, **{**COMMON, 'section': 'state_dict', 'chunk': CHUNK, **options})


def unsealed(tensors: dict[str, Any], seal: Seal, **options: Any) -> dict[str, Any]:
    """Open with what the tests have in common."""
    return open_tensors(tensors, seal=seal, **{**COMMON, **options})


def noise(size, seed=0):
    return torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def model(seed=0):
    """A section with something of everything; its largest tensor has several chunks."""
    shared = noise(64, seed).view(torch.float32).view(4, 4)
    return {
        'z.weight': nn.Parameter(noise(2 * CHUNK + 40, seed + 1).view(torch.bfloat16), requires_grad=False),
        'a.weight': noise(96, seed + 2).view(torch.float32).view(4, 6),
        'b.weight': noise(96, seed + 3).view(torch.float32).view(4, 6),
        'a.count': torch.tensor(7 + seed),
        'a.none': torch.empty(0, 3),
        'm.shared': shared,
        'a.shared': shared,
        'extra_state': {'words': 'stay'},
        'keyseg_stamp_root': stamp(b'root'),
        'a.keyseg_stamp_part': stamp(b'part'),
        'b.keyseg_stamp_part': stamp(b'other'),
    }


def stamp(content):
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def bits(section):
    """What is to be the same: all bytes of tensors, and other values themselves."""
    return {
        n: (t.dtype, t.shape, raw(t.detach().clone(memory_format=torch.contiguous_format)))
        if isinstance(t, torch.Tensor)
        else t
        for n, t in section.items()
    }
