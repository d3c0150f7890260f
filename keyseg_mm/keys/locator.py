"""Key locators: how configs and command lines name a key without holding it.

``file:PATH``, ``env:NAME``, ``keyring:NAME``, ``cmd:COMMAND ...`` (what a program prints, a vault's client, say; run
without a shell), ``-`` (standard input, tools only), ``none`` (run unauthorised, on purpose) and ``random:SEED`` (a
wrong key, on purpose). Each leads to a key or to a customer's identity. Configs are dumped to logs, work folders,
checkpoints and visualizer backends, so a secret typed into one is refused: it is burnt already.

``env:NAME`` takes the variable out of the environment as it is followed, so that no child process inherits it. This
process and its forks can follow it again; so can every process of torchrun, srun or mpirun, which has an environment of
its own. What this process spawns later (loaders' workers by ``spawn``, ``torch.multiprocessing.spawn``) cannot: name
the key to those as ``file:`` or ``cmd:``.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from keyseg_mm.errors import KeyFileError, SecretExposedError
from keyseg_mm.keys.content import from_environment
from keyseg_mm.keys.identity import IDENTITY_PREFIX, Identity, Key
from keyseg_mm.keys.key import TEXT_PREFIX, SecretKey, wrong_key
from keyseg_mm.keys.keyfile import AskPassphrase, parse_key, read_key_file
from keyseg_mm.keys.secret import unseen

FORMS = 'file:PATH, env:NAME, keyring:NAME, cmd:COMMAND, none or random:SEED'
KEYRING_SERVICE = 'keyseg_mm'
_PATIENCE = 120  # seconds that a program may take, asking its user something too
_AROUND = re.compile(r'0x|[\W_]')  # what may stand between the letters and digits of a key
_PREFIXES = [_AROUND.sub('', prefix) for prefix in (TEXT_PREFIX, IDENTITY_PREFIX)]
_BETWEEN = re.compile(r'[^A-Za-z0-9+/_-]+')
_SHAPE = re.compile('[0-9A-Fa-f]{64}|[A-Z2-7]{52}|[A-Za-z2-7]{64}|[A-Za-z0-9+/_-]{43}')
_NAMED = re.compile(r"""\bkey['"]?\s*[=:]\s*""")


@dataclass(frozen=True)
class LocatedKey:
    """What a locator led to.

    Attributes:
        key: the key, or None for ``none``.
        deliberate: the locator asks for an unauthorised run on purpose (``none`` or ``random:SEED``).
    """

    key: Key | None
    deliberate: bool = False


@unseen
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
    if isinstance(locator, (list, tuple)):
        raise KeyFileError(
            "key takes one locator. If there is a comma in it: the host's --cfg-options cuts texts there, and drops "
            'blanks; `keyseg train` and `keyseg test` do not, nor does a config'
        )
    if not isinstance(locator, str) or not locator.strip():
        raise KeyFileError(f'no key given; key takes a locator: {FORMS}')
    locator = locator.strip()
    refuse_secret(locator)
    if locator == 'none':
        return LocatedKey(None, deliberate=True)
    if locator == '-':
        if not stdin:
            raise KeyFileError(f"key='-' (standard input) works on the command line only; use {FORMS}")
        lines = (line for line in sys.stdin if line.strip() and not line.startswith('#'))
        return LocatedKey(parse_key(next(lines, ''), 'standard input', ask_passphrase))
    return LocatedKey(*_follow(locator, ask_passphrase))


def _follow(locator: str, ask_passphrase: AskPassphrase | None) -> tuple[Key, bool]:
    """The key, and whether it is wrong on purpose."""
    scheme, _, rest = locator.partition(':')
    sources: dict[str, Callable[[str], str | bytes]]
    sources = {'env': _of_environment, 'keyring': _of_keyring, 'cmd': _of_command}
    if scheme == 'random':
        return wrong_key(rest), True
    if scheme not in ('file', *sources) or not rest:
        # not quoted: it may be a secret in a form that refuse_secret does not know
        raise KeyFileError(f'this key locator is not understood; key takes {FORMS}')
    if scheme == 'file':
        return read_key_file(rest, ask_passphrase), False
    if scheme != 'cmd':
        refuse_secret(rest)
    return parse_key(sources[scheme](rest), locator, ask_passphrase), False


@unseen
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


@unseen
def refuse_secret(text: str, by_shape: bool = True) -> None:
    """Refuse text that holds a key, wherever in it and in whatever case.

    Args:
        text: what was given.
        by_shape: also refuse what only looks like a key's bytes in hex, base32 or base64, where nothing else is to be
            expected.

    Raises:
        SecretExposedError: the text holds a key. It is not quoted.
    """
    squeezed = _AROUND.sub('', text).upper()
    shapes = [] if not by_shape or is_locator(text) else [squeezed, *_BETWEEN.split(text)]
    if any(prefix in squeezed for prefix in _PREFIXES) or any(map(_SHAPE.fullmatch, shapes)):
        raise SecretExposedError(
            'a secret was typed where a key locator belongs. Configs and command lines are written to logs and '
            'checkpoints, so take this key for burnt: make a new one with `keyseg keygen --out FILE`, name it as '
            "key='file:FILE', and protect again whatever the old one protected"
        )


def refuse_typed(arguments: Iterable[str]) -> None:
    """Refuse arguments of a command line that hold a key, or what looks like one as the value of a ``key``.

    Raises:
        SecretExposedError: one does. It is not quoted.
    """
    for argument in arguments:
        refuse_secret(argument, by_shape=False)
        for named in _NAMED.finditer(argument):
            refuse_secret(argument[named.end() :].strip('\'"'))


def refuse_written(config: Any, name: str = '') -> None:
    """Refuse a config's values that hold a key, or look like one where they are called ``key``.

    Raises:
        SecretExposedError: one does. It is not quoted.
    """
    if isinstance(config, str):
        refuse_secret(config, by_shape=name == 'key')
    elif isinstance(config, (dict, list, tuple)):
        for inner, value in config.items() if isinstance(config, dict) else ((name, value) for value in config):
            refuse_written(value, str(inner))


def is_locator(text: str) -> bool:
    """Whether a text begins as the locators do that lead to something."""
    return text.partition(':')[0] in ('file', 'env', 'keyring', 'cmd', 'random')


def _of_command(command: str) -> bytes:
    """What a program prints: the key's text. Its standard error goes to the terminal, its output nowhere else."""
    try:
        words = shlex.split(command)
        done = subprocess.run(words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, timeout=_PATIENCE, check=False)
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired) as error:
        why = getattr(error, 'strerror', None) or type(error).__name__
        raise KeyFileError(f'cmd:{command}: the program could not be run ({why})') from None
    if done.returncode:
        raise KeyFileError(f'cmd:{command}: the program ended with status {done.returncode}')
    return done.stdout


def _of_environment(name: str) -> str:
    found = from_environment(name)
    if found is None:
        raise KeyFileError(
            f'no key at env:{name}: nothing of that name is set. The process that reads it takes it out of its '
            'environment, and what it starts anew (spawned workers) cannot follow it; file: and cmd: can be followed'
        )
    return found.reveal()


def _of_keyring(name: str) -> str:
    try:
        import keyring
    except ImportError:
        raise KeyFileError('keyring:NAME needs the package keyring: pip install keyring') from None
    try:
        found: str | None = keyring.get_password(KEYRING_SERVICE, name)
    except keyring.errors.KeyringError as error:
        raise KeyFileError(f'the system keyring did not answer ({type(error).__name__})') from None
    if found is None:
        raise KeyFileError(f'no key at keyring:{name}: nothing of that name is set')
    return found
