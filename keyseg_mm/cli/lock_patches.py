"""Make a trained vision transformer take encrypted images, in seconds, without training and without losing accuracy.

The client encrypts his images with the key, block by block; the model's patch embedding is turned so that it reads
encrypted blocks as it read plain ones. The server that runs it needs no key and sees no plain image. Plain images, or
such that were encrypted with another key, give rubbish. The locked model is proved before it is written.

For models whose patches do not overlap (SETR, Segmenter, DPT, UPerNet on ViT, BEiT, MAE or Swin, Twins). The key itself
has 256 bits; how many ciphers it chooses from is printed too.

examples:
  keyseg keygen --out keys/my.key
  keyseg lock-patches CONFIG plain.pth --key file:keys/my.key --out locked.pth
  keyseg encrypt-image --key file:keys/my.key --checkpoint locked.pth --config CONFIG photo.jpg photo.png
  keyseg test PATCHES_CONFIG locked.pth     on images that its pipeline encrypts: configs/setr/patches_*.py
  keyseg unlock locked.pth --key file:keys/my.key --out plain.pth
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from keyseg_mm.cli.console import print_dropped, real_key
from keyseg_mm.errors import LockError

_NOTHING = 1e-2  # a change below it is none

if TYPE_CHECKING:
    from keyseg_mm.mm.embeddings import PatchProof
    from keyseg_mm.patchplan import PatchPlan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``keyseg lock-patches``."""
    parser.add_argument('config', type=Path, help="the model's config")
    parser.add_argument('checkpoint', type=Path, help='plain checkpoint, .pth or .safetensors')
    parser.add_argument('--key', metavar='LOC', help='locator of the key')
    parser.add_argument('--out', type=Path, metavar='FILE', help='checkpoint to make')
    add_steps(parser)
    parser.add_argument(
        '--salt', metavar='HEX', help='32 hex digits, public; by default fresh ones, which the checkpoint tells'
    )
    parser.add_argument('--dry-run', action='store_true', help='show the plan and its effect, and write nothing')
    parser.add_argument('--overwrite', action='store_true', help='replace FILE if it exists')


def add_steps(parser: argparse.ArgumentParser) -> None:
    """What is done to a block: the same for models and images."""
    parser.add_argument(
        '--permute',
        choices=('all', 'channel', 'none'),
        default='all',
        help='what changes places within a block: all values, across the channels too (default), those of each channel '
        'for themselves, or none',
    )
    parser.add_argument('--no-negate', action='store_true', help='do not take half of the values from 255')


def run(args: argparse.Namespace) -> int:
    """Plan, prove, write."""
    from keyseg_mm.atomic import refuse_existing
    from keyseg_mm.checkpoint.operations import lock_patches_file, open_checkpoint
    from keyseg_mm.keys.key import SecretKey
    from keyseg_mm.lockplan import fit
    from keyseg_mm.mm.config import build_plain_model, read_config
    from keyseg_mm.mm.embeddings import misaligned, plan_patches, prove_patches
    from keyseg_mm.mm.patchdata import parse_salt
    from keyseg_mm.stamp import SALT_BYTES

    if not args.dry_run:
        if not args.key or not args.out:
            raise LockError('give --key and --out, or --dry-run to see the plan')
        refuse_existing(args.out, args.overwrite)
    salt = parse_salt(args.salt) if args.salt else os.urandom(SALT_BYTES)
    key = SecretKey.generate() if args.dry_run else real_key(args.key)
    model = build_plain_model(read_config(args.config))
    plan = plan_patches(model, args.permute, not args.no_negate)
    if problems := misaligned(model, plan.patch):
        raise LockError('; '.join(problems) + '. Nothing was written')
    opened = open_checkpoint(args.checkpoint)
    proof = prove_patches(model, fit(opened.state_dict, model, drop=True), plan, key, salt)
    _show(plan, proof)
    if args.dry_run:
        print('\na dry run: nothing was written')
        return 0
    del opened
    done, dropped = lock_patches_file(args.checkpoint, model, plan, key, args.out, salt, args.overwrite)
    print(f'\nmade {args.out}, for images encrypted with key {done.key_id}')
    print_dropped(dropped)
    print('  it runs without a key, with its plain config, on images encrypted as follows:')
    print_uses(done, str(args.out))
    print(f'  keep {args.checkpoint} to yourself: it is the plain model')
    return 0


def print_uses(plan: PatchPlan, checkpoint: str) -> None:
    """How images are encrypted for a model: on the command line, and in a pipeline."""
    steps = '' if plan.permute == 'all' else f', permute={plan.permute!r}'
    steps += '' if plan.negate else ', negate=False'
    print(f'    keyseg encrypt-image --key LOC --checkpoint {checkpoint} --config CONFIG IN OUT.png')
    print(
        f"    dict(type='keyseg_mm.EncryptPatches', key='LOC', patch={plan.patch}, salt={plan.salt.hex()!r}{steps})"
        '   behind everything that resizes'
    )


def _show(plan: PatchPlan, proof: PatchProof) -> None:
    """The plan and its effect.

    Raises:
        LockError: the locked model is not the plain one on encrypted images, or is on plain ones.
    """
    from keyseg_mm.cli.lock import agreement_words

    for embedding in plan.embeddings:
        print(f'{embedding.weight}: blocks of {plan.patch} x {plan.patch} pixels, {plan.steps}')
        print(f'  the constant goes into {embedding.offset}' if embedding.offset else '  no constant to put anywhere')
    print(f'  2^{plan.key_space:.0f} ciphers, of which a key of 256 bits picks one')
    print('\nthe proof, on painted street scenes, against the plain model on plain ones:')
    print(f'  encrypted images             {agreement_words(proof.encrypted)}')
    print(f'  plain images                 {agreement_words(proof.plain)}')
    print(f'  encrypted with another key   {agreement_words(proof.wrong)}')
    if not proof.encrypted.is_equal:
        raise LockError(
            f'on encrypted images the locked model is not the plain one (relative error {proof.encrypted.error:.1e}): '
            'something else reads the image or its embedding. Nothing was written'
        )
    if min(proof.plain.error, proof.wrong.error) < _NOTHING:
        raise LockError('the locked model takes plain images too: nothing would be protected. Nothing was written')
