#!/usr/bin/env python
"""How long locking takes: the weights in memory, without reading, proving and writing files.

    python benchmarks/locktime.py [--config fcn/fcn_r101-d8_4xb2-40k_cityscapes-512x1024.py]

For each way to lock a stock model of mmsegmentation, with random weights: seconds to find out what is locked, to lock
(with the MAC), to rekey and to unlock, all checked bit for bit.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from common import build_stock, quiet
from tables import add_option, write_table

import keyseg_mm.baselines  # noqa: F401 - their schemes
from keyseg_mm import SecretKey
from keyseg_mm.locking import SCHEMES, lock_in_place, rekey, unlock

WAYS = {
    'feature maps (`linear`, signed permutations)': 'features',
    'all tensors': 'tensors',
    '1 %, selective': 'selective',
}


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """A result and the seconds that it took."""
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', default='fcn/fcn_r101-d8_4xb2-40k_cityscapes-512x1024.py')
    add_option(parser)
    args = parser.parse_args()
    torch.manual_seed(0)
    with quiet():
        model, _ = build_stock(args.config)
    state = model.state_dict()
    values = sum(t.numel() for t in state.values())
    print(f'{args.config}: {values / 1e6:.1f} million values, {torch.get_num_threads()} threads')
    old, new, rows = SecretKey.generate(), SecretKey.generate(), []
    for way, scheme in WAYS.items():
        plan, planned = timed(lambda scheme=scheme: SCHEMES[scheme].plan(model, state))  # type: ignore[misc]
        locked = dict(state)
        _, locked_in = timed(lambda: lock_in_place(locked, plan, old))  # noqa: B023
        rekeyed, rekeyed_in = timed(lambda: rekey(locked, old, new))  # noqa: B023
        back, unlocked_in = timed(lambda: unlock(rekeyed, new))  # noqa: B023
        if not all(torch.equal(back[name], value) for name, value in state.items()):
            raise SystemExit(f'{way}: the weights did not come back')
        rows.append([way, *(f'{seconds:.1f} s' for seconds in (planned, locked_in, rekeyed_in, unlocked_in))])
    write_table(args.table, ('', 'plan', 'lock', 'rekey', 'unlock'), rows)


if __name__ == '__main__':
    main()
