"""The methods that a comparison compares, from published papers and from this package: ``methods.json`` lists them."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from keyseg_mm.errors import KeysegError

PLAIN = 'plain'


@dataclass(frozen=True)
class Method:
    """One way of protecting a model.

    Attributes:
        name: for the command line and for folders.
        title: for tables.
        does: what it does.
        lacks: what it does not do.
        source: where it was published.
        protects: ``nothing``, ``images``, ``features``, ``patches`` or ``weights``.
        lock: options of the ``keyseg lock`` that makes it from the plain checkpoint; empty where it is trained.
        points, transform: which feature maps it encrypts, and how.
        cipher, block: how it encrypts images.
    """

    name: str
    title: str
    does: str
    lacks: str
    source: str
    protects: str = 'nothing'
    lock: tuple[str, ...] = ()
    points: str = ''
    transform: Mapping[str, Any] = field(default_factory=dict)
    cipher: str = ''
    block: int = 0

    def sized(self, block: int) -> Method:
        """The same for blocks of another size; of a method that has blocks, without one."""
        return replace(self, name=f'{self.name}-{block}', title=f'{self.title}, block {block}', block=block)


def _read() -> Iterator[tuple[Method, Sequence[int]]]:
    """Each method, and the sizes of blocks that it is tried with where none is asked for."""
    for name, entry in json.loads(Path(__file__).with_name('methods.json').read_text(encoding='utf-8')).items():
        blocks, lock = entry.pop('blocks', ()), tuple(entry.pop('lock', ()))
        yield Method(name, lock=lock, **entry), blocks


_SIZED = {method.name: method for method, blocks in _read() if blocks}
METHODS: dict[str, Method] = {
    found.name: found for method, blocks in _read() for found in (map(method.sized, blocks) if blocks else [method])
}


def pick(wanted: Sequence[str] | None = None) -> list[Method]:
    """The methods that a user asks for; the plain model, by which all are measured, comes first, asked for or not.

    Args:
        wanted: names, and patterns as ``'lock-*'``; image methods are known at any block size, as ``image-shf-8``.
            None for all.

    Raises:
        KeysegError: one that matches nothing.
    """
    chosen = {PLAIN: METHODS[PLAIN]}
    for text in METHODS if wanted is None else wanted:
        found = [method for name, method in METHODS.items() if fnmatch.fnmatchcase(name, text)]
        sized = re.fullmatch(r'(.+)-([1-9]\d*)', text)
        if not found and sized and sized[1] in _SIZED:
            found = [_SIZED[sized[1]].sized(int(sized[2]))]
        if not found:
            raise KeysegError(f'no method {text!r}; there are {", ".join(METHODS)}')
        chosen.update({method.name: method for method in found})
    return list(chosen.values())
