"""Lock a trained checkpoint: seal its file, in about the time of copying it, without losing a bit.

Every tensor is encrypted and authenticated (AES-256-GCM), in the host's own format: names and shapes stay, the numbers
are noise. Whoever holds the key, or is a recipient, opens it in memory as it is loaded. The file is proved before you
are told that it was made: it is opened again, and compared bit by bit. Any state_dict of any framework can be sealed.

With --config, secret maps are carried into the weights too, so that they are of no use either where they are in the
open: in a running model or an exported graph. The model is run once to see which layers are called; each of them gets
its input encrypted with the key, and its weights turned so that with the key nothing changes. That is proved first.

Other schemes, from the literature, with --config:
  --scheme tensors     the values of all tensors are put into a secret order; the model runs only opened
  --scheme selective   so are the most sensitive values alone
  --scheme patches     a vision transformer without overlapping patches (SETR, Segmenter, DPT, UPerNet on ViT, BEiT, MAE
                       or Swin, Twins) takes images that the client encrypts, with `keyseg tool encrypt_images`; the
                       server needs no key and sees no plain image. Its weights stay in the open, and are signed

examples:
  keyseg keygen --out keys/my.key
  keyseg lock plain.pth --key file:keys/my.key --out locked.pth
  keyseg lock plain.pth --key file:keys/my.key --out locked.pth --to file:customer.recipient
  keyseg lock plain.pth --config CONFIG --key file:keys/my.key --out locked.pth --write-config locked.py
  keyseg lock plain.pth --master file:keys/master.key --licensee 'ACME Ltd' --out acme.pth      with their fingerprint
  keyseg lock plain.pth --config CONFIG --dry-run                 see where maps would be
  keyseg lock plain.pth --config CONFIG --key file:keys/my.key --out locked.safetensors --transform ChannelRotation
  keyseg lock plain.pth --config CONFIG --key file:keys/my.key --out locked.pth --scheme patches
  keyseg lock plain.pth --config CONFIG --dry-run --public pretrained.pth    still close to the weights it came from?

then, to test it at the plain model's speed, with the model's own config or with one that --write-config wrote:
  keyseg test CONFIG locked.pth --key file:keys/my.key
  keyseg test locked.py locked.pth
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyseg_mm.cli.console import (
    add_block_steps,
    add_key,
    add_licensee,
    add_out,
    add_recipients,
    fingerprint_of,
    master_key,
    print_dropped,
    print_fingerprint,
    real_key,
    recipients_of,
)
from keyseg_mm.errors import LockError

if TYPE_CHECKING:
    from keyseg_mm.checkpoint.opened import Opened
    from keyseg_mm.keys.identity import Key
    from keyseg_mm.locking import Plan

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
    parser.add_argument('checkpoint', type=Path, help='plain checkpoint, .pth or .safetensors')
    add_key(parser, required=False)
    add_out(parser, 'protected checkpoint to make', required=False)
    add_recipients(parser, 'besides the key')
    parser.add_argument(
        '--config', type=Path, help="the model's config, plain or protected: carry maps into its weights"
    )
    parser.add_argument(
        '--no-seal', action='store_true', help='with --config: leave the weights in the open, signed, for research'
    )
    parser.add_argument('--scheme', choices=SCHEMES, default=SCHEMES[0], help='with --config: what is done (features)')
    parser.add_argument('--salt', metavar='HEX', help='32 hex digits, public (fresh ones, which the checkpoint tells)')
    parser.add_argument(
        '--write-config', type=Path, metavar='FILE', help='with --config: a config to make, that runs what was locked'
    )
    add_licensee(parser)
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
    """Seal a file, or carry maps into its weights too."""
    from keyseg_mm.atomic import refuse_existing

    options = _options(args)
    if args.licensee and (args.key or args.salt):
        raise LockError('--licensee takes no --key and no --salt: both are derived from the master key')
    mark = fingerprint_of(args)
    if not args.dry_run:
        if not (args.key or args.licensee) or not args.out:
            raise LockError('give --key and --out, or, with --config, --dry-run to see the plan')
        refuse_existing(args.out, args.overwrite)
        if args.write_config:
            _check_written(args)
    return _seal(args, options, mark) if args.config is None else _carry(args, options, mark)


def _key_of(args: argparse.Namespace) -> Key:
    if args.licensee:
        args.key = 'file:THEIR.key'  # what advice and a config are to name
        found: Key = master_key(args.master).licensee(args.licensee)
        return found
    return real_key(args.key)


def _carry(args: argparse.Namespace, options: dict[str, Any], mark: Any) -> int:
    """Plan, prove, write."""
    from keyseg_mm import baselines  # noqa: F401 - their schemes
    from keyseg_mm.bind import licensee_salt
    from keyseg_mm.checkpoint.marks import put_mark
    from keyseg_mm.checkpoint.opened import open_checkpoint
    from keyseg_mm.cli import lock_report
    from keyseg_mm.keys.key import SecretKey
    from keyseg_mm.locking import SCHEMES as KNOWN
    from keyseg_mm.mm.bench import HostBench
    from keyseg_mm.mm.config import build_plain_model, read_config
    from keyseg_mm.stamp import fresh_salt, parse_salt

    salt = parse_salt(args.salt) if args.salt else fresh_salt()
    key = SecretKey.generate() if args.dry_run else _key_of(args)
    cfg = read_config(args.config)
    model = build_plain_model(cfg)
    opened = open_checkpoint(args.checkpoint)
    opened.fit(model)
    if mark is not None:
        put_mark(opened, mark)
    weights, scheme = opened.state_dict, KNOWN[args.scheme]
    if args.licensee:
        salt = licensee_salt(master_key(args.master), args.licensee, weights, args.scheme in ('tensors', 'selective'))
    public = lock_report.read_public(args.public, weights)
    plan = scheme.plan(model, weights, **options)
    proof = scheme.prove(HostBench(), model, weights, plan, key, salt)
    lock_report.show_plan(proof.plan, weights)
    lock_report.show_proof(proof)
    lock_report.show_public(proof.plan, weights, public, cfg)
    if args.dry_run:
        print('\na dry run: nothing was written')
        return 0
    return _write(args, opened, proof.plan, key, salt, cfg, mark)


def _check_written(args: argparse.Namespace) -> None:
    """Make sure that ``--write-config`` can be done."""
    from keyseg_mm.atomic import refuse_existing

    if args.config is None or args.scheme == 'patches':
        raise LockError('--write-config goes with --config, and with schemes whose models need a key to run')
    if args.key == '-':
        raise LockError('--write-config: a config names its key, so --key - does not do: take file:, env: or keyring:')
    refuse_existing(args.write_config, args.overwrite)


def _write(args: argparse.Namespace, opened: Opened, plan: Plan, key: Key, salt: bytes, cfg: Any, mark: Any) -> int:
    from keyseg_mm.atomic import write_new
    from keyseg_mm.checkpoint.opened import open_checkpoint
    from keyseg_mm.checkpoint.operations import lock_opened
    from keyseg_mm.cli import lock_report
    from keyseg_mm.envelope import SEALED, SIGNED
    from keyseg_mm.mm.keyed_config import is_keyed, opened_config
    from keyseg_mm.seal.sections import Sealing

    signed = args.no_seal or args.scheme == 'patches'  # who runs a model of encrypted images has no key
    how = Sealing(key, (key, *recipients_of(args)), SIGNED if signed else SEALED, mark.strength if mark else 0.0)
    stamp = lock_opened(opened, plan, how, args.out, salt, args.overwrite)
    open_checkpoint(args.out, key)  # it opens
    what = 'for images encrypted' if stamp.embeddings else 'protected'
    print(f'\nmade {args.out}, {what} with key {" and ".join(to.id for to in how.everybody)}')
    print_dropped(opened.dropped)
    print_fingerprint(mark, args.licensee)
    if args.write_config:
        text = opened_config(cfg, args.key, str(args.out))
        write_new(args.write_config, lambda file: file.write(text.encode()), overwrite=args.overwrite)
        print(f'made {args.write_config}, a config that runs it')
    lock_report.show_use(args, not is_keyed(cfg))
    print(f'  keep {args.checkpoint} to yourself: it is the plain model')
    return 0


def _seal(args: argparse.Namespace, options: dict[str, Any], mark: Any) -> int:
    """Seal the file alone."""
    from keyseg_mm.checkpoint.operations import prove_sealed, seal_file
    from keyseg_mm.cli import lock_report
    from keyseg_mm.seal.sections import Sealing

    asked = [f'--{name}' for name in ('dry_run', 'no_seal', 'salt') if getattr(args, name)]
    asked += [f'--{name}' for name in options]
    if asked or args.scheme != SCHEMES[0]:
        names = ', '.join(asked).replace('_', '-') or f'--scheme {args.scheme}'
        raise LockError(f"{names}: maps in the weights take the model's --config; without it the file alone is sealed")
    key = _key_of(args)
    how = Sealing(key, (key, *recipients_of(args)))
    dropped = seal_file(args.checkpoint, how, args.out, args.overwrite, mark)
    prove_sealed(args.checkpoint, args.out, key, mark)
    print(f'made {args.out}, sealed for {" and ".join(to.id for to in how.everybody)}; it opens bit for bit')
    print_dropped(dropped)
    print_fingerprint(mark, args.licensee)
    lock_report.show_use(args, None)
    print(f'  keep {args.checkpoint} to yourself: it is the plain model')
    return 0


def parse_transform(text: str) -> str | dict[str, Any]:
    """``NAME`` or ``NAME:BLOCK`` of a command line."""
    name, _, block = text.partition(':')
    if not block:
        return name
    if not re.fullmatch('[0-9]{1,9}', block):
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
