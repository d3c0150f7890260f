"""What ``keyseg lock`` shows: the plan, its proof, what is close to public weights, and how the result is used."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from keyseg_mm.audit.model import loading
from keyseg_mm.audit.model.attack import carriers
from keyseg_mm.baselines.patches import steps_of
from keyseg_mm.cli.console import print_table
from keyseg_mm.entries import EmbeddingEntry, TensorEntry, describe
from keyseg_mm.locking import Plan
from keyseg_mm.locking.proof import Agreement, Proof
from keyseg_mm.locking.scheme import scheme_of
from keyseg_mm.mm.advice import CLOSE, warn_of_few_maps
from keyseg_mm.mm.config import pretrained_files

_SHOWN = 10  # tensors
_NEAREST = 5  # layers named
# what barely changes the output, and what to do about it
_WEAK = {
    'features': ('these points', 'Take --points linear, or points that all of the signal passes'),
    'selective': ('these values', 'Take a larger --share, or --scheme tensors'),
    'tensors': ('these values', 'This model says nearly the same whatever its weights are'),
}


class Public(NamedTuple):
    """Public weights by the names of the model's own, and their file."""

    path: Path
    weights: dict[str, Tensor]


def show_plan(plan: Plan, weights: dict[str, Any]) -> None:
    """What is locked, and what is not, and why."""
    total = sum(t.numel() for t in weights.values() if t.is_floating_point())
    if plan.maps:
        sizes = [sum(weights[name].numel() for name in entry.weights) for entry in plan.maps]
        rows = [
            (e.point, site.layer, str(e.channels), describe(e.transform), f'{100 * size / total:.2f} %')
            for e, site, size in zip(plan.maps, plan.sites, sizes)
        ]
        print_table(('point', 'layer', 'channels', 'transform', 'parameters'), rows)
        print(f'\n{len(rows)} points carry {100 * sum(sizes) / total:.1f} % of the parameters')
    _show_tensors([entry for entry in plan.entries if isinstance(entry, TensorEntry)], total)
    for entry in plan.entries:
        if isinstance(entry, EmbeddingEntry):
            print(f'{entry.weight}: blocks of {entry.patch} x {entry.patch} pixels, {steps_of(entry)}')
            print(f'  the constant goes into {entry.offset}' if entry.offset else '  no constant to put anywhere')
            print(f'  2^{scheme_of(entry).key_space(entry):.0f} ciphers, of which a key of 256 bits picks one')
    by_reason: dict[str, list[str]] = {}
    for name, why in plan.left_out.items():
        by_reason.setdefault(why, []).append(name)
    for why, names in by_reason.items():
        print(f'left plain: {len(names)} ({why}): {", ".join(names[:3])}{" ..." if len(names) > 3 else ""}')


def _show_tensors(tensors: list[TensorEntry], total: int) -> None:
    """The tensors with the most values that are moved."""
    if not tensors:
        return
    most = sorted(tensors, key=lambda tensor: -tensor.count)[:_SHOWN]
    rows = [(tensor.names[0], str(tensor.count), describe(tensor.transform)) for tensor in most]
    print_table(('tensor', 'values moved', 'transform'), rows)
    if len(tensors) > _SHOWN:
        print(f'... and {len(tensors) - _SHOWN} more')
    moved = sum(tensor.count for tensor in tensors)
    print(f'\n{moved} values of {len(tensors)} tensors are moved, {100 * moved / total:.2f} % of the model')


def show_proof(proof: Proof) -> None:
    """How far the locked model agrees with the plain one, with the key and without, and what to worry about."""
    right = 'encrypted images' if proof.plan.scheme == 'patches' else 'with the key'
    lines = {right: 'bit for bit' if proof.with_key is None else _words(proof.with_key)}
    lines.update((name, _words(found)) for name, found in proof.without.items())
    print('\nthe proof, on painted street scenes, against the plain model:')
    width = max(map(len, lines))
    for name, words in lines.items():
        print(f'  {name:{width}}   {words}')
    if proof.is_weak and proof.plan.scheme in _WEAK:
        what, instead = _WEAK[proof.plan.scheme]
        none = next(iter(proof.without.values()))
        print(
            f'WARNING: {what} barely change the output: without the key it differs from the plain one by '
            f'{100 * none.error:.1f} %{_kappa(none.kappa)}. Whoever has the file has most of the accuracy.\n{instead}'
        )
    warning = warn_of_few_maps(proof.plan.maps)
    if warning:
        print(f'WARNING: {warning}')


def _words(found: Agreement) -> str:
    """How far two models agree."""
    if math.isinf(found.error):
        return 'the model does not run, or gives no numbers'
    same = '' if math.isnan(found.same) else f', the same class at {100 * found.same:.2f} % of the pixels'
    if found.is_equal:
        alone = '; in testing alone: there are no losses to compare' if math.isnan(found.loss_error) else ''
        return f'relative error {found.error:.1e}{same}{alone}'
    return f'relative error {found.error:.2f}{same}{_kappa(found.kappa)}'


def _kappa(kappa: float) -> str:
    return '' if math.isnan(kappa) else f' (kappa {kappa:.2f}: 1 is the same, 0 is chance)'


def read_public(path: Path | None, weights: dict[str, Any]) -> Public | None:
    """The public weights of ``--public``, if it was given."""
    return Public(path, loading.read_public(path, weights)) if path else None


def show_public(plan: Plan, weights: dict[str, Any], public: Public | None, cfg: Any) -> None:
    """Warn of layers that are close to the public weights, or name those that a config starts from."""
    names = pretrained_files(cfg)
    if plan.maps and public is None and names:
        print(
            f'\nhint: this config starts from {", ".join(names)}; if others can have that, give the file as --public: '
            'whoever has it can realign layers that are still close to it'
        )
    if not plan.maps or public is None:
        return
    found = []  # relative difference to the public weights, and layer
    for name in {name for entry in plan.maps for name in carriers(entry)} & {*public.weights}:
        ours, theirs = weights[name].double(), public.weights[name].double()
        if ours.shape == theirs.shape:
            distance = float((ours - theirs).norm() / theirs.norm().clamp_min(1e-12))
            found.append((distance, name.removesuffix('.weight')))
    nearest = ', '.join(f'{name} ({distance:.3f})' for distance, name in sorted(found)[:_NEAREST])
    close = sum(distance < CLOSE for distance, _ in found)
    if not found:
        print(f'\nnone of the layers to be locked is in {public.path}: nothing was compared')
    elif not close:
        print(f'\nnone of {len(found)} layers is close to {public.path}; the nearest, by distance: {nearest}')
    else:
        print(
            f'\nWARNING: {close} of {len(found)} layers are close to public weights ({public.path}): whoever has those '
            f'can realign them. The nearest, by distance (0 is the same, below {CLOSE} is close, 1.4 is unrelated): '
            f'{nearest}. Train with the key from random weights instead, or fine-tune longer before you lock'
        )


def show_use(args: Any, is_plain: bool | None) -> None:
    """The commands that run what was made, to be pasted.

    Args:
        args: of ``keyseg lock``.
        is_plain: whether ``--config`` is a plain config; None without ``--config``.
    """
    if args.scheme == 'patches':
        print('  it runs without a key, with its plain config, on images encrypted as follows:')
        show_encryption(args.out, args.key, args.config)
        return
    config, out, key = (shlex.quote(str(word)) for word in (args.config or 'CONFIG', args.out, args.key))
    if args.write_config:
        command = f'keyseg test {shlex.quote(str(args.write_config))} {out}'
    else:
        command = f'keyseg test {config} {out} --key {key}{" --runtime plain" if is_plain is False else ""}'
    print(f"  test it, at the plain model's speed:\n    {command}")
    print('  or open it in Python:')
    print(f'    keyseg_mm.load(model, {str(args.out)!r}, keyseg_mm.locate({args.key!r}).key)')


def show_encryption(checkpoint: Path, key: str = 'LOC', config: Path | str | None = None) -> None:
    """How images are encrypted for a model: on the command line, and in a pipeline."""
    words = ['keyseg', 'tool', 'encrypt_images', '--key', key, '--checkpoint', str(checkpoint), '--config']
    print(f'    {shlex.join([*words, str(config or "CONFIG")])} IN OUT.png')
    print(
        f"    dict(type='keyseg_mm.EncryptImage', key={key!r}, method='PATCH')   behind what resizes; needs a GuardHook"
    )
