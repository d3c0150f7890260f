"""Running the installed mmsegmentation's own tools, unchanged, with this package's mends in place.

``keyseg train``, ``keyseg test`` and ``keyseg tool NAME`` pass all their options on: to the mends of
keyseg_mm/mm/compat.py they add nothing.
"""

from __future__ import annotations

import io
import runpy
import sys
from pathlib import Path
from typing import Any

from keyseg_mm.errors import KeysegError

_TOOLS = """usage: keyseg tool NAME [the tool's own arguments, --help among them]

Runs one of mmsegmentation's own tools, with all its options. On the onedl stack the tools themselves do not find the
`mmseg::` bases of a config, which the distribution there has under another name; run like this they do. They all read
the copy of a config that a training has put into its work folder, which has no bases. A keyed model's FLOPs are those
of the plain one.

tools of the installed mmsegmentation:"""


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


def run_host_tool(name: str, arguments: list[str]) -> int:
    """Run one of the host's tools in this process, as ``python tools/NAME ARGUMENTS`` would; returns its status."""
    from keyseg_mm.keys.locator import refuse_typed

    refuse_typed(arguments)
    path = host_tool(name)
    import torch

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
        runpy.run_path(str(path), run_name='__main__')
        compat.end_together()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        sys.argv, torch.load = kept, load
    return 0
