"""Encrypt images for a model that `keyseg lock --scheme patches` made, or decrypt them.

Each image is encrypted in blocks of the model's patch size, and written as PNG, which keeps every bit. It must have its
final size before: nobody can resize an encrypted image. --config does to it what the config's test pipeline does (with
dict(type='ResizeToMultiple', size_divisor=16) in it for whole blocks). A folder is encrypted with all its subfolders.

With --checkpoint the model's stamp says how, and its MAC is checked; with --patch and --salt no file is needed
(`keyseg show` tells them). A wrong key cannot be told from the pixels: decrypting with one gives rubbish, and no error.

What remains to be seen: all blocks are encrypted alike, so outlines show, and statistics of some images under one key
restore them: `keyseg audit --images` measures it. One image both plain and encrypted gives the cipher away.

examples:
  keyseg encrypt-image --key file:keys/my.key --checkpoint locked.pth --config CONFIG photo.jpg photo.png
  keyseg encrypt-image --key file:keys/my.key --patch 16 --salt 00112233445566778899aabbccddeeff photos encrypted
  keyseg encrypt-image --key file:keys/my.key --checkpoint locked.pth --decrypt photo.png back.png
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from keyseg_mm.cli.console import add_block_steps, add_key, real_key
from keyseg_mm.errors import KeysegError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``keyseg encrypt-image``."""
    parser.add_argument('source', type=Path, metavar='IN', help='image, or folder of images')
    parser.add_argument('target', type=Path, metavar='OUT', help='PNG file, or folder, to make')
    add_key(parser)
    parser.add_argument('--checkpoint', type=Path, metavar='FILE', help='the model, whose stamp says how')
    parser.add_argument('--patch', type=int, metavar='N', help='with --salt, instead of it: side of a block in pixels')
    parser.add_argument('--salt', metavar='HEX', help="the model's salt")
    add_block_steps(parser)
    parser.add_argument('--config', type=Path, help='do first what the test pipeline of this config does to images')
    parser.add_argument(
        '--pad', action='store_true', help='repeat the last pixels on the right and below up to whole blocks'
    )
    parser.add_argument('--decrypt', action='store_true', help='the other way round')


def run(args: argparse.Namespace) -> int:
    """Encrypt or decrypt one image or a folder of them."""
    from keyseg_mm.atomic import refuse_existing
    from keyseg_mm.mm.image_files import convert_file, convert_folder, images_below, refuse_lossy

    if args.decrypt and (args.config or args.pad):
        raise KeysegError('--decrypt takes images as they are, without --config or --pad')
    if not args.source.exists():
        raise KeysegError(f'{args.source}: no such file or folder')
    if args.source.is_dir():
        if args.target.suffix:
            raise KeysegError(f'{args.source} is a folder, so OUT names a folder too, not {args.target}')
        images = images_below(args.source)
    else:
        refuse_lossy(args.target)
        images = {}
    refuse_existing(args.target)
    convert = _converter(args)
    if images:
        convert_folder(images, args.target, convert, args.decrypt)
    else:
        convert_file(args.source, args.target, convert, args.decrypt)
    what = 'decrypted' if args.decrypt else 'encrypted'
    print(f'made {args.target}: {len(images) or 1} images {what}')
    if args.decrypt:
        print('  whether the key was the right one, only looking at them tells')
    return 0


def _converter(args: argparse.Namespace) -> Callable[[Any], Any]:
    """What is done to the pixels of each image."""
    import numpy as np

    cipher, prepare = _cipher(args), None
    if args.config:
        from keyseg_mm.mm.config import read_config
        from keyseg_mm.mm.image_files import Preparation

        prepare = Preparation(read_config(args.config))
    p = cipher.block

    def convert(image: Any) -> Any:
        image = prepare(image) if prepare else image
        height, width = image.shape[:2]
        if args.pad:
            image = np.pad(image, ((0, -height % p), (0, -width % p), (0, 0)), mode='edge')
        elif height % p or width % p:
            raise KeysegError(
                f'an image of {width} x {height} pixels is not made of whole blocks of {p} x {p}: resize it, put '
                f"dict(type='ResizeToMultiple', size_divisor={p}) into the pipeline of --config, or --pad it and cut "
                'the result to size'
            )
        return cipher.encrypt(image)

    return convert


def _cipher(args: argparse.Namespace) -> Any:
    """The cipher that the options name."""
    from keyseg_mm.bind import check_key, derive_cipher, derive_patches, verify
    from keyseg_mm.checkpoint.files import read_checkpoint
    from keyseg_mm.stamp import parse_salt, stamps_of

    if (args.checkpoint is None) == (args.salt is None) or (args.salt is None) != (args.patch is None):
        raise KeysegError('give --checkpoint FILE, or --patch N and --salt HEX')
    if args.checkpoint is not None:
        if args.permute or args.no_negate:
            raise KeysegError('the checkpoint says what is done to a block; leave --permute and --no-negate out')
        state_dict = read_checkpoint(args.checkpoint)['state_dict']
        stamp = stamps_of(state_dict).get('')
        if stamp is None or not stamp.embeddings:
            raise KeysegError(f'{args.checkpoint} takes plain images; lock it with `keyseg lock --scheme patches`')
        key = real_key(args.key)
        check_key(key, stamp)
        verify(key, stamp, state_dict)  # who runs the model has no key, and could ask for next to no encryption
        cipher = derive_cipher(key, stamp.salt, stamp.embeddings[0])
    else:
        salt, key = parse_salt(args.salt), real_key(args.key)
        cipher = derive_patches(key, salt, args.patch, args.permute or 'all', not args.no_negate)
    return cipher.inverse() if args.decrypt else cipher
