"""Whose copy is this file? By its stamp, by the fingerprint in its weights, and by the maps in them.

The stamp names a key id, which the master key and a list of licensees' names resolve. With --original, the file that
copies were made of (plain, or protected with the master key), the weights are searched for the fingerprint of each
licensee, which stays when a copy is opened, fine-tuned, pruned, quantised, or put together with others: for each name
its z-score, 0 by chance with a standard deviation of 1, and a bound of the probability that chance gives any of the
names such a score. It accuses nobody above 1e-6. Names, dtypes, heads, and the order and scale of channels may be
others; the file may be .pth, .safetensors, or .onnx (pip install 'keyseg-mm[export]').

FILE has one licensee's name on a line, as given to `keyseg rekey --licensee`; lines with # are comments. Blanks around
a name, and which form of Unicode an accent is written in, make no difference.

examples:
  keyseg trace found.pth --master file:keys/master.key --licensees customers.txt
  keyseg trace found.pth --master file:keys/master.key --licensees customers.txt --original plain.pth
  keyseg trace found.onnx --master file:keys/master.key --licensees customers.txt --original plain.pth --json

exit status: 0 traced to a licensee, 1 an error, 3 not traced, 4 its stamp was altered or forged, whatever else is found
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from keyseg_mm.cli.console import master_key
from keyseg_mm.cli.status import FORGED, NOT_TRACED
from keyseg_mm.errors import KeysegError

if TYPE_CHECKING:
    from keyseg_mm.tracing import Verdict

_SHOWN = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``keyseg trace``."""
    parser.add_argument('checkpoint', type=Path, help='the file in question, .pth, .safetensors or .onnx')
    parser.add_argument('--master', required=True, metavar='LOC', help="locator of the owner's master key")
    parser.add_argument('--licensees', required=True, type=Path, metavar='FILE', help='names, one on a line')
    parser.add_argument(
        '--original', type=Path, metavar='FILE', help='what copies were made of, plain or protected with the master key'
    )
    parser.add_argument('--json', action='store_true', help='print all scores as JSON, and nothing else')


def run(args: argparse.Namespace) -> int:
    """Ask stamp, fingerprint and maps."""
    from tqdm import tqdm

    from keyseg_mm import baselines  # noqa: F401 - what stamps may name
    from keyseg_mm.checkpoint.files import read_checkpoint
    from keyseg_mm.tracing import trace
    from keyseg_mm.tracing.suspects import read_suspect

    names = _read_names(args.licensees)
    master = master_key(args.master)
    found = read_suspect(args.checkpoint)
    original = None if args.original is None else read_checkpoint(args.original)['state_dict']
    with tqdm(total=100, desc='searching', unit='%', leave=False, disable=not sys.stderr.isatty()) as bar:
        verdict = trace(found, original, master, names, lambda done: bar.update(round(100 * done) - bar.n))
    if args.json:
        print(json.dumps(verdict.to_json(), indent=1))
    else:
        _show(verdict, args.original is not None)
    return FORGED if verdict.is_forged else 0 if verdict.owners else NOT_TRACED


def _show(verdict: Verdict, weighed: bool) -> None:
    from keyseg_mm.tracing import PLAIN
    from keyseg_mm.tracing.verdict import power

    if verdict.stamp is None:
        print(f'stamp        none of a licensee on this list ({verdict.names} names)')
    else:
        fits = 'its seal fits' if verdict.stamp[1] else 'ALTERED since, its seal does not fit'
        print(f'stamp        the copy of {verdict.stamp[0]!r}; {fits}')
    if not weighed:
        if verdict.stamp is None:
            print('             give --original, the file that copies were made of, to ask the weights')
        return
    where = f', channels of {verdict.moved:.0%} in another order' if verdict.moved else ''
    print(f'weights      {verdict.weights} of the original{where}')
    for score in verdict.scores[: max(_SHOWN, len(verdict.marked))]:
        print(f'fingerprint  z {score.z:8.2f}, by chance {power(score.log10_chance)}: {score.name!r}')
    for likeness in verdict.maps[:_SHOWN]:
        who = 'the plain weights' if likeness.name == PLAIN else f'the copy of {likeness.name!r}'
        print(f'maps         likeness {likeness.score:6.3f} to {who} {likeness.transform}'.rstrip())
    print(verdict.sentence())


def _read_names(path: Path) -> list[str]:
    from keyseg_mm.keys.content import text_of
    from keyseg_mm.keys.key import licensee_name

    try:
        lines = [line.strip() for line in text_of(path.read_bytes()).splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise KeysegError(f'{path}: could not be read as a list of names, one on a line: {error}') from None
    names = [licensee_name(line) for line in lines if line and not line.startswith('#')]
    if not names:
        raise KeysegError(f'{path}: no names in it; write one licensee on a line')
    return list(dict.fromkeys(names))
