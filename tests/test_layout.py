"""Rules of the project that are checked by reading it."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest
from conftest import imports

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'keyseg_mm'
SOURCES = sorted(PACKAGE.rglob('*.py'))
PUBLIC_HALF = (
    'points.py',
    'plan.py',
    'patchplan.py',
    'layers.py',
    'readers.py',
    'lockplan.py',
    'weights.py',
    'weightplan.py',
)
SECRET_HALF = (
    'keyseg_mm.keys.key',
    'keyseg_mm.keys.keyfile',
    'keyseg_mm.keys.locator',
    'keyseg_mm.runtime.encryptor',
    'keyseg_mm.runtime.protection',
    'keyseg_mm.runtime.leaks',
)
HOST = ('mmengine', 'mmcv', 'mmseg')
HOST_ALLOWED = ('mm', 'commands', 'audit', 'demo', 'compare')
# mmengine imports <scope>.registry: a module of that name must lie there
HOST_SHIM = 'registry.py'


def test_public_half_never_imports_the_secret_half():
    for name in PUBLIC_HALF:
        assert not imports(PACKAGE / name) & set(SECRET_HALF), name
    assert imports(PACKAGE / 'encryptor.py') & set(SECRET_HALF)


def test_the_host_is_imported_only_where_it_belongs():
    for path in SOURCES:
        uses = {name.split('.')[0] for name in imports(path)} & set(HOST)
        if path.relative_to(PACKAGE).parts[0] not in HOST_ALLOWED:
            assert not uses, f'{path} imports {uses}'
    assert any({n.split('.')[0] for n in imports(p)} & set(HOST) for p in SOURCES)


def test_only_the_encryptor_derives_transforms_from_key_and_plan():
    users = {p.name for p in PACKAGE.rglob('*.py') if p.parent.name != 'transforms' and 'KeyStream' in p.read_text()}
    assert users == {'derive.py', 'encryptor.py'}
    assert {'keyseg_mm.keys.key', 'keyseg_mm.stamp'} <= imports(PACKAGE / 'encryptor.py')


def test_no_randomness_of_torch_or_numpy_in_derivation():
    for name in ('derive.py', 'key.py', 'transforms'):
        for path in [PACKAGE / name] if name.endswith('.py') else (PACKAGE / name).glob('*.py'):
            assert not re.search(r'np\.random|torch\.rand|import random|default_rng', path.read_text()), path


@pytest.mark.parametrize('path', SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_sizes(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 330
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno <= 55, node.name
    assert ast.get_docstring(ast.parse(text)), 'no module docstring'


def test_the_project_speaks_of_itself_alone():
    listed = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True).stdout.split()
    if not listed:
        pytest.skip('not a git checkout')
    words = re.compile(r'/work/|/root/|pypi\.org|pythonhosted|issue #?\d|\bsession [0-9]')
    for name in listed:
        path = ROOT / name
        if (
            path.is_file()
            and path.suffix in ('.py', '.md', '.toml', '.txt', '.sh', '')
            and name != 'tests/test_layout.py'
        ):
            found = words.search(path.read_text(errors='replace'))
            assert not found, f'{name}: {found and found.group()}'
