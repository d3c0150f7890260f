"""Test vectors: what a case of a file derives."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from keyseg_mm.bind import derive_cipher, derive_map, derive_order, derive_patches
from keyseg_mm.entries import ImageEntry, MapEntry, TensorEntry
from keyseg_mm.keys.fingerprint import Pattern
from keyseg_mm.keys.key import SecretKey
from keyseg_mm.maps import normal_form

DERIVE = Path(__file__).parents[1] / 'vectors' / 'derive.json'
PATCHES = DERIVE.with_name('patches.json')
STAMPS = DERIVE.with_name('stamps.json')
ENVELOPES = DERIVE.with_name('envelope.json')
GRAPHS = DERIVE.with_name('graphs.json')


def derived(case: dict) -> dict[str, list]:
    """The tables of one test vector, floats as their exact hexadecimal form."""
    transform = case['transform']  # one with groups is as a stamp has it, and no config
    entry = MapEntry(
        case['point'], case['channels'], transform if isinstance(transform, dict) else normal_form(transform)
    )
    tables = derive_map(SecretKey(bytes.fromhex(case['key'])), bytes.fromhex(case['salt']), entry).tables()
    return {
        name: [x.hex() for x in t.ravel().tolist()] if t.dtype == np.float64 else t.ravel().tolist()
        for name, t in tables.items()
    }


def derived_order(case: dict) -> np.ndarray:
    """The order of one test vector of an encrypted tensor."""
    entry = TensorEntry((case['tensor'],), case['count'], case['transform'])
    return derive_order(SecretKey(bytes.fromhex(case['key'])), bytes.fromhex(case['salt']), entry)


def derived_pattern(case: dict) -> np.ndarray:
    """The values of one test vector of a fingerprint."""
    master, model = SecretKey(bytes.fromhex(case['key'])), bytes.fromhex(case['model'])
    return Pattern(master, case['licensee'], model, case['tensor']).read(case['count'])


def derived_images(case: dict) -> dict[str, list]:
    """The tables of one test vector of an image encryption."""
    key = SecretKey(bytes.fromhex(case['key']))
    cipher = derive_cipher(key, b'', ImageEntry(case['method'], case['block'], case['salt']))
    tables = cipher.tables_of(case['channels'])
    found = {'block permutation': tables.order, 'mask': tables.changed}
    found['byte map'] = tables.values if case['method'] == 'FFX' else None
    found = {name: table.astype(int) for name, table in found.items() if table is not None}
    inverses = {f'inverse {name}': np.argsort(table) for name, table in found.items() if name != 'mask'}
    return {name: table.tolist() for name, table in {**found, **inverses}.items()}


def encrypted_ramp(case: dict) -> str:
    """What a vector fixes: a ramp of two blocks, encrypted, in hex."""
    p = case['patch']
    ramp = (np.arange(6 * p * p) * 7 % 256).astype(np.uint8).reshape(p, 2 * p, 3)
    key = SecretKey(bytes.fromhex(case['key']))
    cipher = derive_patches(key, bytes.fromhex(case['salt']), p, case['permute'], case['negate'])
    return cipher.encrypt(ramp).tobytes().hex()
