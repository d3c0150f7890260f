"""Running commands in processes of their own: their output goes to a file, and one that breaks down breaks no other."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

COMMANDS, MEASURE = 'keyseg_mm.cli', 'keyseg_mm.compare.measure'
Told = Callable[[str], object]
_POLL = 1.0  # seconds between two looks at a log
_TAIL = 4096  # bytes of a log that are looked at
_LONGEST = 400  # characters of a reason
# as the host's loggers write it: Iter(train) [  50/1000], Epoch(train)  [1][ 50/372], Iter(test) [50/101]
_PROGRESS = re.compile(r'(?:Iter|Epoch)\((?:train|val|test)\)\s*(?:\[\d+\])?\[\s*(\d+)/(\d+)\]')


class StepError(Exception):
    """A step that did not come to its end; the message says why.

    Args:
        reason: why.
        refused: one of this package's own errors, no breakdown.
    """

    def __init__(self, reason: str, refused: bool = False) -> None:
        super().__init__(reason)
        self.refused = refused


def run_step(module: str, arguments: Sequence[object], log: Path, told: Told = lambda text: None) -> int:
    """Run ``main(arguments)`` of a module in a process of its own.

    Args:
        module: one of this module's constants.
        arguments: of the command line.
        log: file for all that it prints; written anew.
        told: given the progress that the log tells of, in words.

    Returns:
        The exit status.
    """
    code = f'import sys; from {module} import main; sys.exit(main(sys.argv[1:]))'
    with log.open('wb') as file:
        process = subprocess.Popen(
            [sys.executable, '-c', code, *map(str, arguments)], stdout=file, stderr=subprocess.STDOUT
        )
        try:
            while True:
                try:
                    return process.wait(_POLL)
                except subprocess.TimeoutExpired:
                    if progress := progress_in(log):
                        told(progress)
        finally:
            if process.poll() is None:  # interrupted: nothing is left running
                process.terminate()
                process.wait()


def progress_in(log: Path) -> str:
    """The last progress that a log tells of, as ``50 of 1000``; empty where it tells of none."""
    with log.open('rb') as file:
        file.seek(max(0, log.stat().st_size - _TAIL))
        found = _PROGRESS.findall(file.read().decode('utf-8', 'replace'))
    return f'{found[-1][0]} of {found[-1][1]}' if found else ''


def reason_in(log: Path) -> StepError:
    """Why a command failed, from the end of its log: an error's message, or the last line of a traceback."""
    lines = [line.strip() for line in log.read_text(encoding='utf-8', errors='replace').splitlines() if line.strip()]
    own = [i for i, line in enumerate(lines) if re.match(r'keyseg [\w-]+: ', line)]
    if own:
        text = ' '.join(lines[own[-1] :]).partition(': ')[2]
    else:
        errors = [line for line in lines if re.match(r'[\w.]*(Error|Exception|Interrupt|Warning)\b', line)]
        text = (errors or lines or ['it printed nothing'])[-1]
    short = text if len(text) <= _LONGEST else f'{text[: _LONGEST - 3]}...'
    return StepError(short, refused=bool(own))
