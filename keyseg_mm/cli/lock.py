"""Lock a trained checkpoint: plain to protected, in seconds, without training and without losing a bit.

The model is run once to see which layers are really called. Each of them gets its input encrypted with the key, and its
weights turned so that with the key nothing changes. The locked model is proved before it is written: with the key it
agrees with the plain one, without it does not. Nothing but the weights and the checkpoint's `meta` is written.

Other schemes, from the literature:
  --scheme tensors     the values of all tensors are put into a secret order; the model runs only opened, in memory or
                       as a file
  --scheme selective   so are the most sensitive values alone
  --scheme patches     a vision transformer without overlapping patches (SETR, Segmenter, DPT, UPerNet on ViT, BEiT, MAE
                       or Swin, Twins) takes images that the client encrypts; the server needs no key and sees no plain
                       image

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
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyseg_mm.cli.console import print_dropped, print_table, real_key
from keyseg_mm.errors import LockError

if TYPE_CHECKING:
    from keyseg_mm.locking.plan import Plan
    from keyseg_mm.locking.proof import Agreement, Proof
    from keyseg_mm.stamp import Stamp

# written out: --help must not wait for torch
SCHEMES = ('features', 'tensors', 'selective', 'patches')
# which scheme each option belongs to
_OPTIONS = {
    'points': 'features',
    'transform': 'features',
    'public': 'features',
    'share': 'selective',
    'permute': 'patches',
    'no_negate': 'patches',
}
_SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``keyseg lock``."""
    parser.add_argument('config', type=Path, help="the model's config, plain or protected")
    parser.add_argument('checkpoint', type=Path, help='plain checkpoint, .pth or .safetensors')
    parser.add_argument('--key', metavar='LOC', help='locator of the key')
    parser.add_argument('--out', type=Path, metavar='FILE', help='protected checkpoint to make')
    parser.add_argument('--scheme', choices=SCHEMES, default='features', help='how to protect it (features)')
    parser.add_argument('--salt', metavar='HEX', help='32 hex digits, public (fresh ones, which the checkpoint tells)')
    parser.add_argument('--dry-run', action='store_true', help='show the plan and its effect, and write nothing')
    parser.add_argument('--overwrite', action='store_true', help='replace FILE if it exists')
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
    add_steps(parser.add_argument_group('scheme patches'))


def add_steps(parser: Any) -> None:
    """What is done to a block of an image: the same for models and images."""
    parser.add_argument(
        '--permute',
        choices=('all', 'channel', 'none'),
        help='what changes places within a block: all values, across the channels too (default), those of each channel '
        'for themselves, or none',
    )
    parser.add_argument('--no-negate', action='store_true', help='do not take half of the values from 255')


def run(args: argparse.Namespace) -> int:
    """Plan, prove, write."""
    from keyseg_mm import baselines  # noqa: F401 - their schemes
    from keyseg_mm.atomic import refuse_existing
    from keyseg_mm.checkpoint.operations import lock_opened, open_checkpoint
    from keyseg_mm.keys.key import SecretKey
    from keyseg_mm.locking import SCHEMES as FOUND
    from keyseg_mm.mm.bench import HostBench
    from keyseg_mm.mm.config import build_plain_model, read_config
    from keyseg_mm.stamp import fresh_salt, parse_salt

    options = _scheme_options(args)
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
    public = _read_public(args.public, opened.state_dict)
    scheme = FOUND[args.scheme]
    plan = scheme.plan(model, opened.state_dict, **options)
    proof = scheme.prove(HostBench(), model, opened.state_dict, plan, key, salt)
    _show_plan(proof.plan, opened.state_dict)
    _show_proof(args.scheme, proof)
    if args.scheme == 'features':
        _show_nearness(proof.plan, opened.state_dict, public, args.public, cfg)
    if args.dry_run:
        print('\na dry run: nothing was written')
        return 0
    stamp = lock_opened(opened, proof.plan, key, args.out, salt, args.overwrite)
    print(f'\nmade {args.out}, protected with key {stamp.key_id}')
    print_dropped(opened.dropped)
    _show_use(stamp, args.out)
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


def _scheme_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of the scheme; those of another are refused."""
    for name, owner in _OPTIONS.items():
        if getattr(args, name) and owner != args.scheme:
            raise LockError(f'--{name.replace("_", "-")} goes with --scheme {owner}, not with {args.scheme}')
    found: dict[str, Any] = {}
    if args.points:
        found['points'] = args.points
    if args.transform:
        found['transform'] = parse_transform(args.transform)
    if args.share is not None:
        found['share'] = args.share
    if args.scheme == 'patches':
        found.update(permute=args.permute or 'all', negate=not args.no_negate)
    return found


def _show_plan(plan: Plan, weights: dict[str, Any]) -> None:
    """What is locked, and what is not, and why."""
    from keyseg_mm.baselines.patches import steps_of
    from keyseg_mm.entries import EmbeddingEntry, TensorEntry, describe
    from keyseg_mm.locking.scheme import scheme_of

    total = sum(t.numel() for t in weights.values() if t.is_floating_point())
    tensors = [entry for entry in plan.entries if isinstance(entry, TensorEntry)]
    if plan.maps:
        sizes = [sum(weights[name].numel() for name in entry.weights) for entry in plan.maps]
        rows = [
            (e.point, site.layer, str(e.channels), describe(e.transform), f'{100 * size / total:.2f} %')
            for e, site, size in zip(plan.maps, plan.sites, sizes)
        ]
        print_table(('point', 'layer', 'channels', 'transform', 'parameters'), rows)
        print(f'\n{len(rows)} points carry {100 * sum(sizes) / total:.1f} % of the parameters')
    elif tensors:
        most = sorted(tensors, key=lambda tensor: -tensor.count)[:_SHOWN]
        print_table(
            ('tensor', 'values moved', 'transform'), [(t.names[0], str(t.count), describe(t.transform)) for t in most]
        )
        if len(tensors) > _SHOWN:
            print(f'... and {len(tensors) - _SHOWN} more')
        moved = sum(tensor.count for tensor in tensors)
        print(f'\n{moved} values of {len(tensors)} tensors are moved, {100 * moved / total:.2f} % of the model')
    for entry in plan.entries:
        if isinstance(entry, EmbeddingEntry):
            print(f'{entry.weight}: blocks of {entry.patch} x {entry.patch} pixels, {steps_of(entry)}')
            print(f'  the constant goes into {entry.offset}' if entry.offset else '  no constant to put anywhere')
            print(f'  2^{scheme_of(entry).key_space(entry):.0f} ciphers, of which a key of 256 bits picks one')
    _show_left_out(plan.left_out)


def _show_left_out(left_out: dict[str, str]) -> None:
    by_reason: dict[str, list[str]] = {}
    for name, why in left_out.items():
        by_reason.setdefault(why, []).append(name)
    for why, names in by_reason.items():
        print(f'left plain: {len(names)} ({why}): {", ".join(names[:3])}{" ..." if len(names) > 3 else ""}')


def _show_proof(scheme: str, proof: Proof) -> None:
    from keyseg_mm.mm.advice import warn_of_few_maps

    print('\nthe proof, on painted street scenes, against the plain model:')
    right = 'bit for bit' if proof.with_key is None else agreement_words(proof.with_key)
    label = 'encrypted images' if scheme == 'patches' else 'with the key'
    width = max(map(len, (label, *proof.without)))
    for name, words in {label: right, **{n: agreement_words(found) for n, found in proof.without.items()}}.items():
        print(f'  {name:{width}}   {words}')
    none = next(iter(proof.without.values()))
    if proof.is_weak:
        what = {'features': 'these points', 'patches': 'these blocks'}.get(scheme, 'these values')
        print(
            f'WARNING: {what} barely change the output: without the key it differs from the plain one by '
            f'{100 * none.error:.1f} %{_kappa(none.kappa)}. Whoever has the file has most of the accuracy.'
        )
        print(
            {'features': 'Take --points linear, or points that all of the signal passes'}.get(
                scheme, 'Take a larger --share, or --scheme tensors'
            )
        )
    warning = warn_of_few_maps(proof.plan.maps)
    if warning:
        print(f'WARNING: {warning}')


def _read_public(path: Path | None, weights: dict[str, Any]) -> dict[str, Any] | None:
    from keyseg_mm.cli.nearness import read_public_for

    return read_public_for(path, weights) if path else None


def _show_nearness(plan: Plan, weights: dict[str, Any], public: Any, path: Path | None, cfg: Any) -> None:
    from keyseg_mm.cli.nearness import hint_at_public, show_nearness

    if path is None:
        hint_at_public(cfg)
    else:
        show_nearness(plan.maps, weights, public, path)


def _show_use(stamp: Stamp, out: Path) -> None:
    """How the locked model is run."""
    if stamp.embeddings:
        print('  it runs without a key, with its plain config, on images encrypted as follows:')
        print_uses(stamp, str(out))
        return
    print("  run it with model=dict(type='keyseg_mm.Keyed', of=<the model's type>, protection=dict(key='file:...', ")
    if stamp.tensors:
        print('    unlock=True)): its weights are unlocked in memory as they are loaded')
    else:
        print("    points='checkpoint'))   or unlock=True in the place of points, for the plain model's speed")


def print_uses(stamp: Stamp, checkpoint: str) -> None:
    """How images are encrypted for a model: on the command line, and in a pipeline."""
    entry = stamp.embeddings[0]
    steps = '' if entry.permute == 'all' else f', permute={entry.permute!r}'
    steps += '' if entry.negate else ', negate=False'
    print(f'    keyseg encrypt-image --key LOC --checkpoint {checkpoint} --config CONFIG IN OUT.png')
    print(
        f"    dict(type='keyseg_mm.EncryptImage', key='LOC', method='PATCH', block={entry.patch}, "
        f'salt={stamp.salt.hex()!r}{steps})   behind everything that resizes'
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
