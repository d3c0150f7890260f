"""Lock a trained checkpoint: plain to protected, in seconds, without training and without losing a bit.

The model is run once to see which layers are really called. Each of them gets its input encrypted with the key, and its
weights turned so that with the key nothing changes. The locked model is proved before it is written: with the key it
agrees with the plain one, without it does not. Nothing but the weights and the checkpoint's `meta` is written.

Other schemes, from the literature:
  --scheme tensors     the values of all tensors are put into a secret order; the model runs only unlocked, in memory or
                       as a file
  --scheme selective   so are the most sensitive values alone
  --scheme patches     a vision transformer without overlapping patches (SETR, Segmenter, DPT, UPerNet on ViT, BEiT, MAE
                       or Swin, Twins) takes images that the client encrypts, with `keyseg encrypt-image`; the server
                       needs no key and sees no plain image

examples:
  keyseg keygen --out keys/my.key
  keyseg lock CONFIG plain.pth --dry-run                          see what would be locked
  keyseg lock CONFIG plain.pth --key file:keys/my.key --out locked.pth
  keyseg lock CONFIG plain.pth --key file:keys/my.key --out locked.safetensors --transform ChannelRotation
  keyseg lock CONFIG plain.pth --key file:keys/my.key --out locked.pth --scheme selective --share 0.01
  keyseg lock CONFIG plain.pth --key file:keys/my.key --out locked.pth --scheme patches
  keyseg lock CONFIG plain.pth --dry-run --public pretrained.pth  is it still close to the public weights it came from?

then, to test it at the plain model's speed:
  keyseg test KEYED_CONFIG locked.pth --cfg-options model.protection.key=file:keys/my.key model.protection.unlock=True
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from keyseg_mm.cli.console import add_block_steps, add_key, add_out, print_dropped, real_key
from keyseg_mm.errors import LockError

# written out: --help must not wait for torch
SCHEMES = ('features', 'tensors', 'selective', 'patches')
# which scheme each option belongs to
_OWNERS = {
    'points': 'features',
    'transform': 'features',
    'public': 'features',
    'share': 'selective',
    'permute': 'patches',
    'no_negate': 'patches',
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``keyseg lock``."""
    parser.add_argument('config', type=Path, help="the model's config, plain or protected")
    parser.add_argument('checkpoint', type=Path, help='plain checkpoint, .pth or .safetensors')
    add_key(parser, required=False)
    add_out(parser, 'protected checkpoint to make', required=False)
    parser.add_argument('--scheme', choices=SCHEMES, default=SCHEMES[0], help='how to protect it (features)')
    parser.add_argument('--salt', metavar='HEX', help='32 hex digits, public (fresh ones, which the checkpoint tells)')
    parser.add_argument('--dry-run', action='store_true', help='show the plan and its effect, and write nothing')
    features = parser.add_argument_group('scheme features')
    features.add_argument('--points', nargs='+', metavar='POINT', help='where (linear, all layers)')
    features.add_argument(
        '--transform',
        help='SignedChannelPermutation (default), ChannelPermutation or ChannelRotation; with a block size: '
        'ChannelRotation:16',
    )
    features.add_argument(
        '--public',
        type=Path,
        metavar='FILE',
        help='public weights that the model was trained from: warns of layers that are still close to them',
    )
    selective = parser.add_argument_group('scheme selective')
    selective.add_argument('--share', type=float, metavar='S', help='of all weights (0.01)')
    add_block_steps(parser.add_argument_group('scheme patches'))


def run(args: argparse.Namespace) -> int:
    """Plan, prove, write."""
    from keyseg_mm import baselines  # noqa: F401 - their schemes
    from keyseg_mm.atomic import refuse_existing
    from keyseg_mm.checkpoint.operations import lock_opened, open_checkpoint
    from keyseg_mm.cli import lock_report
    from keyseg_mm.keys.key import SecretKey
    from keyseg_mm.locking import SCHEMES as KNOWN
    from keyseg_mm.mm.bench import HostBench
    from keyseg_mm.mm.config import build_plain_model, read_config
    from keyseg_mm.stamp import fresh_salt, parse_salt

    options = _options(args)
    if not args.dry_run:
        if not args.key or not args.out:
            raise LockError('give --key and --out, or --dry-run to see the plan')
        refuse_existing(args.out, args.overwrite)
    salt = parse_salt(args.salt) if args.salt else fresh_salt()
    key = SecretKey.generate() if args.dry_run else real_key(args.key)
    cfg = read_config(args.config)
    model = build_plain_model(cfg)
    opened = open_checkpoint(args.checkpoint)
    opened.fit(model)
    weights, scheme = opened.state_dict, KNOWN[args.scheme]
    public = lock_report.read_public(args.public, weights)
    plan = scheme.plan(model, weights, **options)
    proof = scheme.prove(HostBench(), model, weights, plan, key, salt)
    lock_report.show_plan(proof.plan, weights)
    lock_report.show_proof(proof)
    lock_report.show_public(proof.plan, weights, public, cfg)
    if args.dry_run:
        print('\na dry run: nothing was written')
        return 0
    stamp = lock_opened(opened, proof.plan, key, args.out, salt, args.overwrite)
    what = 'for images encrypted' if stamp.embeddings else 'protected'
    print(f'\nmade {args.out}, {what} with key {stamp.key_id}')
    print_dropped(opened.dropped)
    lock_report.show_use(stamp, args.out)
    print(f'  keep {args.checkpoint} to yourself: it is the plain model')
    return 0


def parse_transform(text: str) -> str | dict[str, Any]:
    """``NAME`` or ``NAME:BLOCK`` of a command line."""
    name, _, block = text.partition(':')
    if not block:
        return name
    if not block.isdecimal():
        raise LockError(f'{text!r}: a transform is written NAME or NAME:BLOCK, as ChannelRotation:16')
    return {'type': name, 'block': int(block)}


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of the scheme.

    Raises:
        LockError: some are those of another scheme.
    """
    for name, owner in _OWNERS.items():
        value = getattr(args, name)
        if value is not None and value is not False and owner != args.scheme:
            raise LockError(f'--{name.replace("_", "-")} goes with --scheme {owner}, not with {args.scheme}')
    if args.scheme == 'patches':
        return {'permute': args.permute or 'all', 'negate': not args.no_negate}
    given = {'points': args.points, 'share': args.share}
    if args.transform:
        given['transform'] = parse_transform(args.transform)
    return {name: value for name, value in given.items() if value is not None}
