"""How long the encryption of an image takes, and the block-wise transforms of a feature map beside a permutation.

python benchmarks/images.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from tables import add_option, write_table

import keyseg_mm.baselines  # noqa: F401 - its maps
from keyseg_mm import SecretKey
from keyseg_mm.bind import derive_cipher, derive_map
from keyseg_mm.entries import ImageEntry, MapEntry

BLOCKS = (1, 2, 4, 8, 16)


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    """Median time, after one run that makes the tables."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', type=int, nargs=2, default=(1024, 2048), help='of the image (default: Cityscapes)')
    parser.add_argument('--repeats', type=int, default=21)
    add_option(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    key = SecretKey(bytes(range(32)))
    image = np.random.default_rng(0).integers(0, 256, (*args.size, 3), dtype=np.uint8)
    print(f'one image of {args.size[0]} by {args.size[1]}, ms')
    rows = []
    for method in ('SHF', 'NP', 'FFX'):
        ciphers = [derive_cipher(key, bytes(16), ImageEntry(method, block)) for block in BLOCKS]
        times = [milliseconds(lambda c=c: c.encrypt(image), args.repeats) for c in ciphers]  # type: ignore[misc]
        rows.append([method, *(f'{t:.1f}' for t in times)])
    write_table(args.table, ['block', *map(str, BLOCKS)], rows)
    maps = torch.randn(2, 256, 64, 128)
    print('two maps of 256 channels, 64 by 128, one thread, ms')
    for spec in (
        {'type': 'ChannelPermutation'},
        *({'type': t, 'block': 2} for t in ('BlockShuffle', 'NegativePositive')),
    ):
        transform = derive_map(key, bytes(16), MapEntry('out:x', 256, spec))
        print(f'  {spec["type"]:<20}{milliseconds(lambda t=transform: t(maps), args.repeats):6.1f}')  # type: ignore[misc]


if __name__ == '__main__':
    main()
