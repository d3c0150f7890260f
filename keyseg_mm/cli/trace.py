"""Whose copy is this file? By its stamp, and where the stamp was stripped, by its weights.

The stamp names a key id, which the master key and a list of licensees' names resolve. With --original, the owner's own
file (plain, or protected with the master key), the weights are compared too: they carry the licensee's tables, also
after somebody fine-tuned them a little. A file that was unlocked with its key has lost them, and tells nothing.

FILE has one licensee's name on a line, as given to `keyseg rekey --licensee`; lines with # are comments. Blanks around
a name, and which form of Unicode an accent is written in, make no difference.

examples:
  keyseg trace found.pth --master file:keys/master.key --licensees customers.txt
  keyseg trace found.pth --master file:keys/master.key --licensees customers.txt --original plain.pth

exit status: 0 traced to a licensee, 1 an error, 3 not traced, 4 its stamp was altered or forged, whatever else is found
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from keyseg_mm.cli.console import master_key
from keyseg_mm.cli.status import FORGED, NOT_TRACED
from keyseg_mm.errors import KeysegError

_SHOWN = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``keyseg trace``."""
    parser.add_argument('checkpoint', type=Path, help='the file in question, .pth or .safetensors')
    parser.add_argument('--master', required=True, metavar='LOC', help="locator of the owner's master key")
    parser.add_argument('--licensees', required=True, type=Path, metavar='FILE', help='names, one on a line')
    parser.add_argument('--original', type=Path, metavar='FILE', help="the owner's plain or protected checkpoint")


def run(args: argparse.Namespace) -> int:
    """Ask the stamp, then the weights."""
    from keyseg_mm.checkpoint.files import read_checkpoint
    from keyseg_mm.tracing import by_stamp

    names = _read_names(args.licensees)
    master = master_key(args.master)
    tensors = read_checkpoint(args.checkpoint)['state_dict']
    said = by_stamp(tensors, master, names)
    status = FORGED if said is not None and not said[1] else 0
    if said is None:
        print(f'stamp    none of a licensee on this list ({len(names)} names)')
    else:
        fits = 'its seal fits' if said[1] else 'ALTERED since, its seal does not fit'
        print(f'stamp    the copy of {said[0]!r}; {fits}')
    if args.original is None:
        if said is None:
            print("         give --original, the owner's own file, to ask the weights")
        return status if said else NOT_TRACED
    original = read_checkpoint(args.original)['state_dict']
    owner = {key.id: key for key in (master, *map(master.licensee, names))}
    found = _ask_weights(_opened(tensors, owner), _opened(original, owner), master, names)
    return status or found


def _opened(tensors: dict[str, Any], keys: dict[str, Any]) -> dict[str, Any]:
    """Weights without their seal, where one of the keys opens it, and without the prefix of data-parallel runs."""
    from keyseg_mm.locking import unwrap
    from keyseg_mm.seal.sections import sealed_stamp, unseal_section

    stamp = sealed_stamp(tensors)
    key = None if stamp is None else next((keys[i] for i in stamp.key_ids if i in keys), None)
    if stamp is None or key is None:
        return unwrap(tensors)
    return unwrap(unseal_section(key, tensors, stamp.seal.section if stamp.seal else ''))


def _ask_weights(tensors: dict[str, Any], original: dict[str, Any], master: Any, names: list[str]) -> int:
    from keyseg_mm.tracing import PLAIN, by_weights

    found = by_weights(tensors, original, master, names)
    for likeness in found[:_SHOWN]:
        who = 'the plain weights' if likeness.name == PLAIN else f'the copy of {likeness.name!r}'
        print(f'weights  likeness {likeness.score:6.3f} to {who} {likeness.transform}'.rstrip())
    best = found[0]
    if not best.is_certain:
        print('like nobody on this list: unlocked and trained on, locked with another key, or another model')
        return NOT_TRACED
    if best.name == PLAIN:
        print('these are the plain weights: whoever unlocked them left no trace')
        return NOT_TRACED
    print(f'this is the copy of {best.name!r}')
    return 0


def _read_names(path: Path) -> list[str]:
    from keyseg_mm.keys.content import text_of
    from keyseg_mm.keys.key import licensee_name

    try:
        lines = [line.strip() for line in text_of(path.read_bytes()).splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise KeysegError(f'{path}: could not be read as a list of names: {error}') from None
    names = [licensee_name(line) for line in lines if line and not line.startswith('#')]
    if not names:
        raise KeysegError(f'{path}: no names in it; write one licensee on a line')
    return list(dict.fromkeys(names))
