"""Show the public side of a key file, a checkpoint or a config. Never shows a secret.

With --points the model of a config is built and run once as in testing and once as in training, on a small noise image,
and its points are listed: every place where a feature map was seen, in which pass, with which shape. Without names all
of them are listed; with names those that they stand for, as in training.

examples:
  keyseg show keys/ade.key                     its key id
  keyseg show model.pth                        its stamp: key id, salt, points or tensors; how its images were encrypted
  keyseg show my_config.py                     its protection and encryption of images, and the ids of their keys
  keyseg show my_config.py --points stages     what would be encrypted: points, channels, shapes
  keyseg show my_config.py --points --match decode_head
  keyseg show model.pth --json                 the same for a program
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyseg_mm.cli.console import add_json, ask_passphrase, plain_model, print_json, print_table
from keyseg_mm.errors import KeysegError

if TYPE_CHECKING:
    from keyseg_mm.stamp import Stamp

_PIPELINES = ('train_dataloader', 'val_dataloader', 'test_dataloader', 'tta_pipeline')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``keyseg show``."""
    from keyseg_mm.model.points import PRESETS

    parser.add_argument('file', type=Path, help='key file, checkpoint (.pth, .safetensors) or config (.py)')
    presets = '; '.join(f'{name}: {meaning}' for name, meaning in PRESETS.items())
    parser.add_argument(
        '--points',
        nargs='*',
        metavar='POINT',
        help=f"list the points of a config's model: all, or those of points and presets ({presets})",
    )
    parser.add_argument('--match', metavar='TEXT', help='of these only points whose text holds TEXT')
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Tell the three kinds of files apart and show what they are."""
    from keyseg_mm.atomic import is_key_file

    path: Path = args.file
    if not path.is_file():
        raise KeysegError(f'{path}: no such file; show takes a key file, a checkpoint or a config')
    is_config = path.suffix in ('.py', '.json', '.yaml', '.yml')
    listed = args.points is not None or args.match is not None
    if listed and not is_config:
        raise KeysegError(f'{path} is no config; --points and --match list the points of a model, so give its config')
    if listed:
        facts = _points(path, args.points or [], args.match or '')
    else:
        facts = _config(path) if is_config else _key(path) if is_key_file(path) else _checkpoint(path)
    kind = facts.pop('tell')
    if args.json:
        print_json({'file': str(path), 'kind': kind, **{name: v for name, v in facts.items() if name != 'content'}})
    else:
        _TELL[kind](path, facts)
    return 0


def _points(config: Path, wanted: list[str], match: str) -> dict[str, Any]:
    """A model's points; of those that were asked for, which ones a training encrypts."""
    from keyseg_mm.locking.planning import plan_training
    from keyseg_mm.mm.dryrun import trace_module

    model = plain_model(config)
    trace = trace_module(model)
    plan = plan_training(model, wanted, 'ChannelPermutation', trace) if wanted else None
    names = ('point', 'channels', 'shape', 'module', 'fires_in')
    rows = [
        dict(zip(names, (str(s.point), s.channels, list(s.shape), s.layer, list(s.runs))))
        for s in (plan.sites if plan else trace.sites.values())
        if match in str(s.point)
    ]
    left_out = {str(name): why for name, why in plan.left_out.items()} if plan else {}
    return {'tell': 'points', 'model': type(model).__name__, 'points': rows, 'left_out': left_out}


def _tell_points(path: Path, facts: dict[str, Any]) -> None:
    rows = [
        (row['point'], str(row['channels']), 'x'.join(map(str, row['shape'])), row['module'], '+'.join(row['fires_in']))
        for row in facts['points']
    ]
    print_table(('point', 'channels', 'seen shape', 'module', 'fires in'), rows)
    print(f'\n{len(rows)} points of {facts["model"]}')
    for name, why in facts['left_out'].items():
        print(f'  left out: {name}: {why}')


def _key(path: Path) -> dict[str, Any]:
    from keyseg_mm.keys.identity import Identity
    from keyseg_mm.keys.keyfile import read_key_file, readable_by_others

    key = read_key_file(path, ask_passphrase)
    recipient = key.recipient.to_text() if isinstance(key, Identity) else None
    return {'tell': 'key', 'key_id': key.id, 'recipient': recipient, 'readable_by_others': readable_by_others(path)}


def _tell_key(path: Path, facts: dict[str, Any]) -> None:
    recipient = facts['recipient']
    print(f'{path}: {"an identity" if recipient else "a key"} file, key id {facts["key_id"]}')
    if recipient:
        print(f'  recipient, to be given away: {recipient}')
    if facts['readable_by_others']:
        print(f'  WARNING: others on this machine can read it; close it with: chmod 600 {path}')


_SEALS = {
    'sealed': 'sealed: its weights are ciphertext (AES-256-GCM), and altering any of it is an error',
    'signed': 'signed: its weights are in the open, and altering them is an error for whoever holds the key',
}


def _checkpoint(path: Path) -> dict[str, Any]:
    from keyseg_mm.checkpoint.files import read_checkpoint
    from keyseg_mm.seal.sections import covered
    from keyseg_mm.stamp import stamps_of

    content = read_checkpoint(path)
    sections, others = covered(content)
    stamps = [
        {'of': prefix, 'key_ids': list(stamp.key_ids), **json.loads(stamp.to_json())}
        for prefix, stamp in stamps_of(content['state_dict']).items()
    ]
    facts = {'covered': sections, 'not_covered': list(others)} if stamps else {}
    return {'tell': 'checkpoint', 'content': content, 'stamps': stamps, **facts}


def _tell_checkpoint(path: Path, facts: dict[str, Any]) -> None:
    from keyseg_mm.locking.parts import fitted
    from keyseg_mm.stamp import below, stamps_of

    tensors = facts['content']['state_dict']
    stamps = stamps_of(tensors)
    if not stamps:
        print(f'{path}: a plain checkpoint, it carries no stamp')
    for prefix, stamp in stamps.items():
        of = 'takes encrypted images, and runs without a key' if stamp.embeddings else 'protected'
        print(f'{path}: {of}{" at " + prefix if prefix else ""}')
        print(f'  key id  {" and ".join(stamp.key_ids)}')
        if stamp.seal is not None:
            print(f'  file    {_SEALS[stamp.seal.mode]}')
            _show_covered(facts)
        print(f'  salt    {stamp.salt.hex()}')
        if stamp.fingerprint:
            print(f"  copy    with the fingerprint of a licensee, of {stamp.fingerprint:g} of its weights' size")
        if stamp.tensors:
            lines = [(t.names[0], f'{t.count:8} values', t.transform) for t in stamp.tensors]
            _show_lines("encrypting a trained model's weights; it runs with protection.runtime=plain", 'tensors', lines)
        if stamp.maps:
            lines = [(entry.point, f'{entry.channels:5} channels', entry.transform) for entry in stamp.maps]
            made_by = 'carrying maps into its weights' if stamp.is_carried else 'training with the key'
            _show_lines(made_by, 'points ', lines)
            for point in fitted(stamp, below(tensors, prefix and f'{prefix}.'))[1]:
                print(f'  absent  {point}: of a part that this file does not have')
        if stamp.embeddings:
            _show_embeddings(stamp, path)
        for image in stamp.images:
            print(f'  images  encrypted in training, and to be encrypted: {image}')


def _show_covered(facts: dict[str, Any]) -> None:
    """What of a file nobody can alter, add or exchange."""
    names = ', '.join(f'{name} ({count} tensors)' for name, count in facts['covered'].items())
    print(f'  covers  {names}, all stamps, and meta')
    if facts['not_covered']:
        print(f'  but not {", ".join(facts["not_covered"])}: values that are no tensors')


def _show_lines(made_by: str, what: str, lines: list[tuple[str, str, dict[str, Any]]]) -> None:
    """How a model was made, and the entries of its stamp: where, how much, by what."""
    from keyseg_mm.entries import describe

    print(f'  made by {made_by}')
    print(f'  {what} {len(lines)}')
    width = max(len(where) for where, _, _ in lines)
    for where, size, transform in lines:
        print(f'    {where:{width}}  {size}  {describe(transform)}')


def _show_embeddings(stamp: Stamp, path: Path) -> None:
    from keyseg_mm.baselines.patches import steps_of
    from keyseg_mm.cli.lock_report import show_encryption
    from keyseg_mm.locking.scheme import key_space

    entry = stamp.embeddings[0]
    print(f'  blocks  {entry.patch} x {entry.patch} pixels, {steps_of(entry)}')
    print(f'  ciphers 2^{key_space(stamp):.0f}, of which a key of 256 bits picks one')
    for embedding in stamp.embeddings:
        print(f'  in      {embedding.weight}{f" and {embedding.offset}" if embedding.offset else ""}')
    print('  images are encrypted by')
    show_encryption(path)


def _config(path: Path) -> dict[str, Any]:
    from keyseg_mm.maps.pixels import PATCH
    from keyseg_mm.mm.config import dicts_in, read_config
    from keyseg_mm.mm.pipeline import EncryptImage

    cfg, protected, images = read_config(path), [], []
    for where, part in dicts_in(cfg.get('model'), 'model'):
        if isinstance(part.get('protection'), dict):
            options, of = dict(part['protection']), str(part.get('of', part.get('type')))
            key_id = _key_id(options.get('key'), 'runs unauthorised')
            protected.append({'where': where, 'of': of, 'protection': options, 'key_id': key_id})
    for where, step in (pair for name in _PIPELINES for pair in dicts_in(cfg.get(name), name)):
        if step.get('type') in ('keyseg_mm.EncryptImage', EncryptImage):
            block, salt = ("the checkpoint's",) * 2 if step.get('method') == PATCH else (8, 'none')
            defaults = {'method': 'SHF', 'block': block, 'key': 'none', 'salt': salt}
            found = {name: step.get(name, default) for name, default in defaults.items()}
            images.append({'where': where, **found, 'key_id': _key_id(step.get('key'), 'leaves images plain')})
    return {'tell': 'config', 'protected': protected, 'images': images}


def _tell_config(path: Path, facts: dict[str, Any]) -> None:
    if not facts['protected'] and not facts['images']:
        print(f'{path}: protects nothing; `keyseg train {path} --key LOC` protects it as it trains')
    for part in facts['protected']:
        print(f'{path}: {part["where"]} is a protected {part["of"]}')
        for name, value in part['protection'].items():
            print(f'  {name:10}{value}')
        print(f'  key id    {part["key_id"]}')
    for step in facts['images']:
        print(f'{path}: {step["where"]} encrypts images')
        for name in ('method', 'block', 'key', 'salt'):
            print(f'  {name:10}{step[name]}')
        print(f'  key id    {step["key_id"]}')


def _key_id(locator: Any, without: str) -> str:
    from keyseg_mm.keys.locator import locate

    try:
        key = locate(locator, ask_passphrase).key
    except KeysegError as error:
        return f'unknown: {error}'
    return key.id if key else f'none: {without}'


_TELL = {'points': _tell_points, 'key': _tell_key, 'checkpoint': _tell_checkpoint, 'config': _tell_config}
