"""The shell commands of a Markdown page, and what is the same at every run in what they print."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = ('keyseg', 'make', 'pip', 'python')
_MASKS = (
    (r'\b[0-9a-f]{32}\b', 'SALT'),
    (r'\bk[sr]1[0-9a-z]{16}\b', 'KEY-ID'),
    (r'\bKEYSEG-RECIPIENT-1-[A-Z2-7-]+', 'RECIPIENT'),
    (r'[-+]?\b\d+\.\d+(e[-+]?\d+)?\b', 'N.N'),
    (r'\b\d+e[-+]\d+\b', 'N.N'),
    (r' \(kappa N\.N:[^)]*\)', ''),  # left out where both say one class: the last bits of a drawn model decide
    (r'[ \t]+$', ''),
)


@dataclass
class Block:
    """Commands that stand together, to be run one after another in one folder.

    Attributes:
        name: of the section that they stand in, with a number where it has several such blocks.
        commands: each as it is typed, without its comment.
    """

    name: str
    commands: list[str] = field(default_factory=list)


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page that hold commands, in order."""
    found: list[Block] = []
    heading, fenced, names = '', False, {}
    for line in page.read_text(encoding='utf-8').replace('\\\n', ' ').splitlines():  # long ones go on below
        if line.startswith('```'):
            fenced = not fenced
            if fenced:
                found.append(Block(heading))
        elif not fenced and line.startswith('#'):
            heading = re.sub(r'[^a-z0-9]+', '-', line.lower()).strip('-')
        elif fenced and line.split(' ')[0] in PROGRAMS:
            found[-1].commands.append(shlex.join(shlex.split(line, comments=True)))
    found = [block for block in found if block.commands]
    for block in found:
        names[block.name] = number = names.get(block.name, 0) + 1
        block.name += f'-{number}' if number > 1 else ''
    return found


def stable(text: str, folder: Path) -> str:
    """What a command printed, with ids, salts, fractions and the folder's path masked, without progress bars.

    Of a table of points, the first two.
    """
    text = text.replace(str(folder), 'FOLDER')
    for pattern, word in _MASKS:
        text = re.sub(pattern, word, text, flags=re.MULTILINE)
    if 'SelectiveEncryption' in text:  # which values are the most sensitive depends on the last bits of a gradient
        text = re.sub(r'\b\d+\b', 'N', re.sub(r'^.* SelectiveEncryption.*\n', '', text, flags=re.MULTILINE))
    lines = [re.sub(r' {2,}', '  ', line) for line in text.splitlines()]
    lines = [line for i, line in enumerate(lines) if not (line[:3] == 'in:' == lines[max(0, i - 2)][:3])]
    return '\n'.join(line for line in lines if '\r' not in line and 'it/s' not in line and '%|' not in line).strip('\n')
