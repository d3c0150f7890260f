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

import keyseg_mm.baselines  # noqa: F401 - their schemes
from keyseg_mm import SecretKey
from keyseg_mm.locking import SCHEMES, lock_in_place, rekey, unlock

WAYS = {
    'SignedChannelPermutation, linear': 'features',
    'TensorPermutation': 'tensors',
    'SelectiveEncryption, 1 %': 'selective',
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
    args = parser.parse_args()
    torch.manual_seed(0)
    with quiet():
        model, _ = build_stock(args.config)
    state = model.state_dict()
    values = sum(t.numel() for t in state.values())
    print(f'{args.config}: {values / 1e6:.1f} million values, {torch.get_num_threads()} threads')
    old, new = SecretKey.generate(), SecretKey.generate()
    for way, scheme in WAYS.items():
        plan, planned = timed(lambda scheme=scheme: SCHEMES[scheme].plan(model, state))  # type: ignore[misc]
        locked = dict(state)
        _, locked_in = timed(lambda: lock_in_place(locked, plan, old))  # noqa: B023
        rekeyed, rekeyed_in = timed(lambda: rekey(locked, old, new))  # noqa: B023
        back, unlocked_in = timed(lambda: unlock(rekeyed, new))  # noqa: B023
        if not all(torch.equal(back[name], value) for name, value in state.items()):
            raise SystemExit(f'{way}: the weights did not come back')
        took = {'plan': planned, 'lock': locked_in, 'rekey': rekeyed_in, 'unlock': unlocked_in}
        print(f'{way}: ' + ', '.join(f'{what} {seconds:.1f} s' for what, seconds in took.items()), flush=True)


if __name__ == '__main__':
    main()
