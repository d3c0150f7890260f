"""Envelopes: their format is fixed by vectors, and read by nothing of the package too."""

from __future__ import annotations

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, MLKEM768X25519PrivateKey, Suite
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from keyseg_mm.errors import IntegrityError
from keyseg_mm.keys.identity import read_key
from keyseg_mm.stamp import Stamp
from keyseg_mm.wrapping import open_envelope
from tests.support.vectors import ENVELOPES

VECTORS = json.loads(ENVELOPES.read_text())


def derived(material: bytes, rows: list, salt: bytes | None = None) -> bytes:
    info = json.dumps(rows, separators=(',', ':')).encode()
    return HKDF(SHA256(), 32, salt, info).derive(material)


def by_the_book(case: dict) -> bytes:
    """The secrets of an envelope, as docs/formats.md has it."""
    stamp = json.loads(case['stamp'])
    prefix, _, body = case['key'].rpartition('-1-')
    raw = base64.b32decode((text := body.replace('-', '')) + '=' * (-len(text) % 8))
    lines, commitment, _ = stamp.pop('recipients'), stamp.pop('commitment'), stamp.pop('seal', None)
    if prefix.endswith('SECRET-KEY'):
        kind, material = 'key', raw[:32]
    else:
        kind, material = {1: 'x25519', 2: 'mlkem768-x25519'}[raw[0]], raw[1:33]
    line = next(line for line in lines if line['kind'] == kind)
    said = json.dumps(stamp, separators=(',', ':'))
    context = json.dumps(['keyseg_mm/envelope/v1', line['id'], commitment, said], separators=(',', ':')).encode()
    data = base64.b64decode(line['data'])
    if kind == 'key':
        payload = AESGCM(derived(material, ['keyseg_mm/wrap/v1'])).decrypt(data[:12], data[12:], context)
    else:
        private = X25519PrivateKey.from_private_bytes(derived(material, ['keyseg_mm/identity/v1', 'x25519']))
        kem = KEM.X25519
        if kind != 'x25519':
            halves = [derived(material, ['keyseg_mm/identity/v1', 'mlkem768', half]) for half in (0, 1)]
            private, kem = MLKEM768X25519PrivateKey(MLKEM768PrivateKey.from_seed_bytes(b''.join(halves)), private), None
            kem = KEM.MLKEM768_X25519
        payload = Suite(kem, KDF.HKDF_SHA256, AEAD.AES_256_GCM).decrypt(data, private, info=context)
    assert derived(payload, ['keyseg_mm/commitment/v1'], bytes.fromhex(stamp['salt'])).hex() == commitment
    return payload


@pytest.mark.parametrize('case', VECTORS['good'], ids=lambda case: case['of'])
def test_good_envelopes_open_here_and_by_the_book(case):
    secrets = open_envelope(read_key(case['key']), Stamp.from_bytes(case['stamp'].encode()))
    assert secrets.payload.hex() == case['features'] + case['content'] == by_the_book(case).hex()


@pytest.mark.parametrize('case', VECTORS['bad'], ids=lambda case: case['why'])
def test_bad_envelopes_are_refused(case):
    with pytest.raises(IntegrityError):
        open_envelope(read_key(case['key']), Stamp.from_bytes(case['stamp'].encode()))


def test_the_vectors_are_of_every_kind():
    kinds = {line['kind'] for case in VECTORS['good'] for line in json.loads(case['stamp'])['recipients']}
    assert kinds == {'key', 'x25519', 'mlkem768-x25519'} and len(VECTORS['bad']) == 6 * len(VECTORS['good'])
