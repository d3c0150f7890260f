"""Key locators: how configs and command lines name a key without holding it.

``file:PATH``, ``env:NAME``, ``keyring:NAME``, ``-`` (standard input, tools only), ``none`` (run unauthorised, on
purpose) and ``random:SEED`` (a wrong key, on purpose). Configs are dumped to logs, work folders, checkpoints and
visualizer backends, so a secret typed into one is refused: it is burnt already.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from keyseg_mm.errors import KeyFileError, SecretExposedError
from keyseg_mm.keys.key import TEXT_PREFIX, SecretKey, wrong_key
from keyseg_mm.keys.keyfile import AskPassphrase, read_key_file

FORMS = 'file:PATH, env:NAME, keyring:NAME, none or random:SEED'
KEYRING_SERVICE = 'keyseg_mm'


@dataclass(frozen=True)
class LocatedKey:
    """What a locator led to.

    Attributes:
        key: the key, or None for ``none``.
        deliberate: the locator asks for an unauthorised run on purpose (``none`` or ``random:SEED``).
    """

    key: SecretKey | None
    deliberate: bool = False


def locate(locator: object, ask_passphrase: AskPassphrase | None = None, stdin: bool = False) -> LocatedKey:
    """Follow a key locator.

    Args:
        locator: one of the forms of this module's docstring.
        ask_passphrase: see :func:`keyseg_mm.keys.keyfile.read_key_file`.
        stdin: allow ``-``.

    Raises:
        SecretExposedError: a secret was given in place of a locator. It is not quoted.
        KeyFileError: no key there.
    """
    if isinstance(locator, SecretKey):  # from Python code only: a config cannot hold one
        return LocatedKey(locator)
    if not isinstance(locator, str) or not locator.strip():
        raise KeyFileError(f'no key given; key takes a locator: {FORMS}')
    locator = locator.strip()
    refuse_secret(locator)
    if locator == 'none':
        return LocatedKey(None, deliberate=True)
    if locator == '-':
        if not stdin:
            raise KeyFileError(f"key='-' (standard input) works on the command line only; use {FORMS}")
        return LocatedKey(SecretKey.from_text(sys.stdin.readline()))
    scheme, _, rest = locator.partition(':')
    if scheme == 'random':
        return LocatedKey(wrong_key(rest), deliberate=True)
    if scheme == 'file' and rest:
        return LocatedKey(read_key_file(Path(rest).expanduser(), ask_passphrase))
    source = {'env': _of_environment, 'keyring': _of_keyring}.get(scheme)
    if source is None or not rest:
        # not quoted: it may be a secret in a form that refuse_secret does not know
        raise KeyFileError(f'this key locator is not understood; key takes {FORMS}')
    return LocatedKey(_read_text(source, scheme, rest))


def locate_real(locator: object, option: str, ask_passphrase: AskPassphrase | None = None) -> SecretKey:
    """The key of a command line's locator, where no run without a key or with a wrong one is meant.

    Args:
        locator: from the command line, ``-`` included.
        option: its name, for the message.
        ask_passphrase: see :func:`locate`.

    Raises:
        KeyFileError: it leads to no key, or to one that is wrong on purpose.
    """
    found = locate(locator, ask_passphrase, stdin=True)
    if found.key is None or found.deliberate:
        raise KeyFileError(f'{option} takes the locator of a real key, as file:PATH')
    return found.key


def refuse_secret(text: str, by_shape: bool = True) -> None:
    """Refuse text that holds a key, wherever in it and in whatever case.

    Args:
        text: what was given.
        by_shape: also refuse what only looks like 32 bytes in hex or base64, where nothing else is to be expected.

    Raises:
        SecretExposedError: the text holds a key. It is not quoted.
    """
    squeezed = re.sub(r'[\s_-]', '', text).upper()
    named = re.match(r'(file|env|keyring|random):', text)
    shape = r'(hex:|key:|base64:)?([0-9a-fA-F]{64}|[A-Za-z0-9+/_-]{43}=?)'
    if TEXT_PREFIX.replace('-', '') in squeezed or (by_shape and not named and re.fullmatch(shape, text)):
        raise SecretExposedError(
            'a secret was typed where a key locator belongs. Configs and command lines are written to logs and '
            'checkpoints, so take this key for burnt: make a new one with `keyseg keygen --out FILE`, name it as '
            "key='file:FILE', and protect again whatever the old one protected"
        )


def _read_text(source: Callable[[str], str | None], scheme: str, name: str) -> SecretKey:
    refuse_secret(name)
    text = source(name)
    if text is None:
        raise KeyFileError(f'no key at {scheme}:{name}: nothing of that name is set')
    try:
        return SecretKey.from_text(text)
    except KeyFileError as error:
        raise KeyFileError(f'{scheme}:{name}: {error}') from None


def _of_environment(name: str) -> str | None:
    return os.environ.get(name)


def _of_keyring(name: str) -> str | None:
    try:
        import keyring
    except ImportError:
        raise KeyFileError('keyring:NAME needs the package keyring: pip install keyring') from None
    try:
        found: str | None = keyring.get_password(KEYRING_SERVICE, name)
        return found
    except keyring.errors.KeyringError as error:
        raise KeyFileError(f'the system keyring did not answer ({type(error).__name__})') from None
