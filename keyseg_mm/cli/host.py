"""Running the installed mmsegmentation's own tools, unchanged, with this package's mends in place.

``keyseg train`` and ``keyseg test`` pass all their options on: to the mends of keyseg_mm/mm/compat.py they add nothing.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from keyseg_mm.errors import KeysegError


def host_tool(name: str) -> Path:
    """The path of ``tools/NAME`` in the installed mmsegmentation.

    Raises:
        KeysegError: mmsegmentation is not installed, or came without its tools.
    """
    try:
        import mmseg
    except ImportError:
        raise KeysegError(
            'mmsegmentation is not installed; install this package with the extra onedl or openmmlab, see its README'
        ) from None
    path = Path(mmseg.__file__).parent / '.mim' / 'tools' / name
    if not path.is_file():
        raise KeysegError(f'the installed mmsegmentation has no tools/{name}; install it from its wheel')
    return path


def run_host_tool(name: str, arguments: list[str]) -> int:
    """Run one of the host's tools in this process, as ``python tools/NAME ARGUMENTS`` would; returns its status."""
    from keyseg_mm.keys.locator import refuse_typed

    refuse_typed(arguments)
    path = host_tool(name)
    from keyseg_mm.mm import compat  # importing it puts the other mends in place, before the config is read

    compat.start_without_gpu()
    compat.keep_locators_whole()
    kept = sys.argv
    sys.argv = [str(path), *arguments]
    try:
        runpy.run_path(str(path), run_name='__main__')
        compat.end_together()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        sys.argv = kept
    return 0
