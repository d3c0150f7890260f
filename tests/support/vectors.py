"""Test vectors: what a case of a file derives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from keyseg_mm.images.plan import ImagePlan

from keyseg_mm.bind import derive_cipher, derive_image_cipher, derive_map
from keyseg_mm.keys.key import SecretKey
from keyseg_mm.maps import normal_form
from keyseg_mm.stamp import MapEntry

DERIVE = Path(__file__).parents[1] / 'vectors' / 'derive.json'
PATCHES = DERIVE.with_name('patches.json')


def derived(case: dict) -> dict[str, list]:
    """The tables of one test vector, floats as their exact hexadecimal form."""
    entry = MapEntry(case['point'], case['channels'], normal_form(case['transform']))
    tables = derive_map(SecretKey(bytes.fromhex(case['key'])), bytes.fromhex(case['salt']), entry).tables()
    return {
        name: [x.hex() for x in t.ravel().tolist()] if t.dtype == np.float64 else t.ravel().tolist()
        for name, t in tables.items()
    }


def derived_images(case: dict) -> dict[str, list]:
    """The tables of one test vector of an image encryption."""
    key = SecretKey(bytes.fromhex(case['key']))
    plan = ImagePlan(case['method'], case['block'], key.id, bytes.fromhex(case['salt']))
    return {name: table.tolist() for name, table in derive_image_cipher(key, plan).tables(case['channels']).items()}


def encrypted_ramp(case: dict) -> str:
    """What a vector fixes: a ramp of two blocks, encrypted, in hex."""
    p = case['patch']
    ramp = (np.arange(6 * p * p) * 7 % 256).astype(np.uint8).reshape(p, 2 * p, 3)
    key = SecretKey(bytes.fromhex(case['key']))
    cipher = derive_cipher(key, bytes.fromhex(case['salt']), p, case['permute'], case['negate'])
    return cipher(ramp).tobytes().hex()
