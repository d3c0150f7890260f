"""Derivation: test vectors, and that what is derived is unbiased."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyseg_mm.keys import derive
from keyseg_mm.keys.derive import KeyStream, hkdf
from keyseg_mm.keys.key import SecretKey
from keyseg_mm.maps import TRANSFORMS
from keyseg_mm.maps.order import sorted_order
from tests.support.vectors import DERIVE, derived, derived_order, derived_pattern


@pytest.mark.parametrize(
    'case', json.loads(DERIVE.read_text())['tables'], ids=lambda c: f'{c["transform"]}-{c["channels"]}'
)
def test_vectors(case):
    assert derived(case) == case['gives']


@pytest.mark.parametrize('case', json.loads(DERIVE.read_text())['keys'], ids=lambda c: c['key'][:8])
def test_key_vectors(case):
    key = SecretKey(bytes.fromhex(case['key']))
    assert (key.id, key.to_text(), key.licensee(case['licensee']).id) == (case['id'], case['text'], case['licensee id'])


@pytest.mark.parametrize('case', json.loads(DERIVE.read_text())['orders'], ids=lambda c: f'{c["tensor"]}-{c["count"]}')
def test_order_vectors(case):
    order = derived_order(case)
    assert order[: len(case['begins'])].tolist() == case['begins']
    assert hashlib.sha256(order.astype('<i8').tobytes()).hexdigest() == case['sha256']


@pytest.mark.parametrize(
    'case', json.loads(DERIVE.read_text())['patterns'], ids=lambda c: f'{c["licensee"]}-{c["count"]}'
)
def test_pattern_vectors(case):
    values = derived_pattern(case)
    assert values[: len(case['begins'])].tolist() == case['begins']
    assert hashlib.sha256(values.astype('<u2').tobytes()).hexdigest() == case['sha256']


def test_stream_is_chacha20_of_rfc_8439():
    """RFC 8439, appendix A.1, test vector 1: zero key, zero nonce, block counter 0."""
    block = bytes.fromhex('76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7')
    assert KeyStream(bytes(32)).words(4).astype('<u8').tobytes() == block


def test_every_input_of_a_subkey_counts():
    base = ('keyseg_mm/subkey/v1', ['out:backbone:0', 64, {'type': 'ChannelPermutation'}], b'salt')
    key = bytes(32)
    outputs = {
        hkdf(key, base[0], base[1], base[2]),
        hkdf(bytes(31) + b'\1', base[0], base[1], base[2]),
        hkdf(key, 'keyseg_mm/subkey/v2', base[1], base[2]),
        hkdf(key, base[0], ['out:backbone:1', *base[1][1:]], base[2]),
        hkdf(key, base[0], [base[1][0], 65, base[1][2]], base[2]),
        hkdf(key, base[0], [*base[1][:2], {'type': 'ChannelRotation'}], base[2]),
        hkdf(key, base[0], base[1], b'tlas'),
    }
    assert len(outputs) == 7


@given(st.integers(1, 300), st.binary(min_size=32, max_size=32))
def test_permutation_is_one(n, subkey):
    assert sorted(derive.permutation(KeyStream(subkey), n)) == list(range(n))


def test_permutations_are_uniform():
    """All 24 permutations of 4 turn up equally often; chi-square with 23 degrees, 0.1 % point 49.7."""
    stream = KeyStream(bytes(32))
    counts = {}
    for _ in range(24_000):
        p = tuple(derive.permutation(stream, 4))
        counts[p] = counts.get(p, 0) + 1
    assert len(counts) == 24
    assert sum((c - 1000) ** 2 / 1000 for c in counts.values()) < 49.7


@given(st.integers(1, 300), st.binary(min_size=32, max_size=32))
def test_order_is_a_permutation_by_words(n, subkey):
    order = sorted_order(KeyStream(subkey), n)
    words = [int(w) for w in KeyStream(subkey).words(n)]
    assert order.tolist() == sorted(range(n), key=words.__getitem__)


def test_orders_are_uniform():
    """All 24 orders of 4 turn up equally often; chi-square with 23 degrees, 0.1 % point 49.7."""
    stream = KeyStream(bytes(32))
    counts = {}
    for _ in range(24_000):
        p = tuple(sorted_order(stream, 4).tolist())
        counts[p] = counts.get(p, 0) + 1
    assert len(counts) == 24
    assert sum((c - 1000) ** 2 / 1000 for c in counts.values()) < 49.7


def test_equal_words_are_thrown_away():
    class Stream:
        """Words of two bits, so that most draws have two alike."""

        def __init__(self):
            self.drawn, self.stream = [], KeyStream(bytes(32))

        def words(self, count):
            self.drawn.append((self.stream.words(count) & np.uint64(3)) + np.uint64(2**63 - 2))
            return self.drawn[-1]

    stream, counts = Stream(), {}
    for _ in range(3000):
        p = tuple(sorted_order(stream, 3).tolist())
        counts[p] = counts.get(p, 0) + 1
        assert len(set(stream.drawn[-1].tolist())) == 3
    assert len(stream.drawn) > 3500, 'some were thrown away'
    assert len(counts) == 6
    assert sum((c - 500) ** 2 / 500 for c in counts.values()) < 20.5  # 5 degrees, 0.1 % point


def test_rejection_gives_the_next_word():
    """A bound just above half of 2**64 rejects almost every second word; draws must equal the words that are kept."""
    bounds = np.full(50, 2**63 + 1, dtype=np.uint64)
    draws = KeyStream(bytes(32)).below(bounds)
    words = KeyStream(bytes(32)).words(200)
    kept = [int(w) for w in words if int(w) < 2**63 + 1][:50]
    assert (words[:50] >= 2**63 + 1).any()
    assert [int(d) % 2**64 for d in draws.astype(np.uint64)] == kept


def test_signs_are_balanced():
    signs = derive.signs(KeyStream(bytes(32)), 10_001)
    assert set(signs.tolist()) == {1, -1}
    assert abs(int(signs.astype(int).sum())) < 4 * 100


@pytest.mark.parametrize('size', [1, 2, 5, 8, 16])
def test_rotations_are_orthogonal_and_haar(size):
    """Entries of a Haar matrix have mean 0 and variance 1/n; both signs of the determinant are equally likely."""
    matrices = derive.rotations(KeyStream(bytes([size] * 32)), 4000, size)
    eye = np.einsum('bij,bkj->bik', matrices, matrices)
    assert np.abs(eye - np.eye(size)).max() < 1e-14
    deviation = np.sqrt(1 / size / 4000)
    assert np.abs(matrices.mean(axis=0)).max() < 5 * deviation
    assert np.abs((matrices**2).mean(axis=0) - 1 / size).max() < 5 * np.sqrt(2) / size / np.sqrt(4000) + 1e-12
    assert abs((np.linalg.det(matrices) > 0).mean() - 0.5) < 0.04


def test_own_logarithm_is_accurate():
    x = np.concatenate([np.linspace(1e-300, 1e-3, 1000), np.linspace(1e-3, 1, 100_000, endpoint=False)])
    assert np.abs(derive._log(x) - np.log(x)).max() <= 4e-16 * np.abs(np.log(x)).max()
    assert np.abs((derive._log(x) - np.log(x)) / np.log(x)).max() < 1e-14


def test_transforms_of_the_vectors_are_all():
    assert {
        c['transform'] if isinstance(c['transform'], str) else c['transform']['type']
        for c in json.loads(DERIVE.read_text())['tables']
    } == set(TRANSFORMS)
    assert {c['transform']['type'] for c in json.loads(DERIVE.read_text())['orders']} == {
        'TensorPermutation',
        'SelectiveEncryption',
    }
