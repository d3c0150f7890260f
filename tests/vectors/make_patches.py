"""Writes patches.json. Only for a new format version: existing vectors never change, or images would be lost.

Run as ``python -m tests.vectors.make_patches``.
"""

import json

from tests.support.vectors import PATCHES, encrypted_ramp

CASES = [
    (bytes(range(32)), '00' * 16, 2, 'all', True),
    (bytes(range(32)), '00' * 16, 2, 'all', False),
    (bytes(range(32)), '01' + '00' * 15, 2, 'channel', True),
    (bytes(32), '00' * 16, 2, 'channel', False),
    (b'\xff' * 32, 'ab' * 16, 2, 'none', True),
    (bytes(range(32)), '00' * 16, 16, 'all', True),
]

if __name__ == '__main__':
    names = ('key', 'salt', 'patch', 'permute', 'negate')
    cases = [dict(zip(names, (key.hex(), *rest))) for key, *rest in CASES]
    PATCHES.write_text(json.dumps([{**case, 'gives': encrypted_ramp(case)} for case in cases], indent=1) + '\n')
