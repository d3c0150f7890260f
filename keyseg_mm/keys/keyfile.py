"""Key files: one key or identity, readable by its owner only, on request sealed with a passphrase.

A plain key file holds comments (``#``) and one line with its text form. A sealed one holds one line of JSON
instead: the key under ChaCha20-Poly1305 (RFC 8439) with a key from scrypt (RFC 7914) over the passphrase.
"""

from __future__ import annotations

import base64
import json
import os
import stat
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from keyseg_mm.atomic import write_new
from keyseg_mm.errors import KeyFileError
from keyseg_mm.keys.identity import Identity, Key, read_key

SEALED_FORMAT = 'keyseg_mm sealed key'
PASSPHRASE_VARIABLE = 'KEYSEG_PASSPHRASE'
# 128 MiB and about 0.3 s a guess: the cost OWASP's password storage cheat sheet names for scrypt.
SCRYPT_COST = {'n': 2**17, 'r': 8, 'p': 1}
_LARGEST_COST = {'n': 2**20, 'r': 16, 'p': 4}  # what a file may ask for, so that a bad one cannot exhaust the machine
_LARGEST_FILE = 64 * 1024

AskPassphrase = Callable[[str], str]


def write_key_file(path: str | os.PathLike[str], key: Key, passphrase: str | None = None, comment: str = '') -> None:
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
    line = _key_line(path)
    if line.startswith('{'):
        passphrase = (ask_passphrase or _passphrase_of_environment)(str(path))
        return _unseal(path, line, passphrase)
    try:
        return read_key(line)
    except KeyFileError as error:
        raise KeyFileError(f'{path}: {error}') from None


def readable_by_others(path: str | os.PathLike[str]) -> bool:
    """Whether the file's mode lets users other than its owner read it."""
    return os.name == 'posix' and bool(stat.S_IMODE(os.stat(path).st_mode) & 0o077)


def _key_line(path: str | os.PathLike[str]) -> str:
    try:
        with open(path, 'rb') as file:
            content = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise KeyFileError(
            f'could not read the key file {path}: {error.strerror}; make a key with: keyseg keygen --out {path}'
        ) from None
    try:
        lines = [line.strip() for line in content.decode('utf-8').splitlines()]
    except UnicodeDecodeError:
        lines = []
    lines = [line for line in lines if line and not line.startswith('#')]
    if len(content) > _LARGEST_FILE or len(lines) != 1:
        raise KeyFileError(f'{path} is no key file: one has a single line that is not a comment')
    return lines[0]


def _passphrase_of_environment(path: str) -> str:
    passphrase = os.environ.get(PASSPHRASE_VARIABLE)
    if passphrase is None:
        raise KeyFileError(
            f'{path} is sealed with a passphrase; put it into the environment variable {PASSPHRASE_VARIABLE}'
        )
    return passphrase


def _stretch(passphrase: str, salt: bytes, cost: dict[str, int]) -> ChaCha20Poly1305:
    return ChaCha20Poly1305(Scrypt(salt=salt, length=32, **cost).derive(passphrase.encode('utf-8')))


def _seal(key: Key, passphrase: str) -> str:
    if not passphrase:
        raise KeyFileError('an empty passphrase protects nothing; give one, or none at all for a plain key file')
    salt, nonce = os.urandom(16), os.urandom(12)
    sealed = _stretch(passphrase, salt, SCRYPT_COST).encrypt(nonce, key.to_text().encode(), SEALED_FORMAT.encode())
    fields: dict[str, Any] = {'format': SEALED_FORMAT, 'version': 1, 'kdf': 'scrypt', **SCRYPT_COST}
    for name, value in (('salt', salt), ('nonce', nonce), ('sealed', sealed)):
        fields[name] = base64.b64encode(value).decode()
    return json.dumps(fields)


def _unseal(path: str | os.PathLike[str], line: str, passphrase: str) -> Key:
    try:
        fields = json.loads(line)
        known = fields['format'] == SEALED_FORMAT and fields['version'] == 1 and fields['kdf'] == 'scrypt'
        cost = {name: int(fields[name]) for name in SCRYPT_COST}
        salt, nonce, sealed = (base64.b64decode(fields[name], validate=True) for name in ('salt', 'nonce', 'sealed'))
    except (ValueError, KeyError, TypeError):
        raise KeyFileError(f'{path} is a damaged sealed key file; restore it from a copy') from None
    if not known or len(nonce) != 12 or any(not 1 <= cost[name] <= _LARGEST_COST[name] for name in cost):
        raise KeyFileError(f'{path} is sealed in a way that this release does not read')
    try:
        text = _stretch(passphrase, salt, cost).decrypt(nonce, sealed, SEALED_FORMAT.encode()).decode()
    except (InvalidTag, ValueError):
        raise KeyFileError(f'{path}: the passphrase is wrong, or the file is damaged') from None
    return read_key(text)


def default_comment(path: str | os.PathLike[str]) -> str:
    """How a config names this key file."""
    return f"in a config: key='file:{Path(path)}'"
