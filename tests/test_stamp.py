"""Stamps: fixed for every scheme, and whatever else is put in their place is refused, quickly and by one error."""

from __future__ import annotations

import json
import time
from dataclasses import astuple, replace

import pytest
import torch

from keyseg_mm.bind import stamp_tensor
from keyseg_mm.entries import ENTRIES
from keyseg_mm.errors import IntegrityError, KeyMismatchError, StampError
from keyseg_mm.stamp import (
    LARGEST,
    Stamp,
    fresh_salt,
    is_stamp,
    padded,
    parse_salt,
    stamp_names,
    stamp_of_value,
    stamps_of,
)
from keyseg_mm.wrapping import memory_stamp, open_envelope
from tests.support.vectors import STAMPS
from tests.vectors.stamps import BAD, GOOD, LARGE

VECTORS = json.loads(STAMPS.read_text())
ONE = GOOD['a locked model']


@pytest.mark.parametrize('case', VECTORS['good'], ids=lambda case: case['of'])
def test_good_stamps_are_read_and_written_alike(case):
    stamp = Stamp.from_bytes(case['text'].encode())
    assert stamp == GOOD[case['of']]
    assert (stamp.recipients, stamp.seal) == (GOOD[case['of']].recipients, GOOD[case['of']].seal)
    assert list(map(astuple, stamp.maps)) == list(map(astuple, GOOD[case['of']].maps))  # the public rest too
    assert stamp.to_json() == case['text']
    assert stamps_of({stamp.name: stamp_tensor(stamp)}) == {'': stamp}


def test_the_vectors_are_of_every_scheme_and_all_different():
    assert {entry.scheme for stamp in GOOD.values() for entry in stamp.entries} == set(ENTRIES)
    assert [case['of'] for case in VECTORS['good']] == list(GOOD)
    texts = [case['text'] for case in [*VECTORS['good'], *VECTORS['bad']]]
    assert len(set(texts)) == len(texts) > 150
    assert [(case['why'], case['text']) for case in VECTORS['bad']] == BAD


@pytest.mark.parametrize('case', VECTORS['bad'], ids=lambda case: case['why'])
def test_bad_stamps_are_refused(case):
    with pytest.raises(StampError, match='damaged|version .*: install a newer keyseg_mm'):
        Stamp.from_bytes(case['text'].encode('utf-8', 'surrogatepass'))


def test_a_stamp_of_a_later_version_says_so():
    newer = {**json.loads(ONE.to_json()), 'version': 2}
    with pytest.raises(StampError, match='has version 2; this release reads version 1: install a newer'):
        Stamp.from_bytes(json.dumps(newer).encode())


@pytest.mark.parametrize('why', LARGE)
def test_whoever_asks_for_much_is_refused_quickly(why):
    content = LARGE[why]()
    start = time.process_time()
    with pytest.raises(StampError, match='damaged'):
        Stamp.from_bytes(content)
    with pytest.raises(StampError, match='damaged'):
        stamp_of_value(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    assert time.process_time() - start < 5


def test_as_many_entries_as_a_stamp_may_have_are_read_quickly():
    rows = json.loads(GOOD['encrypted images'].to_json())
    rows['entries'] = [
        {'scheme': 'features', 'point': f'in:{i}', 'channels': 3, 'transform': {'type': 'X'}} for i in range(20_000)
    ]
    content = json.dumps(rows, separators=(',', ':')).encode()
    assert len(content) < LARGEST
    start = time.process_time()
    stamp = Stamp.from_bytes(content)
    assert stamp.to_bytes() == json.dumps(rows, separators=(',', ':')).encode()
    assert time.process_time() - start < 5


class Odd:
    """Looks like a tensor, and is none."""

    dtype, shape = 'torch.uint8', (3,)

    def dim(self):
        return 1

    def numel(self):
        return 3


def odd_values() -> dict[str, object]:
    """What a state_dict may hold under a stamp's name, by its kind."""
    bytes_of = stamp_tensor(ONE)
    return {
        'on no device': torch.empty(10, dtype=torch.uint8, device='meta'),
        'quantised': torch.quantize_per_tensor(torch.ones(10), 0.1, 0, torch.quint8),
        'terabytes without memory': torch.zeros(1, dtype=torch.uint8).expand(2**42),
        'megabytes without memory': torch.zeros(1, dtype=torch.uint8).expand(LARGEST),
        'floating-point': bytes_of.float() + 0.5,
        'no numbers': torch.full((9,), float('nan')),
        'beyond bytes': bytes_of.int() + 256,
        'boolean': bytes_of.bool(),
        'two dimensions': bytes_of[None],
        'no dimension': torch.tensor(1, dtype=torch.uint8),
        'empty': torch.empty(0, dtype=torch.uint8),
        'sparse': bytes_of.to_sparse(),
        'nested': torch.nested.nested_tensor([bytes_of]),
        'an array': bytes_of.numpy(),
        'bytes': ONE.to_bytes(),
        'text': ONE.to_json(),
        'a list': list(ONE.to_bytes()),
        'nothing': None,
        'looks like a tensor': Odd(),
    }


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('kind', odd_values())
def test_values_that_are_no_tensor_of_a_stamp(kind):
    assert stamps_of({ONE.name: stamp_tensor(ONE)}) == {'': ONE}
    value = odd_values()[kind]
    start = time.process_time()
    with pytest.raises(StampError, match='damaged'):
        stamp_of_value(value)
    with pytest.raises(StampError, match='damaged'):
        stamps_of({ONE.name: value})
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    'dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.int64]
)
def test_a_stamp_that_was_cast_with_all_else_is_read(dtype):
    assert stamp_of_value(stamp_tensor(ONE).to(dtype)) == ONE


def test_a_stamp_may_lie_in_memory_as_it_likes():
    spread = torch.stack([stamp_tensor(ONE)] * 2, 1)[:, 0]
    assert not spread.is_contiguous()
    assert stamp_of_value(spread) == stamp_of_value(torch.nn.Parameter(spread, requires_grad=False)) == ONE


def test_stamps_are_found_by_the_modules_that_they_belong_to():
    parts = {f'{prefix}{ONE.name}': stamp_tensor(ONE) for prefix in ('', 'backbone.', 'head.conv.')}
    weights = {'backbone.weight': torch.ones(2), 'keyseg': torch.ones(1)}
    assert stamps_of({**parts, **weights}) == {'': ONE, 'backbone': ONE, 'head.conv': ONE}
    assert [name for name in {**parts, **weights} if is_stamp(name)] == list(parts)
    assert stamp_names(parts, 'backbone.') == [f'backbone.{ONE.name}']
    assert stamps_of(weights) == {}
    images = GOOD['encrypted images']
    assert images.name == f'keyseg_stamp_model_takes_images_encrypted_with_key_{images.key_id}'
    assert ONE.name == GOOD['encrypted maps and images'].name == f'keyseg_stamp_protected_model_needs_key_{ONE.key_id}'
    for wrong in (
        {images.name: stamp_tensor(ONE)},
        {ONE.name + 'x': stamp_tensor(ONE)},
        {ONE.name: stamp_tensor(ONE), images.name: stamp_tensor(images)},
    ):
        with pytest.raises(StampError, match='damaged'):
            stamps_of(wrong)


@pytest.mark.parametrize('name', GOOD)
def test_the_envelope_is_bound_to_every_part_of_a_stamp(name, key, other_key):
    features = key.features(GOOD[name].salt)
    stamp = memory_stamp(key, replace(GOOD[name], key_id=key.id), features)
    assert open_envelope(key, stamp).features == features != other_key.features(stamp.salt)
    others = [replace(stamp, salt=bytes(16)), replace(stamp, key_id='ks1x'), replace(stamp, commitment='00' * 32)]
    others += [replace(stamp, entries=other.entries) for other in GOOD.values() if other.entries != stamp.entries]
    if len(stamp.entries) > 1:
        others += [replace(stamp, entries=stamp.entries[1:]), replace(stamp, entries=stamp.entries[::-1])]
    for other in others:
        with pytest.raises(IntegrityError):
            open_envelope(key, other)
    with pytest.raises(KeyMismatchError, match=f'{key.id}, and the key given is {other_key.id}'):
        open_envelope(other_key, stamp)


def test_a_stamp_without_an_envelope_is_nobodys(key):
    bare = replace(ONE, key_id=key.id, recipients=(), commitment='')
    with pytest.raises(IntegrityError, match='without an envelope'):
        open_envelope(key, bare)
    assert open_envelope(key, bare, check=False).features == key.features(bare.salt)


def test_room_for_other_recipients_is_blanks(key):
    content = padded(ONE, 8192)
    assert len(content) % 8192 == 0 and len(content) - len(ONE.to_bytes()) >= 4096
    assert Stamp.from_bytes(content) == ONE
    for bit in range(8):
        flipped = bytearray(content)
        flipped[-5] ^= 1 << bit
        with pytest.raises(StampError):
            Stamp.from_bytes(bytes(flipped))


@pytest.mark.parametrize('name', GOOD)
def test_a_stamp_is_written_in_one_way_only(name):
    rows = json.loads(GOOD[name].to_json())
    assert Stamp.from_bytes(json.dumps(rows, separators=(',', ':')).encode()) == GOOD[name]
    for other in (json.dumps(rows), json.dumps(dict(reversed(rows.items())), separators=(',', ':'))):
        with pytest.raises(StampError, match='damaged'):
            Stamp.from_bytes(other.encode())


def test_salts():
    assert fresh_salt() != fresh_salt() and len(fresh_salt()) == 16
    assert fresh_salt(bytes(16)) == bytes(16) == parse_salt('00' * 16)
    assert parse_salt('AB' * 16) == bytes([0xAB] * 16)
    for wrong in (b'', bytes(15), bytes(17)):
        with pytest.raises(StampError, match='16 bytes'):
            fresh_salt(wrong)
    for wrong in ('', '00', 'x' * 32, '00' * 17, ' ' + '0' * 31, None, 3, b'0' * 32):
        with pytest.raises(StampError, match='32 hex digits'):
            parse_salt(wrong)
