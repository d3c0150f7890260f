"""Writes derive.json. Only for a new format version: existing vectors never change, or locked models would not open.

Run as ``python -m tests.vectors.make``.
"""

import json

from keyseg_mm import SecretKey
from tests.support.vectors import DERIVE, derived, derived_images

KEYS = (bytes(range(32)), bytes(32), b'\xff' * 32)
CASES = [
    (0, '00' * 16, 'out:backbone:0', 16, 'ChannelPermutation'),
    (0, '01' + '00' * 15, 'out:backbone:0', 16, 'ChannelPermutation'),
    (1, '00' * 16, 'in:decode_head.conv_seg', 64, 'ChannelPermutation'),
    (2, 'ab' * 16, 'out:neck:1', 1, 'ChannelPermutation'),
    (0, '00' * 16, 'out:backbone:0', 70, 'SignedChannelPermutation'),
    (0, '00' * 16, 'out:backbone:0', 8, 'ChannelRotation'),
    (1, 'cd' * 16, 'in:a.b', 7, {'type': 'ChannelRotation', 'block': 3}),
    (0, '00' * 16, 'out:backbone:0', 4, 'BlockShuffle'),
    (2, 'cd' * 16, 'out:neck:1', 3, {'type': 'BlockShuffle', 'block': 3}),
    (0, '00' * 16, 'out:backbone:0', 9, 'NegativePositive'),
    (1, 'ab' * 16, 'out:neck:1', 3, {'type': 'NegativePositive', 'block': 1}),
]

IMAGES = [
    (0, '', 'SHF', 3, 3),
    (1, 'ab' * 16, 'SHF', 2, 1),
    (2, '', 'NP', 4, 3),
    (0, '00' * 16, 'FFX', 2, 3),
]

if __name__ == '__main__':
    keys = []
    for material in KEYS:
        key = SecretKey(material)
        keys.append({'key': material.hex(), 'id': key.id, 'text': key.to_text(), 'licensee': 'ACME'})
        keys[-1]['licensee id'] = key.licensee('ACME').id
    tables = []
    for which, salt, point, channels, transform in CASES:
        case = {'key': KEYS[which].hex(), 'salt': salt, 'point': point, 'channels': channels, 'transform': transform}
        tables.append({**case, 'gives': derived(case)})
    images = []
    for which, salt, method, block, channels in IMAGES:
        case = {'key': KEYS[which].hex(), 'salt': salt, 'method': method, 'block': block, 'channels': channels}
        images.append({**case, 'gives': derived_images(case)})
    DERIVE.write_text(json.dumps({'keys': keys, 'tables': tables, 'images': images}, indent=1) + '\n')
