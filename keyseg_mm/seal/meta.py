"""What a file says of itself beside its tensors: which values count, and the MAC over them."""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from typing import Any, Protocol

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from keyseg_mm.envelope import Seal
from keyseg_mm.errors import IntegrityError

_META = 'keyseg_mm/meta/v1'
_encoder = json.JSONEncoder(sort_keys=True, separators=(',', ':'))


class Content(Protocol):
    """A content key: 32 secret bytes that are drawn afresh for each file, of which all keys of the seal are made."""

    def subkey(self, label: str, fields: list[object], salt: bytes) -> bytes:
        """32 bytes for one purpose, by HKDF-SHA256 (RFC 5869)."""


def canonical(value: Any) -> bytes:
    """JSON in its one form: ASCII, names in order, no spaces."""
    return _encoder.encode(value).encode('ascii')


def plain_values(value: Any) -> Any:
    """What JSON can say of a value: text, numbers, ``None``, and dicts with text keys, lists and tuples of them.

    What it cannot is left out of a dict or a list, and is ``None`` by itself. A tuple becomes a list. What writes a
    file's meta as JSON has to write these, so that the seal fits what is read from there.
    """
    if isinstance(value, Mapping):
        return {str(k): plain_values(v) for k, v in value.items() if isinstance(k, str) and _is_plain(v)}
    if isinstance(value, (list, tuple)):
        return [plain_values(v) for v in value if _is_plain(v)]
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return None


def meta_mac(content: Content, meta: Mapping[str, Any] | None) -> bytes:
    """HMAC-SHA256 (RFC 2104) of a file's plain meta values; empty for a file without any."""
    plain = plain_values(meta) if isinstance(meta, Mapping) else {}
    if not plain:
        return b''
    mac = HMAC(content.subkey(_META, [], b''), SHA256())
    mac.update(canonical(plain))
    return mac.finalize()


def check_meta(content: Content, seal: Seal, meta: Mapping[str, Any] | None) -> None:
    """A file that lost its meta opens; one whose meta are others does not.

    Raises:
        IntegrityError: they are others.
    """
    found = meta_mac(content, meta)
    if found and not hmac.compare_digest(found, seal.meta):
        raise IntegrityError('the meta values of this file were altered after it was sealed; take a copy of the file')


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float, Mapping, list, tuple))
