"""The cipher from images that are known both plain and encrypted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from keyseg_mm.audit.engine.budget import Progress
from keyseg_mm.audit.images.attack import ImageAttack, ImageCase, KnownPairs, Restored, register
from keyseg_mm.audit.images.scheme import BYTES, Scheme, block_map, cut
from keyseg_mm.maps.pixels import BlockCipher

Columns = NDArray[np.uint8]  # (3 M M, number of blocks): all values that one place of a block ever had


@register
class PairSolving(ImageAttack):
    """Every block is encrypted alike, so a place of the encrypted blocks shows all values of one place of the plain.

    Permutations: the place whose values, over all blocks of the pairs, are exactly the same (or all negated). Byte
    tables: each pair of a plain and an encrypted byte is an entry. Places that had equal values in all blocks cannot
    be told apart, and are given out in order; bytes that did not occur likewise.
    """

    name, title = 'known-pairs', 'the cipher solved from known pairs'
    needs = frozenset({KnownPairs})
    source = 'known-plaintext attack, as in any textbook on ciphers'
    cost = 'a comparison of columns'

    def run(self, case: ImageCase, progress: Progress) -> Restored:
        """Solve, and decrypt."""
        known = case[KnownPairs]
        guess = solve(case.scheme, *(_columns(images, case.scheme.block) for images in (known.plain, known.encrypted)))
        return Restored(guess.decrypt(case.encrypted), guess)


def solve(scheme: Scheme, plain: Columns, encrypted: Columns) -> BlockCipher:
    """The map of blocks that turns plain columns into encrypted ones."""
    if scheme.moves == 'none':
        changed = (plain != encrypted).any(1)
        table = _table(plain[changed], encrypted[changed]) if scheme.maps_bytes else None
        return block_map(scheme.block, changed=changed, table=table)
    order, changed = _matched(plain, encrypted, scheme.negates)
    return block_map(scheme.block, order, changed)


def _columns(images: NDArray[np.uint8], block: int) -> Columns:
    blocks = cut(images, block)
    return np.ascontiguousarray(blocks.reshape(-1, blocks.shape[-1]).T)


def _matched(plain: Columns, encrypted: Columns, negated: bool) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """For each encrypted column the plain one that it is, and whether it is negated."""
    places: dict[bytes, list[int]] = {}
    for number in range(len(plain) - 1, -1, -1):
        places.setdefault(plain[number].tobytes(), []).append(number)
    order, changed = np.full(len(plain), -1), np.zeros(len(plain), dtype=bool)
    for number, column in enumerate(encrypted):
        for flip in (False, True)[: 1 + negated]:
            found = places.get((255 - column if flip else column).tobytes())
            if found:
                order[number], changed[number] = found.pop(), flip
                break
    left = sorted(set(range(len(plain))) - set(order.tolist()))
    order[order < 0] = left
    return order, changed


def _table(plain: Columns, encrypted: Columns) -> NDArray[np.int64]:
    """The byte table that pairs show; entries that none shows are filled with what is left, in order."""
    table = np.full(BYTES, -1)
    table[plain.ravel()] = encrypted.ravel()
    table[table < 0] = sorted(set(range(BYTES)) - set(table.tolist()))
    return table
