"""Rules of the project that are checked by reading it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.source import imports

ROOT = Path(__file__).parents[1]
TESTS = ROOT / 'tests'


def test_no_test_module_imports_another():
    modules = [path for path in TESTS.rglob('*.py') if path.parent.name not in ('support', 'vectors')]
    assert len(modules) > 30
    for path in modules:
        own = {name for name in imports(path) if name.split('.')[0] in ('tests', 'conftest') or 'test_' in name}
        assert all(name.startswith('tests.support.') for name in own), f'{path}: {own}'


def test_the_project_speaks_of_itself_alone():
    listed = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True).stdout.split()
    if not listed:
        pytest.skip('not a git checkout')
    words = re.compile(r'/work/|/root/|pypi\.org|pythonhosted|issue #?\d|\bsession [0-9]')
    for name in listed:
        path = ROOT / name
        if path.is_file() and path.suffix in ('.py', '.md', '.toml', '.txt', '.sh', '') and path != Path(__file__):
            found = words.search(path.read_text(errors='replace'))
            assert not found, f'{name}: {found and found.group()}'
