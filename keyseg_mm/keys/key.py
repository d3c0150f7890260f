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
import unicodedata
from typing import TYPE_CHECKING, ClassVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from keyseg_mm.errors import IntegrityError, KeyFileError
from keyseg_mm.keys.derive import hkdf, sha256
from keyseg_mm.keys.secret import Secret, unseen

if TYPE_CHECKING:
    from typing_extensions import Self

KEY_BYTES = 32
ID_BYTES = 10
TEXT_PREFIX = 'KEYSEG-SECRET-KEY-1-'
ID_PREFIX = 'ks1'
ALTERED_ENVELOPE = 'the envelope of this checkpoint was altered; take a copy from where it was made'
_CHECK_BYTES = 8
_NONCE_BYTES = 12


class Material(Secret):
    """32 secret bytes, and what is derived from them; two are equal if their bytes are.

    Args:
        material: the 32 bytes.

    Raises:
        KeyFileError: ``material`` is not 32 bytes.
    """

    __slots__ = ('_material', '_id', '__weakref__')
    #: What its public id begins with.
    prefix: ClassVar[str]

    @unseen
    def __init__(self, material: bytes) -> None:
        if not isinstance(material, bytes) or len(material) != KEY_BYTES:
            raise KeyFileError(f'a key is {KEY_BYTES} bytes; make one with: keyseg keygen --out FILE')
        self._material = material
        self._id = public_id_of(self.prefix, hkdf(material, 'keyseg_mm/key-id/v1', [], length=ID_BYTES))

    @classmethod
    def generate(cls) -> Self:
        """Fresh bytes from the operating system's random source."""
        return cls(os.urandom(KEY_BYTES))

    @property
    def id(self) -> str:
        """The public id: 80 bits of an HKDF output of its own."""
        return self._id

    @property
    def public_id(self) -> str:
        return self._id

    @unseen
    def subkey(self, label: str, fields: list[object], salt: bytes) -> bytes:
        """32 bytes for one purpose; see :func:`keyseg_mm.keys.derive.hkdf`."""
        return hkdf(self._material, label, fields, salt)

    @property
    def material(self) -> bytes:
        """The secret bytes themselves, to be wrapped for a recipient, or looked for where they do not belong."""
        return self._material

    def features(self, salt: bytes) -> FeatureSecret:
        """What all tables of a model with this salt are derived from."""
        return FeatureSecret(self.subkey('keyseg_mm/features/v1', [], salt))

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and hmac.compare_digest(self._material, other._material)

    def __hash__(self) -> int:
        return hash(self._id)


class FeatureSecret(Material):
    """What the tables of one model are derived from: its owner's by key and salt, everybody else's by the envelope."""

    __slots__ = ()
    prefix = 'kf1'

    def features(self, salt: bytes) -> FeatureSecret:
        return self


class ContentKey(Material):
    """The key of one file's cipher: fresh for every file that is written."""

    __slots__ = ()
    prefix = 'kc1'


class SecretKey(Material):
    """A secret key of 32 bytes.

    Args:
        material: the 32 bytes. Use :meth:`generate`, :meth:`from_text` or a locator rather than this constructor.

    Raises:
        KeyFileError: ``material`` is not 32 bytes.
    """

    __slots__ = ()
    prefix = ID_PREFIX
    kind = 'key'

    @classmethod
    @unseen
    def from_text(cls, text: str) -> SecretKey:
        """The key of a text form; letter case, spaces and dashes between groups do not matter.

        Raises:
            KeyFileError: not a key's text form, or mistyped. The message never quotes the text.
        """
        return cls(read_text(text, TEXT_PREFIX, 'key'))

    @unseen
    def to_text(self) -> str:
        """The secret text form. For key files only: whoever reads it has the key."""
        return write_text(self._material, TEXT_PREFIX)

    @property
    def recipient(self) -> SecretKey:
        """What files are sealed to, so that this key opens them: the key itself."""
        return self

    @unseen
    def wrap(self, payload: bytes, context: bytes) -> bytes:
        """Secrets for whoever has this key: AES-256-GCM (NIST SP 800-38D) under a subkey, a random nonce before it."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher().encrypt(nonce, payload, context)

    @unseen
    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """Undo :meth:`wrap`.

        Raises:
            IntegrityError: it was altered, or is of another context.
        """
        try:
            return self._cipher().decrypt(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], context)
        except (InvalidTag, ValueError):
            raise IntegrityError(ALTERED_ENVELOPE) from None

    def _cipher(self) -> AESGCM:
        return AESGCM(self.subkey('keyseg_mm/wrap/v1', [], b''))

    @unseen
    def licensee(self, name: str) -> SecretKey:
        """The key of a licensee of this master key, by HKDF: the master opens it, and it tells nothing of the master.

        Args:
            name: public name of the licensee; the same name always gives the same key, see :func:`licensee_name`.

        Raises:
            KeyFileError: it is no name.
        """
        return SecretKey(hkdf(self._material, 'keyseg_mm/licensee/v1', [licensee_name(name)]))


def licensee_name(name: str) -> str:
    """A licensee's name in the one form of it that keys are made of: NFC (Unicode, UAX 15), single blanks, none around.

    Raises:
        KeyFileError: it is blank, begins with ``#`` as comments do in a list of names, or holds what is no text.
    """
    found = ' '.join(unicodedata.normalize('NFC', name).split())
    if not found or found.startswith('#') or not found.isprintable():
        raise KeyFileError("a licensee's name can be printed, is not blank, and does not begin with '#'")
    return found


@unseen
def wrong_key(seed: str) -> SecretKey:
    """A key that anybody can make from a public seed: wrong on purpose, for tests and audits."""
    return SecretKey(hkdf(b'keyseg_mm: not a secret', 'keyseg_mm/wrong-key/v1', [seed]))


def public_id_of(prefix: str, digest: bytes) -> str:
    """A public id: what it is of, and 16 characters of base32."""
    return prefix + base64.b32encode(digest[:ID_BYTES]).decode('ascii').lower()


@unseen
def write_text(raw: bytes, prefix: str) -> str:
    """Bytes and their checksum as text that people may copy: base32 (RFC 4648) in groups of eight."""
    return prefix + '-'.join(re.findall('.{1,8}', base64.b32encode(raw + _checksum(raw)).decode('ascii').rstrip('=')))


@unseen
def read_text(text: str, prefix: str, what: str) -> bytes:
    """Undo :func:`write_text`; letter case, spaces and dashes do not matter.

    Raises:
        KeyFileError: it is another text, or mistyped. The message never quotes it.
    """
    compact, start = re.sub(r'[\s-]', '', text).upper(), prefix.replace('-', '')
    if not compact.startswith(start):
        raise KeyFileError(f'this is no {what}: its text starts with {prefix}')
    body = compact[len(start) :]
    try:
        raw = base64.b32decode(body + '=' * (-len(body) % 8))
    except (binascii.Error, ValueError):
        raise KeyFileError(f'this {what} is cut short or mistyped; copy it again, whole') from None
    found, check = raw[:-_CHECK_BYTES], raw[-_CHECK_BYTES:]
    if not hmac.compare_digest(check, _checksum(found)):
        raise KeyFileError(f'this {what} is mistyped (its checksum does not fit); copy it again, whole')
    return found


def _checksum(raw: bytes) -> bytes:
    return sha256(b'keyseg_mm/key-text/v1', raw)[:_CHECK_BYTES]
