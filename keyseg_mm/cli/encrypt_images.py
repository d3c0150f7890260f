"""Encrypt images for a model that `keyseg lock --scheme patches` made, or decrypt them.

Each image is encrypted in blocks of the model's patch size, and written as PNG, which keeps every bit. It must have its
final size before: nobody can resize an encrypted image. --config does to it what the config's test pipeline does (with
dict(type='ResizeToMultiple', size_divisor=16) in it for whole blocks). A folder is encrypted with all its subfolders.

The model's stamp says how and with which key; stamp and file are checked.

What remains to be seen: all blocks are encrypted alike, so outlines show, and statistics of some images under one key
restore them: `keyseg audit --images` measures it. One image both plain and encrypted gives the cipher away.

examples:
  keyseg tool encrypt_images --key file:keys/my.key --checkpoint locked.pth --config CONFIG photo.jpg photo.png
  keyseg tool encrypt_images --key file:keys/my.key --checkpoint locked.pth photos encrypted
  keyseg tool encrypt_images --key file:keys/my.key --checkpoint locked.pth --decrypt photo.png back.png
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from keyseg_mm.cli.console import add_key, real_key
from keyseg_mm.errors import KeysegError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``keyseg tool encrypt_images``."""
    add = parser.add_argument
    add('source', type=Path, metavar='IN', help='image, or folder of images')
    add('target', type=Path, metavar='OUT', help='PNG file, or folder, to make')
    add_key(parser)
    add('--checkpoint', type=Path, required=True, metavar='FILE', help='the model, whose stamp says how')
    add('--config', type=Path, help='do first what the test pipeline of this config does to images')
    add('--decrypt', action='store_true', help='the other way round')


def run(args: argparse.Namespace) -> int:
    """Encrypt or decrypt one image or a folder of them."""
    from keyseg_mm.atomic import refuse_existing
    from keyseg_mm.mm.config import read_config
    from keyseg_mm.mm.image_files import convert_file, convert_folder, images_below, preparation, refuse_lossy

    if args.decrypt and args.config:
        raise KeysegError('--decrypt takes images as they are, without --config')
    if not args.source.exists():
        raise KeysegError(f'{args.source}: no such file or folder; IN is an image, or a folder of images')
    folder = args.source.is_dir()
    if folder and args.target.suffix:
        raise KeysegError(f'{args.source} is a folder, so OUT names a folder too, not {args.target}')
    images = images_below(args.source) if folder else {args.target: args.source}
    for path in [*([] if folder else [args.target]), *(images.values() if args.decrypt else ())]:
        refuse_lossy(path)
    refuse_existing(args.target)
    step = _step(args)
    prepare = preparation(read_config(args.config)) if args.config else lambda image: image

    def convert(image: Any) -> Any:
        return step.decrypt(image) if args.decrypt else step.transform({'img': prepare(image)})['img']

    if folder:
        convert_folder(images, args.target, convert)
    else:
        convert_file(args.source, args.target, convert)
    print(f'made {args.target}: {len(images)} images {"decrypted" if args.decrypt else "encrypted"}')
    return 0


def _step(args: argparse.Namespace) -> Any:
    """The step of a pipeline that encrypts for the checkpoint."""
    from keyseg_mm.checkpoint.files import read_checkpoint
    from keyseg_mm.maps.pixels import PATCH
    from keyseg_mm.mm.pipeline import EncryptImage
    from keyseg_mm.stamp import stamps_of

    state_dict = read_checkpoint(args.checkpoint)['state_dict']
    stamp = stamps_of(state_dict).get('')
    if stamp is None or not stamp.embeddings:
        raise KeysegError(f'{args.checkpoint} takes plain images; lock it with `keyseg lock --scheme patches`')
    step = EncryptImage(real_key(args.key), PATCH)
    step.follow(stamp, state_dict)  # which checks the seal: who has no key could ask for next to no encryption
    return step
