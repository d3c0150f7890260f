"""Where the text of a key comes from: small files, in whatever coding, and the environment."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from keyseg_mm.errors import KeyFileError
from keyseg_mm.keys.secret import Text, unseen

_LARGEST = 64 * 1024  # bytes
_MARKED = {codecs.BOM_UTF8: 'utf-8-sig', codecs.BOM_UTF16_LE: 'utf-16', codecs.BOM_UTF16_BE: 'utf-16'}
_taken: dict[str, Text] = {}  # by the name of the variable


@unseen
def read_file(path: str | os.PathLike[str], what: str, way_out: str = '') -> bytes:
    """A small file's bytes; ``~`` is the user's folder.

    Args:
        path: the file.
        what: it is, for the message.
        way_out: where it cannot be read, for the message.

    Raises:
        KeyFileError: it cannot be read.
    """
    try:
        with open(Path(path).expanduser(), 'rb') as file:
            return file.read(_LARGEST + 1)
    except (OSError, ValueError, RuntimeError) as error:  # of names that no file has, and of nobody's folder
        why = getattr(error, 'strerror', None) or str(error)
        raise KeyFileError(f'could not read the {what} {path}: {why}{way_out}') from None


def text_of(content: bytes) -> str:
    """A file's text: in UTF-8, or UTF-16 with a byte order mark, as some shells write it.

    Raises:
        UnicodeDecodeError: it is none.
    """
    return content.decode(next((name for mark, name in _MARKED.items() if content.startswith(mark)), 'utf-8'))


@unseen
def only_line(content: bytes | str, where: str, what: str) -> str:
    """The one line of a text that is no comment.

    Args:
        content: the text.
        where: it was found, for the message.
        what: it is said to be.

    Raises:
        KeyFileError: there is no such line, or there are several. The content is never quoted.
    """
    try:
        if isinstance(content, bytes):
            content = '' if len(content) > _LARGEST else text_of(content)
        lines = [line.strip().strip('\'"') for line in content.splitlines()]
    except UnicodeDecodeError:
        lines = []
    lines = [line for line in lines if line and not line.startswith('#')]
    if len(lines) != 1:
        raise KeyFileError(f'{where} is no {what}: one has a single line that is not a comment')
    return lines[0]


@unseen
def from_environment(name: str) -> Text | None:
    """The secret in a variable of the environment; None where there is none.

    It is taken out of there, since every process that this one starts would inherit it (data loaders' workers, say),
    and kept: asked again, this process and those that are forked from it know it still.
    """
    try:
        if name in os.environ:
            _taken[name] = Text(os.environ.pop(name), f'of {name}')
    except ValueError:  # a name that no variable has
        return None
    return _taken.get(name)


@contextmanager
def handed_on() -> Iterator[None]:
    """Let processes that are started meanwhile, and need the same keys, inherit them."""
    os.environ.update({name: text.reveal() for name, text in _taken.items()})
    try:
        yield
    finally:
        for name in _taken:
            os.environ.pop(name, None)
