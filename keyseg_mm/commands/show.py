"""Show the public side of a key file, a checkpoint or a config. Never shows a secret.

examples:
  keyseg show keys/ade.key          its key id
  keyseg show model.pth             its stamp: key id, salt, points (or tensors) and transforms
  keyseg show my_config.py          its protection, and the id of the key that it names
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyseg_mm.errors import KeysegError
from keyseg_mm.keyfile import is_key_file, read_key_file, readable_by_others

if TYPE_CHECKING:
    from keyseg_mm.patchplan import PatchPlan
    from keyseg_mm.plan import Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``keyseg show``."""
    parser.add_argument('file', type=Path, help='key file, checkpoint (.pth, .safetensors) or config (.py)')


def run(args: argparse.Namespace) -> int:
    """Tell the three kinds of files apart and show what they are."""
    path: Path = args.file
    if not path.is_file():
        raise KeysegError(f'{path}: no such file')
    if path.suffix in ('.py', '.json', '.yaml', '.yml'):
        _show_config(path)
    elif is_key_file(path):
        _show_key(path)
    else:
        _show_checkpoint(path)
    return 0


def _show_key(path: Path) -> None:
    from keyseg_mm.commands.keygen import ask_passphrase

    print(f'{path}: a key file, key id {read_key_file(path, ask_passphrase).id}')
    if readable_by_others(path):
        print(f'  WARNING: others on this machine can read it; close it with: chmod 600 {path}')


def _show_checkpoint(path: Path) -> None:
    from keyseg_mm.checkpoint import read_checkpoint
    from keyseg_mm.patchplan import patch_plan_of
    from keyseg_mm.plan import stamps_of

    state_dict = read_checkpoint(path)['state_dict']
    patches = patch_plan_of(state_dict)
    if patches is not None:
        _show_patches(path, patches)
        return
    stamps = stamps_of(state_dict)
    if not stamps:
        print(f'{path}: a plain checkpoint, it carries no stamp')
    for prefix, plan in stamps.items():
        print(f'{path}: protected{" at " + prefix if prefix else ""}')
        print(f'  key id  {plan.key_id}')
        print(f'  salt    {plan.salt.hex()}')
        show = _show_tensors if plan.tensors else _show_points
        show(plan)


def _show_points(plan: Plan) -> None:
    from keyseg_mm.plan import describe

    locked = all(entry.weights for entry in plan.entries)
    print(f'  made by {"locking a trained model" if locked else "training with the key"}')
    print(f'  points  {len(plan.entries)}')
    width = max(len(entry.point) for entry in plan.entries)
    for entry in plan.entries:
        print(f'    {entry.point:{width}}  {entry.channels:5} channels  {describe(entry.transform)}')


def _show_tensors(plan: Plan) -> None:
    from keyseg_mm.plan import describe

    print("  made by encrypting a trained model's weights; it runs with protection.unlock=True")
    print(f'  tensors {len(plan.tensors)}')
    width = max(len(tensor.names[0]) for tensor in plan.tensors)
    for tensor in plan.tensors:
        print(f'    {tensor.names[0]:{width}}  {tensor.count:8} values  {describe(tensor.transform)}')


def _show_patches(path: Path, plan: PatchPlan) -> None:
    from keyseg_mm.commands.lock_patches import print_uses

    print(f'{path}: takes encrypted images, and runs without a key')
    print(f'  key id  {plan.key_id}')
    print(f'  salt    {plan.salt.hex()}')
    print(f'  blocks  {plan.patch} x {plan.patch} pixels, {plan.steps}')
    print(f'  ciphers 2^{plan.key_space:.0f}, of which a key of 256 bits picks one')
    for embedding in plan.embeddings:
        print(f'  in      {embedding.weight}{f" and {embedding.offset}" if embedding.offset else ""}')
    print('  images are encrypted by')
    print_uses(plan, str(path))


def _show_config(path: Path) -> None:
    from keyseg_mm.commands.keygen import ask_passphrase
    from keyseg_mm.locator import locate
    from keyseg_mm.mm.config import read_config

    found = list(_protections(read_config(path).get('model', {}), 'model'))
    if not found:
        print(f'{path}: protects nothing')
    for where, of, protection in found:
        print(f'{path}: {where} is a protected {of}')
        for name, value in protection.items():
            print(f'  {name:10}{value}')
        try:
            key = locate(protection.get('key'), ask_passphrase).key
            print(f'  key id    {key.id if key else "none: runs unauthorised"}')
        except KeysegError as error:
            print(f'  key id    unknown: {error}')


def _protections(value: Any, where: str) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """All protections in a config's model, with their places."""
    if isinstance(value, dict):
        if isinstance(value.get('protection'), dict):
            yield where, value.get('of', value.get('type')), value['protection']
        for name, item in value.items():
            yield from _protections(item, f'{where}.{name}')
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _protections(item, f'{where}[{index}]')
