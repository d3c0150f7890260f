"""Whole checkpoints sealed and opened: every section that holds tensors, each for itself.

A section is a value of the checkpoint's dict: ``state_dict``, ``ema_state_dict``, ``optimizer``. Each has a stamp of
its own, with envelope and seal, so that a tool which drops a section leaves a file that opens. The content key is fresh
for each file. In memory a section has no seal, and its stamp no content key.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from keyseg_mm.bind import stamp_tensor
from keyseg_mm.envelope import SEALED
from keyseg_mm.errors import IntegrityError, LockError
from keyseg_mm.keys.identity import Key, Recipient
from keyseg_mm.keys.key import ContentKey, FeatureSecret
from keyseg_mm.seal.memory import Put
from keyseg_mm.seal.meta import check_meta
from keyseg_mm.seal.nested import tensors_of, with_tensors
from keyseg_mm.seal.tensors import open_tensors, reseal_tensors, retag_tensors, seal_tensors
from keyseg_mm.stamp import Stamp, fresh_salt, is_stamp, stamps_of
from keyseg_mm.wrapping import Secrets, close_envelope, memory_stamp, open_envelope

WEIGHTS = 'state_dict'
_ROOM = 8192  # bytes: a stamp in a file is padded to a multiple, so that one for other recipients fits in its place
_WRAPPED = 'keyseg_mm value'  # holds a section that is no dict, whose tensors have no names to stand beside
_NOT_SEALED = 'this checkpoint has no seal: it was altered, or not written by keyseg_mm'


@dataclass(frozen=True)
class Sealing:
    """How files are written.

    Attributes:
        key: of whoever writes.
        recipients: who can open them; by default, whoever writes. The first one names the file's stamp.
        mode: ``'sealed'``, or ``'signed'``: the weights stay in the open, and altering them is an error.
        fingerprint: how strong a licensee's fingerprint the weights carry; 0 for none that the stamps do not tell of.
    """

    key: Key
    recipients: tuple[Key | Recipient, ...] = ()
    mode: str = SEALED
    fingerprint: float = 0.0

    @property
    def everybody(self) -> tuple[Key | Recipient, ...]:
        """All recipients."""
        return self.recipients or (self.key,)


def seal_checkpoint(checkpoint: Mapping[str, Any], how: Sealing, own: bool = False) -> dict[str, Any]:
    """A checkpoint as it is written.

    Args:
        checkpoint: with ``state_dict``, ``meta`` and whatever else; stays as it is.
        how: for whom.
        own: the tensors' memory may be overwritten.

    Raises:
        KeysegError: it holds tensors that cannot be sealed.
    """
    content, sealed = ContentKey.generate(), dict(checkpoint)
    apart = _apart(checkpoint) if own else set()
    for name, value in checkpoint.items():
        if name == WEIGHTS or (name != 'meta' and tensors_of(value)):
            section = value if isinstance(value, Mapping) else {_WRAPPED: value}
            meta = checkpoint.get('meta') if name == WEIGHTS else None
            sealed[name] = _seal_section(section, how, content, name, meta, name in apart)
    return sealed


def unseal_checkpoint(
    key: Key, checkpoint: Mapping[str, Any], own: bool = False, but: Iterable[str] = (), verify: bool = True
) -> dict[str, Any]:
    """A checkpoint as it was before it was sealed. Sections without a seal are left as they are.

    Args:
        key: of one of its recipients.
        checkpoint: as it was read.
        own: the tensors' memory may be overwritten.
        but: sections to leave as they are.
        verify: also refuse sections that are only signed, and were altered since.

    Raises:
        KeyMismatchError: it is sealed to others.
        IntegrityError: it was altered, or put together from several files.
    """
    opened = dict(checkpoint)
    _check_one_file(key, checkpoint)
    for name, value in checkpoint.items():
        if name not in but and sealed_stamp(value) is not None:
            meta = checkpoint.get('meta') if name == WEIGHTS else None
            found = unseal_section(key, value, name, meta=meta, own=own, verify=verify)
            opened[name] = found.get(_WRAPPED, found)
    return opened


def _check_one_file(key: Key, checkpoint: Mapping[str, Any]) -> None:
    """All of a file was sealed at once, or none of it; what was dropped from it since is no error."""
    found = {name: sealed_stamp(value) for name, value in checkpoint.items() if name != 'meta' and tensors_of(value)}
    stamps = {name: stamp for name, stamp in found.items() if stamp is not None}
    bare = [name for name in found if name not in stamps]
    if stamps and bare:
        raise IntegrityError(f'{", ".join(bare)} in this file has no seal, and the rest has: it was put there later')
    contents = {content.material for stamp in stamps.values() if (content := open_envelope(key, stamp).content)}
    if len(contents) > 1:
        raise IntegrityError(f'{" and ".join(stamps)} were put together from several files; take a copy of one')


def covered(checkpoint: Mapping[str, Any]) -> tuple[dict[str, int], list[str]]:
    """What the seals of a checkpoint cover: the number of tensors by section; and sections that they do not."""
    found = {
        name: sum(not is_stamp(tensor) for tensor in tensors_of(value))
        for name, value in checkpoint.items()
        if sealed_stamp(value) is not None
    }
    return found, [str(name) for name in checkpoint if name not in found and name != 'meta']


def unseal_section(
    key: Key,
    section: Mapping[str, Any],
    name: str = WEIGHTS,
    *,
    meta: Mapping[str, Any] | None = None,
    into: Mapping[str, Tensor] | None = None,
    own: bool = False,
    verify: bool = True,
) -> dict[str, Any]:
    """A sealed section without its seal. If anything else is encrypted, it has a stamp for memory.

    Args:
        key: of one of its recipients.
        section: with its stamp.
        name: of the section.
        meta: of the checkpoint; None where it is not at hand, and not checked.
        into: tensors by name, which take what is opened.
        own, verify: as of :func:`unseal_checkpoint`.

    Raises:
        KeyMismatchError, IntegrityError: as of :func:`unseal_checkpoint`. What was opened by then is zeros.
    """
    stamp = sealed_stamp(section)
    if stamp is None or stamp.seal is None:
        raise IntegrityError(_NOT_SEALED)
    features, content = secrets_of(key, stamp, name)
    opened: Any = copy.copy(section)  # an OrderedDict keeps what torch hangs on it
    del opened[stamp.name]
    if verify or stamp.seal.mode == SEALED:
        head = replace(stamp, seal=None).to_bytes()
        found = open_tensors(tensors_of(opened), content, stamp.seal, head, meta, into=into, own=own)
        opened = with_tensors(opened, found)
    if stamp.entries:
        memory = memory_stamp(key, stamp, features)
        opened[memory.name] = stamp_tensor(memory)
    result: dict[str, Any] = opened
    return result


def secrets_of(key: Key, stamp: Stamp, name: str) -> tuple[FeatureSecret, ContentKey]:
    """The secrets of a sealed section.

    Raises:
        KeyMismatchError: it is sealed to others.
        IntegrityError: it was sealed as another section. Two of one name under one content key would share nonces.
    """
    secrets = open_envelope(key, stamp)
    if stamp.seal is None or secrets.content is None or stamp.seal.section != name:
        raise IntegrityError(f'this {name} is sealed as something else: it was put together from other files')
    return secrets.features, secrets.content


def trusted_stamp(key: Key, section: Mapping[str, Any]) -> Stamp | None:
    """The stamp of a section, which only a holder of the key can have written; None where it has none.

    Where there is a seal, all of the section is what was sealed.

    Raises:
        KeyMismatchError: it is of another key.
        IntegrityError: it was altered.
    """
    stamp = stamps_of({n: v for n, v in section.items() if '.' not in n}).get('')
    if stamp is not None:
        open_envelope(key, stamp)
    if stamp is not None and stamp.seal is not None:
        unseal_section(key, section, stamp.seal.section)
    return stamp


def check_meta_of(key: Key, checkpoint: Mapping[str, Any]) -> None:
    """Make sure that a checkpoint's meta are those it was sealed with, where it is sealed.

    Raises:
        IntegrityError: they are not.
    """
    stamp = sealed_stamp(checkpoint.get(WEIGHTS))
    content = None if stamp is None else open_envelope(key, stamp).content
    if stamp is not None and stamp.seal is not None and content is not None:
        check_meta(content, stamp.seal, checkpoint.get('meta'))


def rewrap(
    key: Key, checkpoint: Mapping[str, Any], recipients: Iterable[Key | Recipient], put: Put | None = None
) -> list[tuple[Stamp, Stamp]]:
    """The stamps of a sealed checkpoint's sections, each with the one for other recipients. Weights are not opened.

    Args:
        key: of one of its recipients.
        checkpoint: as it was read.
        recipients: who can open it from now on.
        put: encrypt the tensors anew too, under a fresh content key: it is given each chunk, and where in memory the
            one lies that it replaces.

    Raises:
        KeyMismatchError: it is sealed to others.
        IntegrityError: its stamps, lists of tensors or meta were altered; with ``put`` also its tensors.
        ScatteredError: with ``put`` alone, tensors do not lie in memory one by one.
    """
    found, others, fresh = [], list(recipients), ContentKey.generate()
    if put is not None:
        _check_one_file(key, checkpoint)
    for name, section in checkpoint.items():
        stamp = sealed_stamp(section)
        if stamp is None or stamp.seal is None:
            continue
        features, content = secrets_of(key, stamp, name)
        new = close_envelope(stamp, Secrets(features, content if put is None else fresh), others)
        heads = replace(stamp, seal=None).to_bytes(), new.to_bytes()
        bare = {n: t for n, t in tensors_of(section).items() if n != stamp.name}
        meta = checkpoint.get('meta') if name == WEIGHTS else None
        if put is None:
            seal = retag_tensors(bare, content, stamp.seal, heads, meta)
        else:
            seal = reseal_tensors(bare, put, (content, fresh), stamp.seal, heads, meta)
        found.append((stamp, replace(new, seal=seal)))
    return found


def sealed_stamp(section: Any) -> Stamp | None:
    """The stamp of a section that has a seal; None where it has none.

    Raises:
        StampError: it is damaged, or there are two.
    """
    if not isinstance(section, Mapping):
        return None
    own = {n: value for n, value in section.items() if isinstance(n, str) and '.' not in n and is_stamp(n)}
    stamp = stamps_of(own).get('')
    return stamp if stamp is not None and stamp.seal is not None else None


def _apart(checkpoint: Mapping[str, Any]) -> set[str]:
    """Sections whose memory holds nothing of another one, so that it can be overwritten before that is sealed."""
    owners: dict[int, set[str]] = {}
    for name, section in checkpoint.items():
        for tensor in tensors_of(section).values():
            if tensor.layout == torch.strided and tensor.numel():
                owners.setdefault(tensor.untyped_storage().data_ptr(), set()).add(name)
    return {*checkpoint} - set().union(*(names for names in owners.values() if len(names) > 1))


def _seal_section(
    section: Mapping[str, Any], how: Sealing, content: ContentKey, name: str, meta: Mapping[str, Any] | None, own: bool
) -> dict[str, Any]:
    stamps = stamps_of({n: v for n, v in section.items() if isinstance(n, str)})
    bare: Any = copy.copy(section)
    stamp = stamps.pop('', None)
    if stamp is None:
        stamp, features = Stamp(how.key.id, fresh_salt(), ()), FeatureSecret.generate()
    else:
        features = open_envelope(how.key, stamp).features
        del bare[stamp.name]
    for prefix, part in stamps.items():  # of parts that are protected alone: for everybody, too
        del bare[f'{prefix}.{part.name}']
        part = close_envelope(part, Secrets(open_envelope(how.key, part).features), how.everybody)
        bare[f'{prefix}.{part.name}'] = stamp_tensor(part)
    stamp = replace(stamp, fingerprint=how.fingerprint or stamp.fingerprint)
    stamp = close_envelope(stamp, Secrets(features, content), how.everybody)
    try:
        sealed, seal = seal_tensors(tensors_of(bare), content, name, stamp.to_bytes(), meta, how.mode, own)
    except ValueError:
        raise LockError(
            f'{name!r:.80} cannot be sealed: its name is to be up to 128 letters, digits and signs of _.:/-, and names '
            'of tensors that are one and the same up to 512 signs that can be printed; or there are too many of them'
        ) from None
    found: dict[str, Any] = with_tensors(bare, sealed)
    stamp = replace(stamp, seal=seal)
    found[stamp.name] = stamp_tensor(stamp, _ROOM)
    return found
