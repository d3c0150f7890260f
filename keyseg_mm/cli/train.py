"""Train a config, protected or plain, with the installed mmsegmentation's own tools/train.py and all its options.

keyseg train CONFIG [--work-dir DIR] [--cfg-options model.protection.key=file:PATH ...]

This only puts the mends for both mmseg stacks in place (keyseg_mm/mm/compat.py) before the config is read.
"""

from __future__ import annotations

import argparse

from keyseg_mm.cli.host import run_host_tool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None of its own: ``keyseg train --help`` shows those of the host's tool."""


def run(arguments: list[str]) -> int:
    """Run it; returns the exit status."""
    return run_host_tool('train.py', arguments)
