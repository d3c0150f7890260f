"""Search a folder for a key and for all that is derived from it: has a run written down anything secret?

Looked for are the key and, for each stamp of it in the folder's checkpoints and in those of --checkpoint, the model's
secret, the file's content key, the subkey of every point and its tables: as bytes, hex, base32, base64, base85, numbers
of any width, printed, pickled, in UTF-16, in lines or apart. Compressed files and archives are searched unpacked (gzip,
bz2, xz, zip, tar; within each other too). Links and devices are not followed. A table of fewer than 12 entries (24
in numbers of one byte), or 32 signs, is not looked for: such turn up by chance.

examples:
  keyseg scan work_dirs/my_run --key file:keys/my.key
  keyseg scan logs --key file:keys/my.key --checkpoint work_dirs/my_run/*.pth

exit status: 0 nothing found in all that is there, 1 an error, 3 something secret found, 5 nothing found, and something
could not be read
"""

from __future__ import annotations

import argparse
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from keyseg_mm.checkpoint.layout import SUFFIXES
from keyseg_mm.cli.console import add_json, add_key, print_json, real_key
from keyseg_mm.cli.status import FOUND, UNREAD
from keyseg_mm.errors import KeysegError

if TYPE_CHECKING:
    from keyseg_mm.keys.identity import Key
    from keyseg_mm.runtime.haystack import Search
    from keyseg_mm.stamp import Stamp

_CHECKPOINTS = ('.pth', '.pt', *SUFFIXES)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``keyseg scan``."""
    parser.add_argument('folder', type=Path, help='folder or file to search')
    add_key(parser, 'locator of the key to look for')
    add_json(parser)
    parser.add_argument(
        '--checkpoint',
        type=Path,
        nargs='+',
        default=[],
        metavar='FILE',
        help='protected checkpoints that are elsewhere, whose secrets are to be looked for too',
    )


def run(args: argparse.Namespace) -> int:
    """Search, and list what was found by place and kind."""
    from tqdm import tqdm

    from keyseg_mm.runtime.haystack import Search, files_in, search_file
    from keyseg_mm.runtime.leaks import Needles

    key, search = real_key(args.key), Search()
    files = files_in(args.folder, search)
    if not files:
        raise KeysegError(f'{args.folder}: nothing to search there; give a file, or a folder with files in it')
    named = dict.fromkeys(args.checkpoint, True)
    stamps = _stamps_of({**dict.fromkeys(filter(_is_checkpoint, files), False), **named}, key, search)
    needles = Needles(key, stamps)
    size = sum(path.lstat().st_size for path in files)
    with tqdm(total=size, desc='searching', unit='B', unit_scale=True, disable=None) as bar:
        for path in files:
            search_file(path, needles.pile, search, bar.update)
    places = len({(stamp.salt, entry) for stamp in stamps for entry in stamp.entries})  # files of a run have the same
    status = FOUND if search.leaks else UNREAD if search.unread else 0
    if args.json:
        found = {'found': [str(leak) for leak in sorted(search.leaks)], 'not_read': search.unread}
        print_json({'files': len(files), 'key_id': key.id, 'places': places, **found, 'not_followed': search.others})
        return status
    print(f'searched {len(files)} files for key {key.id} and the secrets of {places} points, tensors and images')
    _tell(search)
    return status


def _tell(search: Search) -> None:
    """Say what came of it."""
    for what in search.others:
        print(f'note: {what} is a link or no file, and was not followed')
    for what in search.unread:
        print(f'NOT READ {what}')
    for leak in sorted(search.leaks):
        print(f'FOUND {leak}')
    if search.leaks:
        print('take this key for burnt: make a new one and protect the models again')
    else:
        print('nothing secret found' + (' in the rest' if search.unread else ''))


def _is_checkpoint(path: Path) -> bool:
    """By its name, or as torch writes them."""
    with suppress(OSError), open(path, 'rb') as file:
        return path.suffix in _CHECKPOINTS or b'/data.pkl' in file.read(512)
    return False


def _stamps_of(files: dict[Path, bool], key: Key, search: Search) -> list[Stamp]:
    """The different stamps of this key in checkpoints.

    Args:
        files: whether each was named on the command line, and has to be a checkpoint of this key.
        key: that is looked for.
        search: is told of stamps that cannot be read.

    Raises:
        KeysegError: one that was named has none.
    """
    from keyseg_mm.checkpoint.files import stamps_in
    from keyseg_mm.wrapping import open_envelope

    found: dict[str, Stamp] = {}
    for path, is_named in files.items():
        try:
            stamps = [stamp for stamp in stamps_in(path).values() if key.id in stamp.key_ids]
            for stamp in stamps:
                open_envelope(key, stamp, check=False)
        except KeysegError as error:
            search.unread.append(f'the stamp of {path}, and its secrets were not looked for: {error}')
            continue
        if is_named and not stamps:
            raise KeysegError(f'{path}: no stamp of key {key.id} in it; `keyseg show {path}` tells whose it is')
        found.update({stamp.to_json(): stamp for stamp in stamps})
    return list(found.values())
