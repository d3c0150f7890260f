"""Key files: one key or identity, readable by its owner only, on request sealed with a passphrase.

A plain key file holds comments (``#``) and one line with its text form. A sealed one holds one line of JSON
instead: the key under ChaCha20-Poly1305 (RFC 8439) with a key from scrypt (RFC 7914) over the passphrase.
"""

from __future__ import annotations

import base64
import json
import math
import os
import stat
import unicodedata
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from keyseg_mm.atomic import write_new
from keyseg_mm.errors import KeyFileError
from keyseg_mm.keys.content import from_environment, only_line, read_file
from keyseg_mm.keys.identity import Identity, Key, read_key
from keyseg_mm.keys.secret import Text, unseen

SEALED_FORMAT = 'keyseg_mm sealed key'
PASSPHRASE_VARIABLE = 'KEYSEG_PASSPHRASE'
# 128 MiB and about 0.3 s a guess: the cost OWASP's password storage cheat sheet names for scrypt.
SCRYPT_COST = {'n': 2**17, 'r': 8, 'p': 1}
# What a file may ask for, so that a bad one cannot exhaust the machine: n r p, four times as much. It takes 128 n r
# bytes, and a time in proportion to the product.
_LARGEST_WORK = 2**22

AskPassphrase = Callable[[str], str | Text]


@unseen
def write_key_file(
    path: str | os.PathLike[str], key: Key, passphrase: str | Text | None = None, comment: str = ''
) -> None:
    """Write a new key file, mode 0600, never over an existing file.

    Args:
        path: file to make.
        key: its key.
        passphrase: seal the key with it; None writes the text form.
        comment: a public line for the head of the file.
    """
    what = 'identity' if isinstance(key, Identity) else 'secret key'
    head = [f'keyseg_mm {what}: keep it as you keep a password', f'key id: {key.id}', f'made: {date.today()}']
    if isinstance(key, Identity):
        head.append(f'recipient, to be given away: {key.recipient.to_text()}')
    if comment:
        head.append(' '.join(comment.split()))
    body = key.to_text() if passphrase is None else _seal(key, passphrase)
    content = ''.join(f'# {line}\n' for line in head) + body + '\n'
    write_new(path, lambda file: file.write(content.encode()), mode=0o600)


def read_key_file(path: str | os.PathLike[str], ask_passphrase: AskPassphrase | None = None) -> Key:
    """The key, or the identity, of a key file.

    Args:
        path: plain or sealed key file.
        ask_passphrase: called with the path where the file is sealed; by default the environment variable
            ``KEYSEG_PASSPHRASE`` answers.

    Raises:
        KeyFileError: missing, unreadable, malformed, or the wrong passphrase. The content is never quoted.
    """
    way_out = (
        '; see whether the locator is right. What is protected already opens with its own key alone: ask its owner. To '
        f'protect something with a new key: keyseg keygen --out {path}'
    )
    return parse_key(read_file(path, 'key file', way_out), str(path), ask_passphrase)


@unseen
def parse_key(content: bytes | str, where: str, ask_passphrase: AskPassphrase | None = None) -> Key:
    """The key, or the identity, of a key file's content, wherever that comes from.

    Args:
        content: of a plain or sealed key file; its last line will do.
        where: it was found, for the message.
        ask_passphrase: see :func:`read_key_file`; called with ``where``.

    Raises:
        KeyFileError: malformed, or the wrong passphrase. The content is never quoted.
    """
    line = only_line(content, where, 'key file')
    if line.startswith('{'):
        return _unseal(where, line, (ask_passphrase or _passphrase_of_environment)(where))
    try:
        return read_key(line)
    except KeyFileError as error:
        raise KeyFileError(f'{where}: {error}') from None


def readable_by_others(path: str | os.PathLike[str]) -> bool:
    """Whether the file's mode lets users other than its owner read it."""
    return os.name == 'posix' and bool(stat.S_IMODE(os.stat(path).st_mode) & 0o077)


def _passphrase_of_environment(path: str) -> str | Text:
    passphrase = from_environment(PASSPHRASE_VARIABLE)
    if passphrase is None:
        raise KeyFileError(
            f'{path} is sealed with a passphrase; put it into the environment variable {PASSPHRASE_VARIABLE}'
        )
    return passphrase


def _stretch(passphrase: str | Text, salt: bytes, cost: dict[str, int]) -> ChaCha20Poly1305:
    text = unicodedata.normalize('NFC', passphrase.reveal() if isinstance(passphrase, Text) else passphrase)
    if not text:
        raise KeyFileError('an empty passphrase protects nothing; give one, or none at all for a plain key file')
    return ChaCha20Poly1305(Scrypt(salt=salt, length=32, **cost).derive(text.encode('utf-8', 'surrogatepass')))


def _seal(key: Key, passphrase: str | Text) -> str:
    salt, nonce = os.urandom(16), os.urandom(12)
    sealed = _stretch(passphrase, salt, SCRYPT_COST).encrypt(nonce, key.to_text().encode(), SEALED_FORMAT.encode())
    fields: dict[str, Any] = {'format': SEALED_FORMAT, 'version': 1, 'kdf': 'scrypt', **SCRYPT_COST}
    for name, value in (('salt', salt), ('nonce', nonce), ('sealed', sealed)):
        fields[name] = base64.b64encode(value).decode()
    return json.dumps(fields)


def _unseal(where: str, line: str, passphrase: str | Text) -> Key:
    try:
        fields = json.loads(line)
        known = fields['format'] == SEALED_FORMAT and fields['version'] == 1 and fields['kdf'] == 'scrypt'
        cost = {name: fields[name] for name in SCRYPT_COST}
        salt, nonce, sealed = (base64.b64decode(fields[name], validate=True) for name in ('salt', 'nonce', 'sealed'))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise KeyFileError(f'{where} is a damaged sealed key file; restore it from a copy') from None
    counts = all(type(value) is int and value > 0 for value in cost.values())
    if not known or not counts or math.prod(cost.values()) > _LARGEST_WORK or len(nonce) != 12:
        raise KeyFileError(f'{where} is sealed in a way that this release does not read')
    try:
        text = _stretch(passphrase, salt, cost).decrypt(nonce, sealed, SEALED_FORMAT.encode()).decode()
    except (InvalidTag, ValueError):
        raise KeyFileError(f'{where}: the passphrase is wrong, or the file is damaged') from None
    return read_key(text)


def default_comment(path: str | os.PathLike[str]) -> str:
    """How a config names this key file."""
    return f"in a config: key='file:{Path(path)}'"
