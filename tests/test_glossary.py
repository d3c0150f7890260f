"""The glossary names what there is."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMES = re.findall(r'^\| [^|]*\(`(\w+)`\)', (ROOT / 'docs' / 'glossary.md').read_text(), flags=re.MULTILINE)
DEFINED = {
    getattr(node, 'name', None) or node.id
    for path in (ROOT / 'keyseg_mm').rglob('*.py')
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, (ast.ClassDef, ast.FunctionDef))
    or (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
}


@pytest.mark.parametrize('name', NAMES)
def test_the_code_has_what_the_glossary_names(name):
    assert name in DEFINED


def test_the_readme_links_it():
    assert 'docs/glossary.md' in (ROOT / 'README.md').read_text()
