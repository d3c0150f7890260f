"""What is public of an image encryption: method, block size, key id and salt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from keyseg_mm.errors import StampError, TransformError
from keyseg_mm.stamp import SALT_BYTES

METHODS = {
    'SHF': 'the values of a block change places, across colours too',
    'NP': 'a secret half of the places of a block holds 255 - p for p',
    'FFX': 'a secret half of the places of a block holds the format-preserving encryption of p',
}
LARGEST_BLOCK = 64
META = 'keyseg_mm images'  # entry of a checkpoint's meta


@dataclass(frozen=True)
class ImagePlan:
    """How images are encrypted, and with whose key; all public.

    Attributes:
        method: one of :data:`METHODS`.
        block: side of a block, in pixels.
        key_id: public id of the key.
        salt: 16 public bytes, or none (empty).
    """

    method: str
    block: int
    key_id: str
    salt: bytes = b''

    def __str__(self) -> str:
        return f'{self.method}, block {self.block}, key id {self.key_id}, salt {self.salt.hex() or "none"}'

    def to_meta(self) -> dict[str, Any]:
        """As plain values, for a checkpoint's ``meta``."""
        return {
            'version': 1,
            'method': self.method,
            'block': self.block,
            'key_id': self.key_id,
            'salt': self.salt.hex(),
        }


def check_method(method: object, block: object) -> None:
    """Refuse a method or block size that there is not.

    Raises:
        TransformError: with what there is.
    """
    if method not in METHODS:
        raise TransformError(f'no image encryption {method!r}; there are {", ".join(METHODS)}')
    if not isinstance(block, int) or isinstance(block, bool) or not 1 <= block <= LARGEST_BLOCK:
        raise TransformError(f'image encryption: block is a whole number from 1 to {LARGEST_BLOCK}, not {block!r}')


def read_salt(text: object) -> bytes:
    """A salt as configs write it: 32 hex digits, or None for none.

    Raises:
        TransformError: it is something else.
    """
    try:
        salt = bytes.fromhex(text) if isinstance(text, str) else b''
    except ValueError:
        salt = b''
    if text is not None and len(salt) != SALT_BYTES:
        raise TransformError(f'image encryption: salt is {2 * SALT_BYTES} hex digits, or None')
    return salt


def plans_in_meta(meta: Any) -> tuple[ImagePlan, ...]:
    """The image encryptions that a checkpoint's ``meta`` tells of, in their order; empty where it tells of none.

    Raises:
        StampError: the entry is damaged, or of another version.
    """
    try:
        found = meta.get(META, ()) if isinstance(meta, Mapping) else ()
        if any(item['version'] != 1 for item in found):
            raise StampError('the images of this checkpoint are described in a later format: install a newer keyseg_mm')
        plans = tuple(ImagePlan(i['method'], i['block'], str(i['key_id']), bytes.fromhex(i['salt'])) for i in found)
        for plan in plans:
            check_method(plan.method, plan.block)
    except StampError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, TransformError):
        raise StampError('what this checkpoint says of its images is damaged; restore the file from a copy') from None
    return plans


def only_plan_in_meta(meta: Any) -> ImagePlan | None:
    """The one image encryption that a checkpoint's ``meta`` tells of; None where it tells of none.

    Raises:
        StampError: as of :func:`plans_in_meta`, or it tells of several.
    """
    plans = set(plans_in_meta(meta))
    if len(plans) > 1:
        raise StampError(f'this checkpoint was trained on images of {len(plans)} encryptions; an audit takes one')
    return next(iter(plans), None)
