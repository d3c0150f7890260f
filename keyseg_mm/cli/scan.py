"""Search a folder for a key and for the tables derived from it: has a run written down anything secret?

Looks into every file (and into compressed members of .pth and .npz files) for the key in raw, hex, base32, base64 and
text form, and for the permutations, signs and rotations of every stamp, and the tables of every image encryption, found
in the folder's checkpoints.

example:
  keyseg scan work_dirs/my_run --key file:keys/my.key

exit status: 0 nothing found, 1 an error, 3 something secret found
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from keyseg_mm.cli.console import add_key, real_key
from keyseg_mm.errors import KeysegError

if TYPE_CHECKING:
    from keyseg_mm.stamp import Stamp

FOUND = 3
_CHECKPOINTS = ('.pth', '.pt', '.safetensors')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``keyseg scan``."""
    parser.add_argument('folder', type=Path, help='folder or file to search')
    add_key(parser, 'locator of the key to look for')


def run(args: argparse.Namespace) -> int:
    """Search, and list what was found by place and kind."""
    from tqdm import tqdm

    from keyseg_mm.runtime.leaks import files_below, find_leaks

    key = real_key(args.key)
    files = files_below(args.folder)
    if not files:
        raise KeysegError(f'{args.folder}: nothing to search there')
    stamps = _stamps_of(files, key.id)
    leaks = [leak for path in tqdm(files, desc='searching', unit='file') for leak in find_leaks(path, key, stamps)]
    places = len({(stamp.salt, entry) for stamp in stamps for entry in stamp.entries})  # files of a run have the same
    print(f'searched {len(files)} files for key {key.id} and the tables of {places} points, tensors and images')
    for leak in leaks:
        print(f'FOUND {leak}')
    if leaks:
        print('take this key for burnt: make a new one and protect the models again')
        return FOUND
    print('nothing secret found')
    return 0


def _stamps_of(files: list[Path], key_id: str) -> list[Stamp]:
    """The different stamps of this key in the checkpoints among the files."""
    from keyseg_mm.checkpoint.files import stamps_in

    found: dict[str, Stamp] = {}
    for path in files:
        if path.suffix in _CHECKPOINTS:
            try:
                stamps = stamps_in(path)
            except KeysegError as error:
                print(f'note: its stamp was not read: {error}')
                continue
            found.update({stamp.to_json(): stamp for stamp in stamps.values() if key_id in stamp.key_ids})
    return list(found.values())
