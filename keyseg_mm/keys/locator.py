"""Key locators: how configs and command lines name a key without holding it.

``file:PATH``, ``env:NAME``, ``keyring:NAME``, ``cmd:COMMAND ...`` (what a program prints, a vault's client, say; run
without a shell), ``-`` (standard input, tools only), ``none`` (run unauthorised, on purpose) and ``random:SEED`` (a
wrong key, on purpose). Each leads to a key or to a customer's identity. Configs are dumped to logs, work folders,
checkpoints and visualizer backends, so a secret typed into one is refused: it is burnt already.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from keyseg_mm.errors import KeyFileError, SecretExposedError
from keyseg_mm.keys.identity import IDENTITY_PREFIX, Identity, Key, read_key
from keyseg_mm.keys.key import TEXT_PREFIX, SecretKey, wrong_key
from keyseg_mm.keys.keyfile import AskPassphrase, read_key_file

FORMS = 'file:PATH, env:NAME, keyring:NAME, cmd:COMMAND, none or random:SEED'
KEYRING_SERVICE = 'keyseg_mm'
_PATIENCE = 120  # seconds that a program may take, asking its user something too


@dataclass(frozen=True)
class LocatedKey:
    """What a locator led to.

    Attributes:
        key: the key, or None for ``none``.
        deliberate: the locator asks for an unauthorised run on purpose (``none`` or ``random:SEED``).
    """

    key: Key | None
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
    if isinstance(locator, (SecretKey, Identity)):  # from Python code only: a config cannot hold one
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
        return LocatedKey(read_key(sys.stdin.readline()))
    scheme, _, rest = locator.partition(':')
    if scheme == 'random':
        return LocatedKey(wrong_key(rest), deliberate=True)
    if scheme == 'file' and rest:
        return LocatedKey(read_key_file(Path(rest).expanduser(), ask_passphrase))
    source = {'env': _of_environment, 'keyring': _of_keyring, 'cmd': _of_command}.get(scheme)
    if source is None or not rest:
        # not quoted: it may be a secret in a form that refuse_secret does not know
        raise KeyFileError(f'this key locator is not understood; key takes {FORMS}')
    return LocatedKey(_read_text(source, scheme, rest))


def locate_real(locator: object, option: str, ask_passphrase: AskPassphrase | None = None) -> Key:
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
    named = re.match(r'(file|env|keyring|cmd|random):', text)
    shape = r'(hex:|key:|base64:)?([0-9a-fA-F]{64}|[A-Za-z0-9+/_-]{43}=?)'
    if any(p.replace('-', '') in squeezed for p in (TEXT_PREFIX, IDENTITY_PREFIX)) or (
        by_shape and not named and re.fullmatch(shape, text)
    ):
        raise SecretExposedError(
            'a secret was typed where a key locator belongs. Configs and command lines are written to logs and '
            'checkpoints, so take this key for burnt: make a new one with `keyseg keygen --out FILE`, name it as '
            "key='file:FILE', and protect again whatever the old one protected"
        )


def _read_text(source: Callable[[str], str | None], scheme: str, name: str) -> Key:
    refuse_secret(name)
    text = source(name)
    if text is None:
        raise KeyFileError(f'no key at {scheme}:{name}: nothing of that name is set')
    try:
        return read_key(text)
    except KeyFileError as error:
        raise KeyFileError(f'{scheme}:{name}: {error}') from None


def _of_command(command: str) -> str:
    """What a program prints: the key's text. Its standard error goes to the terminal, its output nowhere else."""
    try:
        words = shlex.split(command)
        done = subprocess.run(words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, timeout=_PATIENCE, check=False)
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired) as error:
        why = getattr(error, 'strerror', None) or type(error).__name__
        raise KeyFileError(f'cmd:{command}: the program could not be run ({why})') from None
    if done.returncode:
        raise KeyFileError(f'cmd:{command}: the program ended with status {done.returncode}')
    return done.stdout.decode('utf-8', 'replace').strip()


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
