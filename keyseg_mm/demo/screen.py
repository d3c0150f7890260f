"""The demo's screen: its own words and progress bars, while what libraries print, log and warn goes to a file."""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

_BAR = '   {desc:<24} {percentage:3.0f}% |{bar:28}| {n}/{total}  {remaining} left'
_INDENT = ' ' * 12


class Screen:
    """Standard output for words and standard error for bars, as they were when the screen was made."""

    def __init__(self) -> None:
        self._out, self._bars = sys.stdout, sys.stderr

    def say(self, text: str = '') -> None:
        """Print."""
        print(text, file=self._out, flush=True)

    def step(self, number: int, name: str, text: str, place: object = '') -> None:
        """Announce a step, and where what it makes is to be found."""
        self.say(f'{number}  {name:<9}{text}')
        if str(place):
            self.say(f'{_INDENT}{place}')

    def detail(self, text: str) -> None:
        """A line that belongs to the step announced before."""
        self.say(_INDENT + text)

    def wrapped(self, text: str) -> None:
        """Print a paragraph, no wider than the terminal."""
        self.say(textwrap.fill(text, min(shutil.get_terminal_size().columns - 1, 98)))

    def bar(self, name: str, total: int) -> Any:
        """A progress bar that says how much is done and how long the rest takes; it is gone when it is done."""
        # Where nobody watches, in a log file for one, a bar that moves is noise: a line every half minute will do.
        watched = self._bars.isatty()
        pace = {'mininterval': 0.2 if watched else 30.0, 'ascii': None if can_show('█', self._bars) else True}
        return tqdm(total=total, desc=name, bar_format=_BAR, leave=False, file=self._bars, **pace)

    def shows_blocks(self) -> bool:
        """Whether the characters that tables and bars are drawn with can be printed."""
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
