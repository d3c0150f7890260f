"""The secret key: 32 random bytes, their text form, their public id, and keys derived for licensees.

The text form is ``KEYSEG-SECRET-KEY-1-`` and 64 letters and digits of base32 (RFC 4648) in groups of eight: the 32
bytes of the key and 8 bytes of checksum, so that a typing error is told from a wrong key.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import re

from cryptography.hazmat.primitives.hashes import SHA256, Hash

from keyseg_mm.errors import KeyFileError
from keyseg_mm.keys.derive import hkdf
from keyseg_mm.keys.secret import Secret

KEY_BYTES = 32
TEXT_PREFIX = 'KEYSEG-SECRET-KEY-1-'
ID_PREFIX = 'ks1'
_CHECK_BYTES = 8


class SecretKey(Secret):
    """A secret key of 32 bytes.

    Args:
        material: the 32 bytes. Use :meth:`generate`, :meth:`from_text` or a locator rather than this constructor.

    Raises:
        KeyFileError: ``material`` is not 32 bytes.
    """

    __slots__ = ('_material', '_id')

    def __init__(self, material: bytes) -> None:
        if not isinstance(material, bytes) or len(material) != KEY_BYTES:
            raise KeyFileError(f'a key is {KEY_BYTES} bytes; make one with: keyseg keygen --out FILE')
        self._material = material
        id_bytes = hkdf(material, 'keyseg_mm/key-id/v1', [], length=10)
        self._id = ID_PREFIX + base64.b32encode(id_bytes).decode('ascii').lower()

    @classmethod
    def generate(cls) -> SecretKey:
        """A fresh key from the operating system's random source."""
        return cls(os.urandom(KEY_BYTES))

    @classmethod
    def from_text(cls, text: str) -> SecretKey:
        """The key of a text form; letter case, spaces and dashes between groups do not matter.

        Raises:
            KeyFileError: not a key's text form, or mistyped. The message never quotes the text.
        """
        compact = re.sub(r'[\s-]', '', text).upper()
        prefix = TEXT_PREFIX.replace('-', '')
        if not compact.startswith(prefix):
            raise KeyFileError(f'this is no key: a key text starts with {TEXT_PREFIX}')
        try:
            raw = base64.b32decode(compact[len(prefix) :])
        except (binascii.Error, ValueError):
            raise KeyFileError('this key text is cut short or mistyped; copy it again, whole') from None
        material, check = raw[:KEY_BYTES], raw[KEY_BYTES:]
        if len(raw) != KEY_BYTES + _CHECK_BYTES or not hmac.compare_digest(check, _checksum(material)):
            raise KeyFileError('this key text is mistyped (its checksum does not fit); copy it again, whole')
        return cls(material)

    def to_text(self) -> str:
        """The secret text form. For key files only: whoever reads it has the key."""
        body = base64.b32encode(self._material + _checksum(self._material)).decode('ascii')
        return TEXT_PREFIX + '-'.join(re.findall('.{8}', body))

    @property
    def id(self) -> str:
        """The public key id, ``ks1`` and 16 characters: 80 bits of an HKDF output of its own."""
        return self._id

    @property
    def public_id(self) -> str:
        return self._id

    def licensee(self, name: str) -> SecretKey:
        """The key of a licensee of this master key, by HKDF: the master opens it, and it tells nothing of the master.

        Args:
            name: public name of the licensee; the same name always gives the same key.
        """
        if not name.strip():
            raise KeyFileError('a licensee needs a name that is not blank')
        return SecretKey(hkdf(self._material, 'keyseg_mm/licensee/v1', [name]))

    def subkey(self, label: str, fields: list[object], salt: bytes) -> bytes:
        """32 bytes for one purpose; see :func:`keyseg_mm.keys.derive.hkdf`."""
        return hkdf(self._material, label, fields, salt)

    def needles(self) -> dict[str, bytes]:
        """The forms under which this key could be found in a file, for :mod:`keyseg_mm.runtime.leaks` only."""
        raw, text = self._material, self.to_text()
        forms = {
            'raw': raw,
            'hex': raw.hex().encode(),
            'HEX': raw.hex().upper().encode(),
            'text': text[len(TEXT_PREFIX) :].encode(),
        }
        forms['base32'] = text[len(TEXT_PREFIX) :].replace('-', '')[:48].encode()
        forms['base32 in lower case'] = forms['base32'].lower()
        for name, encode in (('base64', base64.b64encode), ('urlsafe base64', base64.urlsafe_b64encode)):
            for shift in range(3):  # base64 looks different at each offset modulo 3 inside a longer text
                forms[f'{name}, offset {shift}'] = encode(bytes(shift) + raw)[4 if shift else 0 : -4]
        return forms

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SecretKey) and hmac.compare_digest(self._material, other._material)

    def __hash__(self) -> int:
        return hash(self._id)


def wrong_key(seed: str) -> SecretKey:
    """A key that anybody can make from a public seed: wrong on purpose, for tests and audits."""
    return SecretKey(hkdf(b'keyseg_mm: not a secret', 'keyseg_mm/wrong-key/v1', [seed]))


def _checksum(material: bytes) -> bytes:
    digest = Hash(SHA256())
    digest.update(b'keyseg_mm/key-text/v1' + material)
    return digest.finalize()[:_CHECK_BYTES]
