"""Commands in processes of their own: their output goes to a file, and one that breaks down breaks no other."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_POLL = 1.0  # seconds between two looks at the logs
_FRESH = 60.0  # seconds since a log grew, for its command to count as one that is under way
_TAIL = 4096  # bytes of a log that are looked at
_LONGEST = 400  # characters of a reason
# as the host's loggers write it: Iter(train) [  50/1000], Epoch(train)  [1][ 50/372], Iter(test) [50/101]
_PROGRESS = re.compile(r'(?:Iter|Epoch)\((?:train|val|test)\)\s*(?:\[\d+\])?\[\s*(\d+)/(\d+)\]')


@dataclass(frozen=True)
class Command:
    """What is to be run.

    Attributes:
        module: its ``main`` is given the arguments.
        arguments: of the command line.
        log: file for all that it prints; written anew.
        fine: exit statuses of success.
        fresh: folder of an earlier try that has to go first.
        goes_on: file that an earlier try may have left; where it is there, ``--resume`` is added.
    """

    module: str
    arguments: tuple[str, ...]
    log: Path
    fine: tuple[int, ...] = (0,)
    fresh: Path | None = None
    goes_on: Path | None = None


@dataclass(frozen=True)
class Ended:
    """How a command ended: why it failed, in a line, and whether by one of this package's own errors; empty if well."""

    why: str = ''
    refused: bool = False


def perform(command: Command) -> Ended:
    """Run a command, in whatever process."""
    if command.fresh is not None:
        shutil.rmtree(command.fresh, ignore_errors=True)
    more = ['--resume'] if command.goes_on is not None and command.goes_on.exists() else []
    status = run_command(command.module, [*command.arguments, *more], command.log)
    return Ended() if status in command.fine else reason_in(command.log)


def run_command(module: str, arguments: Sequence[str], log: Path) -> int:
    """Run ``main(arguments)`` of a module in a process of its own; returns its exit status."""
    code = f'import sys; from {module} import main; sys.exit(main(sys.argv[1:]))'
    with log.open('wb') as file:
        process = subprocess.Popen([sys.executable, '-c', code, *arguments], stdout=file, stderr=subprocess.STDOUT)
        try:
            return process.wait()
        finally:
            if process.poll() is None:  # interrupted: nothing is left running
                process.terminate()
                process.wait()


@contextmanager
def watched(logs: Sequence[Path], told: Callable[[str], object]) -> Iterator[None]:
    """Tell how far commands are, from the ends of their logs: whoever runs them, the logs are here."""
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(_POLL):
            recent = time.time() - _FRESH
            told(', '.join(filter(None, (progress_in(log) for log in logs if _changed(log) > recent))))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        told('')


def _changed(log: Path) -> float:
    return log.stat().st_mtime if log.exists() else 0.0


def progress_in(log: Path) -> str:
    """The last progress that a log tells of, as ``50 of 1000``; empty where it tells of none."""
    with log.open('rb') as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
        found = _PROGRESS.findall(file.read().decode('utf-8', 'replace'))
    return f'{found[-1][0]} of {found[-1][1]}' if found else ''


def reason_in(log: Path) -> Ended:
    """Why a command failed, from the end of its log: an error's message, or the last line of a traceback."""
    lines = [line.strip() for line in log.read_text(encoding='utf-8', errors='replace').splitlines() if line.strip()]
    own = [i for i, line in enumerate(lines) if re.match(r'keyseg [\w-]+: ', line)]
    if own:
        text = ' '.join(lines[own[-1] :]).partition(': ')[2]
    else:
        errors = [line for line in lines if re.match(r'[\w.]*(Error|Exception|Interrupt|Warning)\b', line)]
        text = (errors or lines or ['it printed nothing'])[-1]
    short = text if len(text) <= _LONGEST else f'{text[: _LONGEST - 3]}...'
    return Ended(short if own else f'{short} ({log})', refused=bool(own))
