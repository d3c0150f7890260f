"""The demo's screen: its own words and progress bars, while what libraries print, log and warn goes to a file."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

INDENT = ' ' * 12
_BAR = '   {desc:<24} {percentage:3.0f}% |{bar:28}| {n}/{total}  {remaining} left'


class Screen:
    """Standard output for words and standard error for bars, as they were when the screen was made."""

    def __init__(self) -> None:
        self._out, self._bars = sys.stdout, sys.stderr

    def say(self, text: str = '') -> None:
        """Print."""
        print(text, file=self._out, flush=True)

    def bar(self, name: str, total: int) -> Any:
        """A progress bar that says how much is done and how long the rest takes; it is gone when it is done."""
        # Where nobody watches, in a log file for one, a bar that moves is noise: a line every half minute will do.
        pace = {
            'mininterval': 0.2 if self._bars.isatty() else 30.0,
            'ascii': None if can_show('█', self._bars) else True,
        }
        return tqdm(total=total, desc=name, bar_format=_BAR, leave=False, file=self._bars, **pace)

    def shows_blocks(self) -> bool:
        """Whether the characters that tables are drawn with can be printed."""
        return can_show('█─', self._out)


def can_show(text: str, stream: Any) -> bool:
    """Whether a stream's encoding has these characters."""
    try:
        text.encode(getattr(stream, 'encoding', None) or 'ascii')
    except (UnicodeEncodeError, LookupError):
        return False
    return True


@contextlib.contextmanager
def quiet(log: Path) -> Iterator[None]:
    """Send standard output, standard error, and what reaches the root logger, to the end of a file."""
    root = logging.getLogger()
    with log.open('a', encoding='utf-8') as file:
        kept, root.handlers = root.handlers, [logging.StreamHandler(file)]
        try:
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                yield
        finally:
            root.handlers = kept
