"""A sealed file, signed in OpenSSF's format with a local key, as docs/signing.md says."""

from __future__ import annotations

import pytest
import torch
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

import keyseg_mm
from tests.support.files import KEY

model_signing = pytest.importorskip('model_signing')


def make_pair(folder, name):
    key = ec.generate_private_key(ec.SECP256R1())
    pem, none = serialization.Encoding.PEM, serialization.NoEncryption()
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, none)
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / f'{name}.pem').write_bytes(secret)
    (folder / f'{name}.pub').write_bytes(public)


def verify(folder, name):
    config = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=folder / f'{name}.pub')
    config.verify(folder / 'sealed.pth', folder / 'sealed.pth.sig')


def test_a_sealed_file_is_signed_and_verified_without_its_key(tmp_path):
    torch.save({'state_dict': {'layer.weight': torch.arange(512.0)}}, tmp_path / 'plain.pth')
    keyseg_mm.seal_file(tmp_path / 'plain.pth', keyseg_mm.Sealing(KEY), tmp_path / 'sealed.pth')
    for name in ('ours', 'theirs'):
        make_pair(tmp_path, name)
    signer = model_signing.signing.Config().use_elliptic_key_signer(private_key=tmp_path / 'ours.pem')
    signer.sign(tmp_path / 'sealed.pth', tmp_path / 'sealed.pth.sig')
    verify(tmp_path, 'ours')
    with pytest.raises(Exception, match='(?i)sign'):
        verify(tmp_path, 'theirs')
    keyseg_mm.unlock_file(tmp_path / 'sealed.pth', KEY, tmp_path / 'again.pth')  # it opens as before
    content = bytearray((tmp_path / 'sealed.pth').read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / 'sealed.pth').write_bytes(content)
    with pytest.raises(ValueError, match='mismatch'):
        verify(tmp_path, 'ours')
