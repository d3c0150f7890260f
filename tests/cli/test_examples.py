"""Every command and every name of this package that a page or a help text shows is there, with these options."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

from keyseg_mm.cli import COMMANDS, EPILOG, PASS_ON, TOOLS, build_parser
from keyseg_mm.deploy.container import TABLES
from tests.support.names import resolve_dotted
from tests.support.readme import blocks

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / 'README.md', ROOT / 'configs' / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]


def helps() -> list[str]:
    own = [name for name in (*COMMANDS, *TOOLS) if name not in PASS_ON]
    return [EPILOG, *(importlib.import_module(f'keyseg_mm.cli.{name}').__doc__ for name in own)]


def examples(text: str) -> list[str]:
    """The lines of a help text that are commands, joined where they go on, less what is said behind them."""
    lines = re.findall(r'^  (keyseg .*)$', text.replace('\\\n', ' ').replace(' && ', '\n  '), flags=re.MULTILINE)
    return [re.split(r' {2,}[^- ]', re.sub(r'  +(?=--)', ' ', line))[0] for line in lines]


COMMAND_LINES = sorted(
    {line for text in helps() for line in examples(text)}
    | {line for page in PAGES for block in blocks(page) for line in block.commands if line.startswith('keyseg ')}
)


@pytest.mark.parametrize('line', COMMAND_LINES)
def test_a_command_that_is_shown_is_understood(line):
    words = shlex.split(line, comments=True)[1:]
    if words[0] == 'tool' and words[1] in TOOLS:
        words = words[1:]
    assert words[0] in {*COMMANDS, *TOOLS, 'tool'}
    if words[0] not in PASS_ON:
        build_parser(words[:1]).parse_args(words)


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_names_on_a_page_are_there(page):
    names = set(re.findall(r'\bkeyseg_mm(?:\.\w+)+', page.read_text())) - {TABLES}  # a field's name in ONNX files
    assert sorted(name for name in names if not resolve_dotted(name)) == []
