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
RIGHT, NONE = 'right', 'none'
DONE, NOT_APPLICABLE, FAILED = 'done', 'not applicable', 'failed'


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


@dataclass
class Row:
    """What is known of a method.

    Attributes:
        name, title: of the method.
        status: done, not applicable or failed; ``why`` says why.
        miou: in percent, by who tested: ``right``, ``none``, ``wrong-1`` and so on.
        key_space: log2 of the number of its tables; None where they cannot be counted, or are none.
        seconds: of the host's test with the right key, for each photo.
        advantage, audit: what the audit found, in mIoU points and in words; in words alone where it refused.
    """

    name: str
    title: str
    status: str = DONE
    why: str = ''
    miou: dict[str, float] = field(default_factory=dict)
    key_space: float | None = None
    seconds: float | None = None
    advantage: float | None = None
    audit: str = ''

    def fail(self, why: str, status: str = FAILED) -> None:
        """Note why the row ends here."""
        self.status, self.why = status, why

    @property
    def right(self) -> float | None:
        """mIoU with the right key, as far as it was tested."""
        return self.miou.get(RIGHT)

    @property
    def worst(self) -> float | None:
        """The most that a wrong key gives."""
        return max((value for who, value in self.miou.items() if who not in (RIGHT, NONE)), default=None)


@dataclass(frozen=True)
class Options:
    """What all results of a comparison depend on, besides what its config says."""

    config: str  # path of the plain config
    cfg_options: Sequence[str]  # put into it
    plain: str | None  # path of a trained plain checkpoint, if there is one
    key: str  # locator of the comparison's own key
    seed: int  # of training and audit
    suite: str  # of the audit, or ``none``
    wrong_keys: int  # how many
