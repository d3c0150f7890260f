"""Export a protected checkpoint for machines without mmsegmentation: its graph, for onnxruntime, OpenVINO and others.

By default the graph is that of the opened model, and its file is sealed, for the same recipients as a checkpoint: it
runs at the plain model's speed where `keyseg_mm.deploy.load` opens it, in memory. With --keys-as-inputs the graph stays
behind the checkpoint's maps, in an ordinary file, and takes their tables as inputs; they are in it, sealed. That is for
runtimes that must have a plain file. How strong maps alone are, `keyseg audit` tells.

Before the file is there it was opened, run beside PyTorch, and searched for the tables. The graph computes one window
of the size that is given: a config that tests by sliding windows slides them itself.

examples:
  keyseg export CONFIG locked.pth --key file:keys/my.key --out model.onnx.sealed --to file:customer.recipient
  keyseg export CONFIG locked.pth --key file:keys/my.key --out model.onnx.sealed --with-preprocessing --argmax
  keyseg export CONFIG locked.pth --key file:keys/my.key --out model.onnx --keys-as-inputs --size 512 1024
  keyseg export CONFIG locked.pth --key file:keys/my.key --out model.pt2.sealed --format torch-export --size dynamic

then, where it runs (pip install 'keyseg-mm[onnx]'; docs/deploy.md):
  session = keyseg_mm.deploy.load('model.onnx.sealed', key='file:customer.key')
"""

from __future__ import annotations

import argparse
from pathlib import Path

from keyseg_mm.cli.console import add_key, add_out, add_recipients, real_key, recipients_of, whole_number
from keyseg_mm.errors import KeysegError

DYNAMIC = 'dynamic'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``keyseg export``."""
    add = parser.add_argument
    add('config', type=Path, help='its config, protected or plain')
    add('checkpoint', type=Path, help='protected checkpoint, .pth or .safetensors')
    add_key(parser, 'locator of its key')
    add_out(parser, 'graph to make')
    add('--format', choices=('onnx', 'torch-export'), default='onnx', help='of the graph (onnx)')
    add('--size', nargs='+', metavar='N', help=f'height and width of the images, or {DYNAMIC} (those of the config)')
    add(
        '--with-preprocessing',
        action='store_true',
        help='take images as they are read: uint8, blue first, (1, H, W, 3)',
    )
    add('--argmax', action='store_true', help='give the class of each pixel, and not the scores of all classes')
    add('--keys-as-inputs', action='store_true', help='do not seal the graph: its inputs are the image and the tables')
    add_recipients(parser, 'or its tables')


def run(args: argparse.Namespace) -> int:
    """Export, and say what was made."""
    from keyseg_mm.atomic import refuse_existing
    from keyseg_mm.deploy.exporting import export_file
    from keyseg_mm.deploy.graph import Form, own_size
    from keyseg_mm.mm.config import build_plain_model, read_config

    refuse_existing(args.out, args.overwrite)
    size, key = _size(args.size), real_key(args.key)
    cfg = read_config(args.config)
    size = size if args.size else own_size(build_plain_model(cfg))
    form = Form(args.format, size, args.with_preprocessing, args.argmax)
    made = export_file(
        cfg, args.checkpoint, key, args.out, form, recipients_of(args), args.keys_as_inputs, args.overwrite
    )
    shape = ' x '.join(map(str, form.size)) if form.size else 'any size'
    how = f'keyed, with the tables of {len(made.points)} points as inputs' if args.keys_as_inputs else 'sealed'
    print(f'made {args.out}: {args.format}, {how}; images of {shape}; {made.size / 1e6:.1f} MB')
    print(f'  beside PyTorch it is off by {made.error:.1g}')
    if made.without is not None:
        print(f'  without its key it is off by {made.without:.2g}; no table is in it in the open')
    return 0


def _size(words: list[str] | None) -> tuple[int, int] | None:
    """Height and width; None for any.

    Raises:
        KeysegError: it is none of these.
    """
    if not words or words == [DYNAMIC]:
        return None
    try:
        height, width = map(whole_number(1), words)
    except (ValueError, argparse.ArgumentTypeError):
        raise KeysegError(f'--size takes a height and a width, as --size 512 1024, or {DYNAMIC}') from None
    return height, width
