"""The command line, in this process."""

from __future__ import annotations

from keyseg_mm.cli import main


def keyseg(*arguments) -> int:
    return main([str(a) for a in arguments])
