"""Lock a trained checkpoint: plain to protected, in seconds, without training and without losing a bit.

The model is run once to see which layers are really called. Each of them gets its input encrypted with the key, and its
weights turned so that with the key nothing changes. The locked model is proved before it is written: with the key it
agrees with the plain one, without it does not. Nothing but the weights and the checkpoint's `meta` is written.

--mode tensors and --mode selective encrypt weights instead of feature maps: the values of all tensors, or the most
sensitive values alone, are put into a secret order. Such a model runs only unlocked, in memory or as a file.

examples:
  keyseg keygen --out keys/my.key
  keyseg lock CONFIG plain.pth --dry-run                          see what would be locked
  keyseg lock CONFIG plain.pth --key file:keys/my.key --out locked.pth
  keyseg lock CONFIG plain.pth --key file:keys/my.key --out locked.safetensors --transform ChannelRotation
  keyseg lock CONFIG plain.pth --key file:keys/my.key --out locked.pth --mode tensors
  keyseg lock CONFIG plain.pth --key file:keys/my.key --out locked.pth --mode selective --share 0.01
  keyseg lock CONFIG plain.pth --dry-run --public pretrained.pth  is it still close to the public weights it came from?

then, to test it at the plain model's speed:
  keyseg test KEYED_CONFIG locked.pth --cfg-options model.protection.key=file:keys/my.key model.protection.unlock=True
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyseg_mm.cli.console import print_dropped, print_table, real_key
from keyseg_mm.errors import LockError
from keyseg_mm.mm.advice import warn_of_few_maps

if TYPE_CHECKING:
    from keyseg_mm.lockplan import LockPlan
    from keyseg_mm.mm.proof import Agreement, Proof
    from keyseg_mm.weightplan import WeightPlan

FEATURES = 'features'
# and those of the weight transforms, written out: --help must not wait for torch
MODES = (FEATURES, 'tensors', 'selective')
_SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``keyseg lock``."""
    parser.add_argument('config', type=Path, help="the model's config, plain or protected")
    parser.add_argument('checkpoint', type=Path, help='plain checkpoint, .pth or .safetensors')
    parser.add_argument('--key', metavar='LOC', help='locator of the key')
    parser.add_argument('--out', type=Path, metavar='FILE', help='protected checkpoint to make')
    parser.add_argument(
        '--mode',
        choices=MODES,
        default=FEATURES,
        help='encrypt feature maps (default), the values of all tensors, or a share of the weights, the most sensitive',
    )
    parser.add_argument(
        '--share', type=float, metavar='S', help='with --mode selective: of all weights (default: 0.01)'
    )
    parser.add_argument(
        '--points', nargs='+', metavar='POINT', help='with --mode features: where (default: linear, all layers)'
    )
    parser.add_argument(
        '--transform',
        help='with --mode features: SignedChannelPermutation (default), ChannelPermutation or ChannelRotation; with a '
        'block size: ChannelRotation:16',
    )
    parser.add_argument(
        '--public',
        type=Path,
        metavar='FILE',
        help='public weights that the model was trained from: warns of layers that are still close to them',
    )
    parser.add_argument('--dry-run', action='store_true', help='show the plan and its effect, and write nothing')
    parser.add_argument('--overwrite', action='store_true', help='replace FILE if it exists')


def run(args: argparse.Namespace) -> int:
    """Plan, prove, write."""
    from keyseg_mm.atomic import refuse_existing
    from keyseg_mm.checkpoint.operations import lock_file, open_checkpoint
    from keyseg_mm.cli.nearness import hint_at_public, read_public_for, show_nearness
    from keyseg_mm.keys.key import SecretKey
    from keyseg_mm.lockplan import fit
    from keyseg_mm.mm.config import build_plain_model, read_config
    from keyseg_mm.stamp import SALT_BYTES

    if args.public and args.mode != FEATURES:
        raise LockError('--public goes with --mode features: moved values cannot be lined up with public ones')
    if not args.dry_run:
        if not args.key or not args.out:
            raise LockError('give --key and --out, or --dry-run to see the plan')
        refuse_existing(args.out, args.overwrite)
    key = SecretKey.generate() if args.dry_run else real_key(args.key)
    cfg = read_config(args.config)
    model = build_plain_model(cfg)
    opened = open_checkpoint(args.checkpoint)
    weights = fit(opened.state_dict, model, drop=True)
    public = read_public_for(args.public, weights) if args.public else None
    salt = os.urandom(SALT_BYTES)
    make = _features if args.mode == FEATURES else _weights
    plan: Any = make(model, weights, args, key, salt)
    if args.mode == FEATURES and public is None:
        hint_at_public(cfg)
    elif public is not None:
        show_nearness(plan.entries, weights, public, args.public)
    if args.dry_run:
        print('\na dry run: nothing was written')
        return 0
    del opened, weights
    stamp, dropped = lock_file(args.checkpoint, model, plan, key, args.out, salt, args.overwrite)
    print(f'\nmade {args.out}, protected with key {stamp.key_id}')
    print_dropped(dropped)
    print("  run it with model=dict(type='keyseg_mm.Keyed', of=<the model's type>, protection=dict(key='file:...', ")
    if stamp.tensors:
        print('    unlock=True)): its weights are unlocked in memory as they are loaded')
    else:
        print("    points='checkpoint'))   or unlock=True in the place of points, for the plain model's speed")
    print(f'  keep {args.checkpoint} to yourself: it is the plain model')
    return 0


def _features(model: Any, weights: dict[str, Any], args: argparse.Namespace, key: Any, salt: bytes) -> LockPlan:
    """Plan and prove a lock of feature maps, and show both."""
    if args.share is not None:
        raise LockError('--share goes with --mode selective')
    args.points = args.points or ['linear']
    plan, proof = _planned_and_proved(model, weights, args, key, salt)
    show_plan(plan, weights)
    right = proof.with_key
    _show_proof(f'relative error {right.error:.1e}{_pixels(right.same)}', proof.without_key, 'these points')
    if proof.is_weak:
        print('Take --points linear, or points that all of the signal passes')
    warning = warn_of_few_maps(plan.entries)
    if warning:
        print(f'WARNING: {warning}')
    return plan


def _weights(model: Any, weights: dict[str, Any], args: argparse.Namespace, key: Any, salt: bytes) -> WeightPlan:
    """Plan and prove an encryption of weights, and show both."""
    from keyseg_mm.mm.proof import prove_weights
    from keyseg_mm.weightplan import plan_weights
    from keyseg_mm.weights import WEIGHT_TRANSFORMS

    if args.points or args.transform:
        raise LockError(f'--points and --transform go with --mode {FEATURES}: --mode {args.mode} encrypts weights')
    spec: dict[str, Any] = {'type': next(n for n, kind in WEIGHT_TRANSFORMS.items() if kind.mode == args.mode)}
    if args.share is not None:
        spec['share'] = args.share
    plan = plan_weights(model, weights, spec)
    without_key = prove_weights(model, weights, plan, key, salt)
    if without_key.is_the_same:
        raise LockError(
            'the model gives the same with these values in a secret order (relative change '
            f'{without_key.error:.1e}): nothing would be protected. Take a larger --share. Nothing was written'
        )
    show_weight_plan(plan)
    _show_proof('the plain model, bit for bit', without_key, 'these values')
    if without_key.is_close:
        print('Take a larger --share, or --mode tensors')
    return plan


def parse_transform(text: str) -> str | dict[str, Any]:
    """``NAME`` or ``NAME:BLOCK`` of a command line."""
    name, _, block = text.partition(':')
    if not block:
        return name
    if not block.isdecimal():
        raise LockError(f'{text!r}: a transform is written NAME or NAME:BLOCK, as ChannelRotation:16')
    return {'type': name, 'block': int(block)}


def _planned_and_proved(
    model: Any, weights: dict[str, Any], args: argparse.Namespace, key: Any, salt: bytes
) -> tuple[LockPlan, Proof]:
    """A plan that is right; layers of a preset that make it wrong are left out.

    Raises:
        LockError: a layer that was asked for by name makes it wrong, or the lock changes nothing.
    """
    from keyseg_mm.lockplan import DEFAULT_TRANSFORM, plan_lock
    from keyseg_mm.mm.proof import prove

    plan = plan_lock(model, args.points, parse_transform(args.transform or DEFAULT_TRANSFORM))
    proof = prove(model, weights, plan, key, salt)
    if proof.blame:
        named = [point for point in proof.blame if point in args.points]
        if named:
            raise LockError(
                f'locked at {", ".join(named)}, the model with its key is not the plain one (relative error '
                f'{proof.with_key.error:.1e}): its weight is used for more than the layer itself; leave it out. '
                'Nothing was written'
            )
        plan = plan.without(proof.blame, 'its weight is used for more than the layer itself (found by the proof)')
        proof = prove(model, weights, plan, key, salt)
    if not proof.with_key.is_equal:
        raise LockError(
            f'the locked model with its key is not the plain one (relative error {proof.with_key.error:.1e}), and no '
            'layer alone is to blame; lock fewer points. Nothing was written'
        )
    if not proof.protects:
        raise LockError(
            f'locked at {", ".join(args.points)} the model gives the same without the key (relative change '
            f'{proof.without_key.error:.1e}): nothing would be protected. Take other points. Nothing was written'
        )
    return plan, proof


def show_plan(plan: LockPlan, weights: dict[str, Any]) -> None:
    """The table of what is locked, and what is not, and why."""
    from keyseg_mm.stamp import describe

    total = sum(t.numel() for t in weights.values() if t.is_floating_point())
    rows, locked = [], 0
    for entry, site in zip(plan.entries, plan.sites):
        size = sum(weights[name].numel() for name in entry.weights)
        locked += size
        share = f'{100 * size / total:.2f} %'
        rows.append((entry.point, site.layer, str(entry.channels), describe(entry.transform), share))
    print_table(('point', 'layer', 'channels', 'transform', 'parameters'), rows)
    print(f'\n{len(rows)} points carry {100 * locked / total:.1f} % of the parameters')
    _show_left_out(plan.left_out)


def show_weight_plan(plan: WeightPlan) -> None:
    """The tensors that have most of the encrypted values, and what is left plain, and why."""
    from keyseg_mm.stamp import describe

    most = sorted(plan.tensors, key=lambda tensor: -tensor.count)[:_SHOWN]
    print_table(
        ('tensor', 'values moved', 'transform'), [(t.names[0], str(t.count), describe(t.transform)) for t in most]
    )
    if len(plan.tensors) > _SHOWN:
        print(f'... and {len(plan.tensors) - _SHOWN} more')
    moved = sum(tensor.count for tensor in plan.tensors)
    share = 100 * moved / plan.values
    print(f'\n{moved} values of {len(plan.tensors)} tensors are moved, {share:.2f} % of the model')
    _show_left_out(plan.left_out)


def _show_left_out(left_out: dict[str, str]) -> None:
    by_reason: dict[str, list[str]] = {}
    for name, why in left_out.items():
        by_reason.setdefault(why, []).append(name)
    for why, names in by_reason.items():
        print(f'left plain: {len(names)} ({why}): {", ".join(names[:3])}{" ..." if len(names) > 3 else ""}')


def _show_proof(with_key: str, none: Agreement, what: str) -> None:
    print('\nthe proof, on painted street scenes:')
    print(f'  with the key     {with_key}')
    print(f'  without it       {agreement_words(none)}')
    if none.is_close:
        print(
            f'WARNING: {what} barely change the output: without the key it differs from the plain one by '
            f'{100 * none.error:.1f} %{_kappa(none.kappa)}. Whoever has the file has most of the accuracy.'
        )


def agreement_words(found: Agreement) -> str:
    """How far two models agree."""
    if found.is_equal:
        return f'relative error {found.error:.1e}{_pixels(found.same)}'
    if math.isinf(found.error):
        return 'the model does not run, or gives no numbers'
    return f'relative error {found.error:.2f}{_pixels(found.same)}{_kappa(found.kappa)}'


def _pixels(same: float) -> str:
    return '' if math.isnan(same) else f', the same class at {100 * same:.2f} % of the pixels'


def _kappa(kappa: float) -> str:
    return '' if math.isnan(kappa) else f' (kappa {kappa:.2f}: 1 is the same, 0 is chance)'
