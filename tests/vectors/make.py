"""Writes the test vectors. Only for a new format version: existing ones never change, or locked models would not open.

Run as ``python -m tests.vectors.make``.
"""

import hashlib
import json

import keyseg_mm.baselines  # noqa: F401 - its maps
from keyseg_mm import SecretKey
from keyseg_mm.stamp import Stamp
from tests.support.seals import SEALS
from tests.support.vectors import (
    DERIVE,
    ENVELOPES,
    GRAPHS,
    PATCHES,
    STAMPS,
    derived,
    derived_images,
    derived_order,
    derived_pattern,
    encrypted_ramp,
)
from tests.vectors import envelopes, graphs, seals
from tests.vectors.stamps import BAD, GOOD

KEYS = (bytes(range(32)), bytes(32), b'\xff' * 32)
CASES = [
    (0, '00' * 16, 'out:backbone:0', 16, 'ChannelPermutation'),
    (0, '01' + '00' * 15, 'out:backbone:0', 16, 'ChannelPermutation'),
    (1, '00' * 16, 'in:decode_head.conv_seg', 64, 'ChannelPermutation'),
    # drawn more than once: what came first was nearly none
    (2, '02' + '00' * 15, 'out:neck:1', 2, 'ChannelPermutation'),
    (1, '0a' + '00' * 15, 'out:neck:1', 2, 'ChannelPermutation'),
    (0, '05' + '00' * 15, 'out:neck:1', 2, 'SignedChannelPermutation'),
    (1, '05' + '00' * 15, 'out:neck:1', 2, 'ChannelRotation'),
    (2, '00' * 16, 'out:neck:1', 2, {'type': 'BlockShuffle', 'block': 1}),
    (0, '00' * 16, 'out:backbone:0', 70, 'SignedChannelPermutation'),
    (0, '00' * 16, 'out:backbone:0', 8, 'ChannelRotation'),
    (1, 'cd' * 16, 'in:a.b', 7, {'type': 'ChannelRotation', 'block': 3}),
    (1, 'cd' * 16, 'in:a.b', 12, {'type': 'SignedChannelPermutation', 'groups': 3}),
    (0, '00' * 16, 'back:a.attn', 12, {'type': 'ChannelPermutation', 'groups': 4}),
    (0, '00' * 16, 'out:backbone:0', 4, 'BlockShuffle'),
    (2, 'cd' * 16, 'out:neck:1', 3, {'type': 'BlockShuffle', 'block': 3}),
    (0, '00' * 16, 'out:backbone:0', 9, 'NegativePositive'),
    (1, 'ab' * 16, 'out:neck:1', 3, {'type': 'NegativePositive', 'block': 1}),
]

ORDERS = [
    (0, '00' * 16, 'backbone.conv1.weight', 16, {'type': 'TensorPermutation'}),
    (0, bytes(range(16)).hex(), 'decode_head.conv_seg.weight', 100_000, {'type': 'TensorPermutation'}),
    (2, bytes(range(16)).hex(), 'decode_head.conv_seg.weight', 33, {'type': 'SelectiveEncryption', 'share': 0.01}),
]
PATTERNS = [
    (0, 'ACME', '00' * 16, 'backbone.conv1.weight', 16),
    (0, 'ACME', 'ab' * 16, 'backbone.conv1.weight', 100_003),
    (2, 'Bolt', bytes(range(16)).hex(), 'decode_head.conv_seg.weight', 7),
]
IMAGES = [
    (0, '', 'SHF', 3, 3),
    (1, 'ab' * 16, 'SHF', 2, 1),
    (2, '', 'NP', 4, 3),
    (0, '00' * 16, 'FFX', 2, 3),
]
RAMPS = [
    (0, '00' * 16, 2, 'all', True),
    (0, '00' * 16, 2, 'all', False),
    (0, '01' + '00' * 15, 2, 'channel', True),
    (1, '00' * 16, 2, 'channel', False),
    (2, 'ab' * 16, 2, 'none', True),
    (0, '00' * 16, 16, 'all', True),
]


def cases(rows, *names):
    """Cases by the names of their fields; the first field of each row is the number of a key."""
    return [{'key': KEYS[which].hex(), **dict(zip(names, rest))} for which, *rest in rows]


def ordered(case):
    """A case of an order with what it gives: how it begins, and a hash of it all."""
    order = derived_order(case)
    return {**case, 'begins': order[:8].tolist(), 'sha256': hashlib.sha256(order.astype('<i8').tobytes()).hexdigest()}


def patterned(case):
    """A case of a fingerprint with what it gives: how it begins, and a hash of it all."""
    values = derived_pattern(case)
    return {
        **case,
        'begins': values[:16].tolist(),
        'sha256': hashlib.sha256(values.astype('<u2').tobytes()).hexdigest(),
    }


def public(material):
    """What is public of a key."""
    key = SecretKey(material)
    licensee = {'licensee': 'ACME', 'licensee id': key.licensee('ACME').id}
    return {'key': material.hex(), 'id': key.id, 'text': key.to_text(), **licensee}


def write(path, content):
    path.write_text(json.dumps(content, indent=1) + '\n')


if __name__ == '__main__':
    tables = cases(CASES, 'salt', 'point', 'channels', 'transform')
    images = cases(IMAGES, 'salt', 'method', 'block', 'channels')
    found = {
        'keys': [public(material) for material in KEYS],
        'tables': [{**case, 'gives': derived(case)} for case in tables],
        'images': [{**case, 'gives': derived_images(case)} for case in images],
        'patterns': [patterned(case) for case in cases(PATTERNS, 'licensee', 'model', 'tensor', 'count')],
        'orders': [ordered(case) for case in cases(ORDERS, 'salt', 'tensor', 'count', 'transform')],
    }
    write(DERIVE, found)
    ramps = cases(RAMPS, 'salt', 'patch', 'permute', 'negate')
    write(PATCHES, [{**case, 'gives': encrypted_ramp(case)} for case in ramps])
    good = [{'text': stamp.to_json(), 'of': name} for name, stamp in GOOD.items()]
    assert all(Stamp.from_bytes(case['text'].encode()) == GOOD[case['of']] for case in good)
    write(STAMPS, {'good': good, 'bad': [{'why': why, 'text': text} for why, text in BAD]})
    sealed = seals.good()
    opening = {'good': [{'of': name, **case} for name, case in sealed.items()]}
    write(SEALS, {**opening, 'bad': [{'why': why, **case} for why, case in seals.bad(sealed)]})
    wrapped = envelopes.good()
    opening = {'good': [{'of': name, **case} for name, case in wrapped.items()]}
    write(ENVELOPES, {**opening, 'bad': [{'why': why, **case} for why, case in envelopes.bad(wrapped)]})
    files = graphs.good()
    opening = {'good': [{'of': name, **case} for name, case in files.items()]}
    write(GRAPHS, {**opening, 'bad': [{'why': why, **case} for why, case in graphs.bad(files)]})
