"""A checkpoint as it was read, without its seal, and what of it may be written again.

What is sealed keeps all that was in the file. What is written in the open keeps ``meta`` and ``state_dict`` alone: a
training checkpoint holds weights in more places than one (the EMA copy, the optimizer's momentum), so what may be
written in the open is listed, and the rest is dropped, and named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from keyseg_mm.checkpoint.files import read_checkpoint, write_checkpoint
from keyseg_mm.envelope import SEALED
from keyseg_mm.keys.identity import Key
from keyseg_mm.locking import fit
from keyseg_mm.seal.sections import WEIGHTS, Sealing, seal_checkpoint, sealed_stamp, unseal_checkpoint
from keyseg_mm.stamp import Stamp

_PLAIN_VALUES = (str, int, float, bool, type(None))


@dataclass
class Opened:
    """A checkpoint as it was read.

    Attributes:
        state_dict: its weights.
        meta: what it says of them: plain values only.
        others: its other sections that hold nothing but tensors and plain values; written only under a seal.
        dropped: what else was in the file, by name.
        stamp: of the file's seal; None where it has none.
    """

    state_dict: dict[str, Any]
    meta: dict[str, Any]
    others: dict[str, Any] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    stamp: Stamp | None = None

    @property
    def mode(self) -> str:
        """How the file is sealed, or is to be."""
        return self.stamp.seal.mode if self.stamp is not None and self.stamp.seal is not None else SEALED

    def fit(self, model: nn.Module) -> None:
        """Keep the weights that a model knows; see :func:`keyseg_mm.locking.fitting.fit`.

        Raises:
            LockError: they do not fit it.
        """
        weights = fit(self.state_dict, model, drop=True)
        unknown = [name for name in self.state_dict if name.removeprefix('module.') not in weights]
        self.dropped = (*self.dropped, *(f'{WEIGHTS}.{name}' for name in unknown))
        self.state_dict = weights

    def drop_others(self) -> None:
        """Keep weights and meta alone."""
        self.dropped, self.others = (*self.others, *self.dropped), {}

    def write(self, path: str | Path, how: Sealing | None, overwrite: bool) -> None:
        """Write it, sealed, or in the open and then readable by its owner only.

        Args:
            path: file to make; see :func:`keyseg_mm.checkpoint.files.write_checkpoint`.
            how: for whom. Its tensors' memory is overwritten.
            overwrite: replace an existing file.
        """
        content = self._content() if how is None else self.sealed(how)
        weights, meta = content.pop(WEIGHTS), content.pop('meta')
        write_checkpoint(path, weights, meta, overwrite, content, private=how is None)

    def sealed(self, how: Sealing) -> dict[str, Any]:
        """All of it, sealed. Its tensors' memory is overwritten."""
        return seal_checkpoint(self._content(), how, own=True)

    def _content(self) -> dict[str, Any]:
        return {'meta': self.meta, WEIGHTS: self.state_dict, **self.others}


def open_checkpoint(path: str | Path, key: Key | None = None, check: bool = True, mapped: bool = False) -> Opened:
    """Read a checkpoint, take its seal off where a key is given, and keep of it what may be written again.

    Raises:
        KeyMismatchError: it is sealed to others.
        IntegrityError: it was altered.
    """
    return opened_of(read_checkpoint(path, mapped), key, check, own=True)


def opened_of(content: dict[str, Any], key: Key | None = None, check: bool = True, own: bool = False) -> Opened:
    """:func:`open_checkpoint` of what was read; ``own``: its tensors' memory may be overwritten."""
    stamp = sealed_stamp(content[WEIGHTS])
    content = dict(content) if key is None else unseal_checkpoint(key, content, own=own, verify=check)
    state_dict, meta = content.pop(WEIGHTS), content.pop('meta', None)
    meta = dict(meta) if isinstance(meta, Mapping) else {}
    kept = {name: value for name, value in meta.items() if _is_plain(value)}
    others = {name: value for name, value in content.items() if _is_plain(value, Tensor)}
    dropped = [name for name in content if name not in others]
    dropped += [f'meta.{name}' for name in meta if name not in kept]
    return Opened(state_dict, kept, others, tuple(map(str, dropped)), stamp)


def _is_plain(value: Any, *also: type) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(name, _PLAIN_VALUES) and _is_plain(item, *also) for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item, *also) for item in value)
    return isinstance(value, (*_PLAIN_VALUES, *also))
