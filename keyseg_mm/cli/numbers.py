"""Numbers on command lines."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def whole_number(least: int) -> Callable[[str], int]:
    """What parses a whole number that is at least so large, for ``type=`` of an argument."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f'takes a whole number from {least} on')
        return int(text)

    return parse
