"""Steps of a comparison: commands in processes of their own, whose output goes to a file. What breaks breaks alone."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_LONGEST = 400  # characters of a reason


@dataclass(frozen=True)
class Step:
    """A command that is run for a method.

    Attributes:
        folder: of the method.
        name: of its log, and of the mark that it leaves when it is done.
        words: what it does.
        arguments: of the command line.
        module: its ``main`` is given the arguments.
        fine: exit statuses of success.
    """

    folder: Path
    name: str
    words: str
    arguments: tuple[str, ...]
    module: str
    fine: tuple[int, ...] = (0,)

    @property
    def mark(self) -> Path:
        """A file that says that the step is done."""
        return self.folder / f'{self.name}.done'


@dataclass(frozen=True)
class Ended:
    """How a step ended: why it failed, in a line, and whether by one of this package's own errors; empty if well."""

    why: str = ''
    refused: bool = False


def perform(step: Step) -> Ended:
    """Run a step, in whatever process."""
    log = step.folder / f'{step.name}.log'
    return Ended() if run_command(step.module, step.arguments, log) in step.fine else reason_in(log)


def run_command(module: str, arguments: Sequence[str], log: Path) -> int:
    """Run ``main(arguments)`` of a module in a process of its own; returns its exit status."""
    code = f'import sys; from {module} import main; sys.exit(main(sys.argv[1:]))'
    with log.open('wb') as file:
        process = subprocess.Popen([sys.executable, '-c', code, *arguments], stdout=file, stderr=subprocess.STDOUT)
        try:
            return process.wait()
        finally:
            process.terminate()  # interrupted: nothing is left running
            process.wait()


def reason_in(log: Path) -> Ended:
    """Why a command failed, from the end of its log: an error's message, or the last line of a traceback."""
    lines = [line.strip() for line in log.read_text(encoding='utf-8', errors='replace').splitlines() if line.strip()]
    own = [i for i, line in enumerate(lines) if re.match(r'keyseg [\w-]+: ', line)]
    if own:
        text = ' '.join(lines[own[-1] :]).partition(': ')[2]
        return Ended(textwrap.shorten(text, _LONGEST, placeholder=' ...'), refused=True)
    errors = [line for line in lines if re.match(r'[\w.]*(Error|Exception|Interrupt|Warning)\b', line)]
    text = (errors or lines or ['it printed nothing'])[-1]
    return Ended(f'{textwrap.shorten(text, _LONGEST, placeholder=" ...")} ({log})')
