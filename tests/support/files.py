"""What tests of checkpoint files share: keys, command lines, and what lies in a file."""

from __future__ import annotations

from pathlib import Path

import torch

from keyseg_mm import SecretKey
from keyseg_mm.checkpoint.files import read_checkpoint
from keyseg_mm.seal.sections import sealed_stamp, unseal_checkpoint

KEY, OTHER = SecretKey(bytes(range(32))), SecretKey(bytes(range(1, 33)))
SUFFIXES = ('.pth', '.safetensors')
VERBS = ('lock', 'rekey', 'unlock')
META = {'epoch': 3, 'iter': 12, 'dataset_meta': {'classes': ['road', 'sky'], 'palette': [[1, 2, 3], [4, 5, 6]]}}
ROW = 8  # weights of so many input channels: of fewer, chance may leave a row as it was


def opened_weights(path: str | Path, key: SecretKey = KEY) -> dict:
    """The weights of a file without its seal, with a stamp for memory where there is more to it."""
    content = read_checkpoint(path)
    assert sealed_stamp(content['state_dict']), 'it is sealed'
    return unseal_checkpoint(key, content)['state_dict']


def weights_in(path: Path) -> dict:
    return {n: t for n, t in read_checkpoint(path)['state_dict'].items() if 'keyseg_stamp' not in n}


def same(one: dict, other: dict) -> bool:
    return list(one) == list(other) and all(
        torch.equal(t, other[n]) and t.dtype == other[n].dtype for n, t in one.items()
    )


def arguments(verb: str, made: Path, source: Path, out: Path) -> list:
    """A command line of lock, rekey or unlock."""
    key = ['--key', f'file:{made / "right.key"}', '--out', out]
    more = {'lock': ['--config', made / 'config.py'], 'rekey': ['--new-key', f'file:{made / "other.key"}']}
    return [verb, source, *key, *more.get(verb, [])]


def source_of(verb: str, made: Path, suffix: str = '.pth') -> Path:
    return made / f'{"plain" if verb == "lock" else "locked"}{suffix}'
