"""Running the installed mmsegmentation's own tools, unchanged, with this package's mends in place.

``keyseg train``, ``keyseg test`` and ``keyseg tool NAME`` pass all their options on. ``train`` and ``test`` put a key
into the config besides, see :mod:`keyseg_mm.mm.keyed_config`.
"""

from __future__ import annotations

import argparse
import io
import runpy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from keyseg_mm.cli.console import add_host_options, without_warnings
from keyseg_mm.errors import KeysegError
from keyseg_mm.keys.locator import refuse_typed

_TOOLS = """usage: keyseg tool NAME [the tool's own arguments, --help among them]

encrypt_images is a tool of keyseg_mm: it encrypts images for a model that `keyseg lock --scheme patches` made.

All others are mmsegmentation's own, with all their options. On the onedl stack the tools themselves do not find the
`mmseg::` bases of a config, which the distribution there has under another name; run like this they do. They all read
the copy of a config that a training has put into its work folder, which has no bases. A keyed model's FLOPs are those
of the plain one.

tools of the installed mmsegmentation:"""


_USAGE = {
    'train': 'keyseg train CONFIG [--key LOC] [options of the host]',
    'test': 'keyseg test CONFIG CHECKPOINT [--key LOC] [options of the host]',
}
_BESIDES = "other options of a protection: --cfg-options model.protection.NAME=VALUE. The host's own tool says:"


def host_tools() -> dict[str, Path]:
    """The tools of the installed mmsegmentation, by name: ``train``, ``get_flops`` and so on.

    Raises:
        KeysegError: mmsegmentation is not installed, or came without its tools.
    """
    try:
        import mmseg
    except ImportError:
        raise KeysegError(
            'mmsegmentation is not installed; install this package with the extra onedl or openmmlab, see its README'
        ) from None
    paths = sorted((Path(mmseg.__file__).parent / '.mim' / 'tools').rglob('*.py'), reverse=True)
    if not paths:
        raise KeysegError('the installed mmsegmentation has no tools; install it from its wheel')
    return {path.stem: path for path in paths if path.stem != '__init__'}  # of two of a name, the first


def host_tool(name: str) -> Path:
    """The path of one of the host's tools.

    Raises:
        KeysegError: there is none of that name, or see :func:`host_tools`.
    """
    tools = host_tools()
    if name not in tools:
        raise KeysegError(f'the installed mmsegmentation has no tool {name}; it has {", ".join(sorted(tools))}')
    return tools[name]


def run_any_tool(arguments: list[str]) -> int:
    """Run the tool that the first argument names; without one say which there are."""
    if arguments and not arguments[0].startswith('-'):
        return run_host_tool(arguments[0], arguments[1:])
    print(_TOOLS)
    print('\n'.join(f'  {name}' for name in sorted(host_tools())))
    return 0


def run_with_key(name: str, arguments: list[str]) -> int:
    """Run ``train`` or ``test`` of the host on a config, plain or protected, into which the key of ``--key`` is put."""
    parser = argparse.ArgumentParser(prog=f'keyseg {name}', add_help=False, allow_abbrev=False, usage=_USAGE[name])
    add_host_options(parser)
    own, rest = parser.parse_known_args(arguments)
    if {'-h', '--help'} & {*rest}:
        print(f'{parser.format_help()}\n{_BESIDES}\n', flush=True)
    if own.key is None and (own.points or own.runtime):
        raise KeysegError('--points and --runtime go with --key LOC')
    if own.key == '-':
        raise KeysegError('--key -: the processes of a run would all read standard input; take file:, env: or keyring:')
    refuse_typed([*arguments, f'key={own.key}'])
    return run_host_tool(name, rest, partial(_start, own, name == 'test'))


def _start(own: argparse.Namespace, opens: bool, path: Path) -> None:
    """Run the host's tool at ``path``, with its own arguments as it parsed them, and the key put into the config."""
    from keyseg_mm.mm.config import read_config
    from keyseg_mm.mm.keyed_config import check_keyed_options, options_for

    tool = runpy.run_path(str(path), run_name='keyseg_mm_host')
    args = tool['parse_args']()
    cfg, options = read_config(args.config), args.cfg_options or {}
    file = getattr(args, 'checkpoint', '')
    if file and '://' not in file and not Path(file).exists():
        raise KeysegError(f'{file}: no such file; CHECKPOINT is what a training or `keyseg lock` wrote')
    if own.key is not None:
        options = options_for(cfg, own.key, own.points, own.runtime, opens) | options
    cfg.merge_from_dict(options)
    check_keyed_options(cfg, args.config)
    args.cfg_options = options or None
    tool['main'].__globals__['parse_args'] = lambda: args
    tool['main']()


def run_host_tool(name: str, arguments: list[str], start: Callable[[Path], object] | None = None) -> int:
    """Run one of the host's tools in this process, as ``python tools/NAME ARGUMENTS`` would; returns its status.

    Args:
        name: of the tool.
        arguments: its own.
        start: runs the tool, given its path.
    """
    refuse_typed(arguments)
    path = host_tool(name)
    import torch

    with without_warnings():  # of what is missing in the host, and mostly is not needed
        from keyseg_mm.mm import compat  # importing it puts the other mends in place, before the config is read
        from keyseg_mm.mm.doors import read_for_host

    compat.start_without_gpu()
    compat.keep_locators_whole()
    kept, load = sys.argv, torch.load

    def load_strictly(file: Any, *args: Any, **kwargs: Any) -> Any:
        # what is in memory is what processes of a run send each other, by pickles that ask torch for their storages
        return load(file, *args, **kwargs) if isinstance(file, io.BytesIO) else read_for_host(file, *args, **kwargs)

    sys.argv = [str(path), *arguments]
    torch.load = load_strictly  # type: ignore[assignment]  # tools that read files themselves fail on a training's
    try:
        start(path) if start else runpy.run_path(str(path), run_name='__main__')
        compat.end_together()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        sys.argv, torch.load = kept, load
    return 0
