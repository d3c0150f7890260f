"""What is public of an image encryption, how many ciphers there are, and guesses at the map of a block's values.

A block of M by M pixels has ``3 M M`` values, numbered ``(row * M + column) * 3 + colour``, red first. All block-wise
encryptions of this package do to every block of every image: ``e[k] = f(v[order[k]])``, where f is one secret function
of bytes at some secret places k and nothing at the others. What is known of them differs by the :class:`Scheme`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyseg_mm.errors import KeysegError, StampError
from keyseg_mm.maps.keyspace import KEY_BITS, bits_of_images, bits_of_patches
from keyseg_mm.maps.pixels import COLOURS, BlockCipher, BlockTables
from keyseg_mm.stamp import Stamp

Images = NDArray[np.uint8]  # (N, H, W, 3), red first
Blocks = NDArray[np.uint8]  # (N, down, across, 3 M M)

BYTES = 256
#: Which places a permutation moves values between, and what is done to values, by what places.
MOVES = ('none', 'channel', 'all')
CHANGES = ('none', 'half negated', 'negated', 'half mapped')
_OF_METHOD = {'SHF': ('all', 'none'), 'NP': ('none', 'half negated'), 'FFX': ('none', 'half mapped')}


_MOVES = {'all': 'values change places, across colours too', 'channel': 'values change places within their colour'}
_CHANGES = {
    'half negated': 'half of the places hold 255 - p',
    'negated': 'secret places hold 255 - p',
    'half mapped': 'half of the places hold a secret byte for p',
}


@dataclass(frozen=True)
class Scheme:
    """An image encryption as its attacker knows it; all public.

    Attributes:
        method: ``SHF``, ``NP``, ``FFX``, or ``patches`` for a model of ``keyseg lock --scheme patches``.
        block: side of a block, in pixels.
        moves: ``'all'``, values change places, across colours too; ``'channel'``, within each colour; ``'none'``.
        changes: ``'half negated'``, 255 - p at a secret half of the places; ``'negated'``, at secret places, however
            many; ``'half mapped'``, a secret permutation of the bytes at a secret half; ``'none'``.
        key_id: public id of the key.
        salt: in hex; empty for none.
    """

    method: str
    block: int
    moves: str
    changes: str
    key_id: str = ''
    salt: str = ''

    def __post_init__(self) -> None:
        if self.moves not in MOVES or self.changes not in CHANGES:
            raise KeysegError(f'no image encryption with moves={self.moves!r} and changes={self.changes!r}')

    @classmethod
    def of(cls, stamp: Stamp) -> Scheme:
        """The scheme of a stamp that tells of encrypted images.

        Raises:
            StampError: it tells of none, or of several encryptions.
        """
        if stamp.embeddings:
            entry = stamp.embeddings[0]
            changes = 'negated' if entry.negate else 'none'
            return cls('patches', entry.patch, entry.permute, changes, stamp.key_id, stamp.salt.hex())
        if len(stamp.images) != 1:
            raise StampError(f'this stamp tells of {len(stamp.images)} encryptions of images; an audit takes one')
        image = stamp.images[0]
        return cls(image.method, image.block, *_OF_METHOD[image.method], stamp.key_id, image.salt)

    @classmethod
    def of_method(cls, method: str, block: int) -> Scheme:
        """SHF, NP or FFX, whosoever key it is."""
        return cls(method, block, *_OF_METHOD[method])

    def __str__(self) -> str:
        return f'{self.method}, block {self.block}, key id {self.key_id}'

    @property
    def values(self) -> int:
        """Values of a block."""
        return COLOURS * self.block**2

    @property
    def ciphers(self) -> float:
        """log2 of the number of different ciphers, exact; the key that chooses among them has 256 bits."""
        if self.method == 'patches':
            return bits_of_patches(self.block, self.moves, self.changes == 'negated')
        return bits_of_images(self.method, self.block)

    @property
    def unknowns(self) -> str:
        """What an attack on statistics or pairs has to find, in words: far less than the number of ciphers says."""
        n, parts = self.values, []
        if self.moves != 'none':
            parts.append(f'the place of each of {n} values')
        if self.changes != 'none':
            parts.append(f'one bit for each of {n} places')
        if self.changes == 'half mapped':
            parts.append(f'where each of {BYTES} bytes goes')
        return ', and '.join(parts)


@dataclass(frozen=True)
class KeySpace:
    """How many ciphers of a scheme there are, beside what an attack really has to find."""

    method: str
    steps: str  # what it does to a block
    ciphers: float  # log2 of how many there are
    guess: float  # log2 of what guessing takes: no more than the key's own 256 bits
    unknowns: str  # what statistics and pairs have to find
    own: bool  # it is the one under attack


def key_spaces(scheme: Scheme) -> tuple[KeySpace, ...]:
    """That of the encryption under attack first, then those of the others with the same block."""
    others = [Scheme.of_method(method, scheme.block) for method in _OF_METHOD]
    others.append(Scheme('patches', scheme.block, 'all', 'negated'))
    bare = dataclasses.replace(scheme, key_id='', salt='')
    return tuple(
        KeySpace(
            found.method,
            ', '.join(filter(None, (_MOVES.get(found.moves), _CHANGES.get(found.changes)))),
            found.ciphers,
            min(found.ciphers, float(KEY_BITS)),
            found.unknowns,
            own=found is bare,
        )
        for found in (bare, *(other for other in others if other != bare))
    )


def block_map(block: int, order: Any = None, changed: Any = None, table: Any = None) -> BlockCipher:
    """A map of blocks that an attacker made up: a guess at the cipher, or their own to learn from.

    Args:
        block: side of a block, in pixels.
        order: ``e[k] = f(v[order[k]])``, shape (3 M M,); None for no permutation.
        changed: at which k the function of bytes is applied, boolean (3 M M,); None for none.
        table: that function, a permutation of 0 to 255, shape (256,); None for 255 - p.
    """
    tables, n = BlockTables(order, changed, table), COLOURS * block**2
    odd = [part for part in (tables.order, tables.changed) if part is not None and part.shape != (n,)]
    if odd or tables.values.shape != (BYTES,):
        raise KeysegError(f'a map of blocks of {block} has {n} places and a table of {BYTES} bytes')
    return BlockCipher(block, lambda _: tables, whole=True)


def drawn_map(scheme: Scheme, rng: np.random.Generator) -> BlockCipher:
    """One of the scheme's family, drawn as a stranger's key would: for attackers who learn from their own."""
    n, pixels = scheme.values, scheme.block**2
    order, changed = None, None
    if scheme.moves == 'all':
        order = rng.permutation(n)
    elif scheme.moves == 'channel':
        order = np.stack([rng.permutation(pixels) * COLOURS + c for c in range(COLOURS)], axis=1).ravel()
    if scheme.changes == 'negated':
        changed = rng.random(n) < 0.5
    elif scheme.changes.startswith('half'):
        changed = rng.permutation(n) < n // 2
    return block_map(scheme.block, order, changed, rng.permutation(BYTES) if scheme.changes == 'half mapped' else None)


def cut(images: Images, block: int) -> Blocks:
    """Images (N, H, W, 3) as blocks of values (N, H / M, W / M, 3 M M).

    Raises:
        KeysegError: they are not made of whole blocks.
    """
    count, high, wide, colours = images.shape
    if high % block or wide % block or colours != COLOURS:
        raise KeysegError(f'images of {wide} x {high} pixels are not made of whole blocks of {block} x {block}')
    parts = images.reshape(count, high // block, block, wide // block, block, colours)
    return parts.transpose(0, 1, 3, 2, 4, 5).reshape(count, high // block, wide // block, -1)


def join(blocks: NDArray[Any], block: int) -> NDArray[Any]:
    """Undo :func:`cut`; also for blocks of floats."""
    count, down, across, n = blocks.shape
    parts = blocks.reshape(count, down, across, block, block, n // block**2).transpose(0, 1, 3, 2, 4, 5)
    return np.ascontiguousarray(parts.reshape(count, down * block, across * block, -1))
