"""Identities and recipients: a customer's own pair, whose secret half never leaves them.

A customer makes an :class:`Identity` and mails its public half, a :class:`Recipient`, as one line of text. Whoever has
that line can seal files to them; only the identity opens these. Wrapping is HPKE (RFC 9180, base mode), with X25519, or
with the hybrid of ML-KEM-768 (FIPS 203) and X25519, which a quantum computer would not break either. Both private keys
come from the identity's 32 bytes by HKDF-SHA256 (RFC 5869).
"""

from __future__ import annotations

import os
import re
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from keyseg_mm.errors import IntegrityError, KeyFileError
from keyseg_mm.keys.content import only_line, read_file
from keyseg_mm.keys.derive import sha256
from keyseg_mm.keys.key import (
    ALTERED_ENVELOPE,
    KEY_BYTES,
    Material,
    SecretKey,
    public_id_of,
    read_text,
    write_text,
)
from keyseg_mm.keys.secret import unseen

IDENTITY_PREFIX = 'KEYSEG-IDENTITY-1-'
RECIPIENT_PREFIX = 'KEYSEG-RECIPIENT-1-'
X25519, HYBRID = 'x25519', 'mlkem768-x25519'
_ID_PREFIX = 'kr1'
_MLKEM_BYTES = 1184  # of a public key; FIPS 203, table 3
_TEXT_KINDS = {b'\x01': X25519, b'\x02': HYBRID}  # the first byte of a text says which
_SUITES = {
    X25519: Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM),
    HYBRID: Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM),
}
_PUBLIC_BYTES = {X25519: KEY_BYTES, HYBRID: _MLKEM_BYTES + KEY_BYTES}


class Recipient:
    """The public half of an identity. All of it may be shown.

    Args:
        kind: ``'x25519'`` or ``'mlkem768-x25519'``.
        public: 32 bytes, or 1,184 of ML-KEM and 32 of X25519.

    Raises:
        KeyFileError: these are no public keys.
    """

    def __init__(self, kind: str, public: bytes) -> None:
        self.kind, self.public = kind, public
        try:
            self._key = _public_key(kind, public)
        except (KeyError, ValueError):
            raise KeyFileError('this is no recipient: its bytes are no public key') from None

    @property
    def id(self) -> str:
        """Public id: ``kr1`` and 16 characters, of a SHA-256 of kind and public key."""
        return public_id_of(_ID_PREFIX, sha256(b'keyseg_mm/recipient-id/v1', self.kind.encode(), self.public))

    @property
    def recipient(self) -> Recipient:
        """Itself; so that keys, identities and recipients are named alike where files are sealed."""
        return self

    def to_text(self) -> str:
        """One line, to be mailed."""
        return write_text(_mark(self.kind) + self.public, RECIPIENT_PREFIX)

    @classmethod
    def from_text(cls, text: str) -> Recipient:
        """Undo :meth:`to_text`.

        Raises:
            KeyFileError: it is no recipient, or mistyped.
        """
        return cls(*_read(text, RECIPIENT_PREFIX, 'recipient', _PUBLIC_BYTES))

    @unseen
    def wrap(self, payload: bytes, context: bytes) -> bytes:
        """Secrets for whoever has the identity: HPKE, ``context`` as its info."""
        return _SUITES[self.kind].encrypt(payload, self._key, info=context)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipient) and (self.kind, self.public) == (other.kind, other.public)

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f'<Recipient {self.id}>'


class Identity(Material):
    """A customer's secret half: 32 bytes, and which pair is made of them.

    Args:
        material: the 32 bytes. Use :meth:`generate` or a locator rather than this constructor.
        kind: of the pair.
    """

    __slots__ = ('kind', 'recipient')
    prefix = 'ki1'

    @unseen
    def __init__(self, material: bytes, kind: str = X25519) -> None:
        super().__init__(material)
        self.kind = kind
        self.recipient = Recipient(kind, b''.join(half.public_key().public_bytes_raw() for half in self._halves()))
        self._id = self.recipient.id  # one id for both halves: what a stamp names

    @classmethod
    def generate(cls, kind: str = X25519) -> Identity:
        return cls(os.urandom(KEY_BYTES), kind)

    @classmethod
    @unseen
    def from_text(cls, text: str) -> Identity:
        """Undo :meth:`to_text`.

        Raises:
            KeyFileError: it is no identity, or mistyped. The message never quotes the text.
        """
        kind, material = _read(text, IDENTITY_PREFIX, 'identity', dict.fromkeys(_SUITES, KEY_BYTES))
        return cls(material, kind)

    @unseen
    def to_text(self) -> str:
        """The secret text form. For key files only: whoever reads it has the identity."""
        return write_text(_mark(self.kind) + self._material, IDENTITY_PREFIX)

    @unseen
    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """Undo :meth:`Recipient.wrap`.

        Raises:
            IntegrityError: it was altered, or is of another context.
        """
        try:
            return _SUITES[self.kind].decrypt(wrapped, self._private(), info=context)
        except (InvalidTag, ValueError):
            raise IntegrityError(ALTERED_ENVELOPE) from None

    @unseen
    def _private(self) -> Any:
        halves = self._halves()
        return MLKEM768X25519PrivateKey(*halves) if len(halves) > 1 else halves[0]

    @unseen
    def _halves(self) -> list[Any]:
        """The private keys of the pair, that of ML-KEM first."""
        x25519 = X25519PrivateKey.from_private_bytes(self.subkey('keyseg_mm/identity/v1', [X25519], b''))
        if self.kind == X25519:
            return [x25519]
        seed = b''.join(self.subkey('keyseg_mm/identity/v1', ['mlkem768', half], b'') for half in range(2))
        return [MLKEM768PrivateKey.from_seed_bytes(seed), x25519]


#: Whatever opens files: both have ``id``, ``kind``, ``recipient``, ``subkey``, ``features``, ``unwrap``, ``material``.
Key = SecretKey | Identity


@unseen
def read_key(text: str) -> Key:
    """The key or identity of a text form.

    Raises:
        KeyFileError: it is neither, or mistyped. The message never quotes the text.
    """
    if re.sub(r'[\s-]', '', text).upper().startswith(IDENTITY_PREFIX.replace('-', '')):
        return Identity.from_text(text)
    return SecretKey.from_text(text)


def read_recipient(text: str) -> Recipient:
    """The recipient of an option or a config: the line itself, or ``file:PATH`` of a file that holds it.

    Raises:
        KeyFileError: no recipient there.
    """
    if text.startswith('file:'):
        path = text[len('file:') :]
        text = only_line(read_file(path, 'recipient file'), path, 'recipient file')
    return Recipient.from_text(text)


def _mark(kind: str) -> bytes:
    return next(mark for mark, found in _TEXT_KINDS.items() if found == kind)


@unseen
def _read(text: str, prefix: str, what: str, lengths: dict[str, int]) -> tuple[str, bytes]:
    raw = read_text(text, prefix, what)
    kind = _TEXT_KINDS.get(raw[:1], '')
    if lengths.get(kind) != len(raw) - 1:
        raise KeyFileError(f'this {what} is of a kind that this release does not know')
    return kind, raw[1:]


def _public_key(kind: str, public: bytes) -> Any:
    if len(public) != _PUBLIC_BYTES[kind]:
        raise ValueError
    x25519 = X25519PublicKey.from_public_bytes(public[-KEY_BYTES:])
    if kind == X25519:
        return x25519
    return MLKEM768X25519PublicKey(MLKEM768PublicKey.from_public_bytes(public[:-KEY_BYTES]), x25519)
