"""Secrets wrapped in a stamp's envelope for each recipient, and taken out of it again; no torch.

The envelope of a stamp holds the secret that a model's tables are derived from, and, in a file, the key of its cipher.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace

from keyseg_mm.envelope import Wrapped
from keyseg_mm.errors import IntegrityError, KeyMismatchError
from keyseg_mm.keys.derive import hkdf
from keyseg_mm.keys.identity import Key, Recipient
from keyseg_mm.keys.key import ALTERED_ENVELOPE, KEY_BYTES, ContentKey, FeatureSecret
from keyseg_mm.keys.secret import unseen
from keyseg_mm.stamp import Stamp


@dataclass(frozen=True)
class Secrets:
    """What an envelope holds.

    Attributes:
        features: what the model's tables are derived from.
        content: key of the file's cipher; None in memory.
    """

    features: FeatureSecret
    content: ContentKey | None = None

    @property
    def payload(self) -> bytes:
        """The bytes that are wrapped."""
        return b''.join(secret.material for secret in (self.features, self.content) if secret is not None)


def check_key(key: Key, stamp: Stamp) -> None:
    """Refuse a stamp of other keys.

    Raises:
        KeyMismatchError: with the public ids of all.
    """
    if key.id not in stamp.key_ids:
        raise KeyMismatchError(
            f'this checkpoint is protected with key {" or ".join(stamp.key_ids)}, and the key given is {key.id}'
        )


@unseen
def open_envelope(key: Key, stamp: Stamp, check: bool = True) -> Secrets:
    """The secrets of a stamp.

    Args:
        key: of one of its recipients.
        stamp: the stamp.
        check: refuse a stamp without an envelope, which anybody could have written.

    Raises:
        KeyMismatchError: it is of other keys.
        IntegrityError: stamp or envelope were altered, or the seal that belongs to them is gone.
    """
    check_key(key, stamp)
    if not stamp.recipients:
        if check:
            raise IntegrityError(
                'this checkpoint carries a stamp without an envelope: it was altered, or not written by keyseg_mm; '
                'take a copy from where it was made. To run it nevertheless: protection.verify=False, or --no-verify'
            )
        return Secrets(key.features(stamp.salt))
    line = next(line for line in stamp.recipients if line.id == key.id)
    payload = key.unwrap(line.data, _context(stamp, line.id))
    if len(payload) % KEY_BYTES or not hmac.compare_digest(_commitment(stamp, payload), stamp.commitment):
        raise IntegrityError(ALTERED_ENVELOPE)
    features, content = payload[:KEY_BYTES], payload[KEY_BYTES:]
    if content and stamp.seal is None:
        raise IntegrityError('the seal of this checkpoint was taken off; take a copy from where it was made')
    return Secrets(FeatureSecret(features), ContentKey(content) if content else None)


@unseen
def close_envelope(stamp: Stamp, secrets: Secrets, recipients: Iterable[Key | Recipient]) -> Stamp:
    """The stamp with its secrets wrapped for each recipient, the first of whom names it.

    It commits to the secrets (HKDF-SHA256), which AES-GCM does not do by itself: so all recipients open the same model.
    Wrapped secrets are bound to all else that the stamp says, so that only who has a key can say it.
    """
    opening = list({key.recipient.id: key.recipient for key in recipients}.values())
    stamp = replace(
        stamp, key_id=opening[0].id, recipients=(), commitment=_commitment(stamp, secrets.payload), seal=None
    )
    lines = [Wrapped(to.id, to.kind, to.wrap(secrets.payload, _context(stamp, to.id))) for to in opening]
    return replace(stamp, recipients=tuple(lines))


def memory_stamp(key: Key, stamp: Stamp, features: FeatureSecret) -> Stamp:
    """The stamp as it travels in a state_dict in memory: for the key alone, without a seal."""
    return close_envelope(stamp, Secrets(features), [key])


def _commitment(stamp: Stamp, payload: bytes) -> str:
    return hkdf(payload, 'keyseg_mm/commitment/v1', [], stamp.salt).hex()


def _context(stamp: Stamp, recipient: str) -> bytes:
    """What a wrapped secret is bound to: it is of no use in another stamp, or for another recipient."""
    said = replace(stamp, recipients=(), seal=None, commitment='').to_json()
    return json.dumps(['keyseg_mm/envelope/v1', recipient, stamp.commitment, said], separators=(',', ':')).encode()
