"""Rules of the project that are checked by reading it, and that the check finds what breaks them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.house import NAME, ROOT, findings, imports, known_sins

TESTS = ROOT / 'tests'
BODY = '\n'.join(f'    x = {n}' for n in range(40))


@pytest.fixture(scope='module')
def found():
    return findings(ROOT / NAME)


def test_the_package_keeps_the_rules(found):
    assert sorted(found - known_sins()) == []


def test_known_sins_are_still_there(found):
    """The list only shrinks: ``python -m tests.support.house --shrink``."""
    assert sorted(known_sins() - found) == []


# what is written at the end of which file, and what is found then
PLANTED = {
    'an arrow upwards': ('maps/base.py', 'from keyseg_mm.runtime import leaks', 'arrow upwards: keyseg_mm.maps.base'),
    'a lazy arrow': ('maps/base.py', 'def f():\n    import keyseg_mm.mm.dryrun', 'arrow upwards: keyseg_mm.maps.base'),
    'an arrow for types': (
        'atomic.py',
        'from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from keyseg_mm.keys.key import SecretKey',
        'arrow upwards: keyseg_mm.atomic -> keyseg_mm.keys.key',
    ),
    'a relative arrow': ('keys/key.py', 'from ..mm import dryrun', 'arrow upwards: keyseg_mm.keys.key -> keyseg_mm.mm'),
    'an arrow by import_module': (
        'atomic.py',
        "import importlib\ndef f(name):\n    return importlib.import_module(f'keyseg_mm.{name}')",
        'arrow upwards: keyseg_mm.atomic -> keyseg_mm.mm',
    ),
    'an arrow by a table': ('atomic.py', "_WHERE = {'Keyed': 'keyseg_mm.mm.keyed'}", 'arrow upwards: keyseg_mm.atomic'),
    'an arrow by the public API': (
        'atomic.py',
        'def f():\n    from keyseg_mm import attach',
        'arrow upwards: keyseg_mm.atomic -> keyseg_mm.runtime.attach',
    ),
    'an arrow between neighbours': (
        'keys/key.py',
        'import keyseg_mm.model',
        'arrow upwards: keyseg_mm.keys.key',
    ),
    'an import of the registry': ('mm/dryrun.py', 'import keyseg_mm.registry', 'imports the composition root'),
    'the host in a low room': ('keys/key.py', 'def f():\n    from mmseg.apis import init_model', 'host below mm'),
    'the host by name': (
        'runtime/leaks.py',
        "def f():\n    return __import__('mmseg.apis')",
        'host below mm: keyseg_mm.runtime.leaks imports mmseg',
    ),
    'torch in the stamp': ('stamp.py', 'import torch', 'torch: keyseg_mm.stamp'),
    'torch in the envelope': ('envelope.py', 'import torch', 'torch: keyseg_mm.envelope'),
    'torch in the cipher': ('seal/cipher.py', 'import torch', 'torch: keyseg_mm.seal.cipher'),
    'torch behind a key': ('errors.py', 'from torch import nn', 'torch: keyseg_mm.keys.secret, by way of'),
    'torch in a key': ('keys/key.py', 'def f():\n    import torch.nn', 'torch: keyseg_mm.keys.key'),
    'an attack with a key': (
        'audit/model/attacks/planted.py',
        '"""Planted."""\nfrom keyseg_mm.keys.key import SecretKey',
        'an attack that knows too much: keyseg_mm.audit.model.attacks.planted -> keyseg_mm.keys.key',
    ),
    'a stamp with a key': ('stamp.py', 'import keyseg_mm.keys.key', 'the public half sees a key: keyseg_mm.stamp'),
    'a second derivation': ('mm/dryrun.py', 'def f(key):\n    key.subkey(1)', 'derives from keys: keyseg_mm.mm.dryrun'),
    'keys by chance': (
        'keys/key.py',
        'import numpy as np\ndef f():\n    return np.random.default_rng()',
        'draws by other generators: keyseg_mm.keys.key',
    ),
    'a long file': ('atomic.py', '# line\n' * 300, 'long file: keyseg_mm.atomic'),
    'a long function': ('atomic.py', f'def f():\n{BODY}', 'long function: keyseg_mm.atomic.f'),
    'a long function in a class': (
        'atomic.py',
        'class A:\n    def f(self):\n        def g():\n' + BODY.replace('    ', ' ' * 12),
        'long function: keyseg_mm.atomic.A.f.g',
    ),
    'a long package': ('planted.py', '"""Planted."""\n' + '# line\n' * 15_000, 'long package'),
    'no docstring': ('maps/planted.py', 'x = 1', 'no docstring: keyseg_mm.maps.planted'),
    'a room that is none': ('planted.py', '"""Planted."""', 'no room in the chain: keyseg_mm.planted'),
    'an assertion for the checker': ('atomic.py', 'def f(x):\n    assert x is not None', 'assert is not None'),
}


@pytest.mark.parametrize('fault', PLANTED)
def test_planted_faults_are_found(fault, found, tmp_path):
    where, text, expected = PLANTED[fault]
    package = copied(tmp_path)
    path = package / where
    before = path.read_text() if path.exists() else ''
    path.write_text(f'{before}\n\n{text}\n' if before else f'{text}\n')
    if any(sin.startswith(expected) for sin in found & known_sins()):
        pytest.skip('a known sin that this fault would hide behind')
    new = findings(package) - found
    assert any(sin.startswith(expected) for sin in new), new


@pytest.mark.parametrize('indent', ['', 'def f():\n    '], ids=['at the top', 'lazy'])
def test_a_planted_circle_is_found(indent, found, tmp_path):
    package = copied(tmp_path)
    for name, other in (('one', 'two'), ('two', 'three'), ('three', 'one')):
        (package / 'maps' / f'{name}.py').write_text(f'"""Planted."""\n\n{indent}import keyseg_mm.maps.{other}\n')
    circle = ', '.join(f'keyseg_mm.maps.{name}' for name in ('one', 'three', 'two'))
    assert findings(package) - found == {f'circle: {circle}'}


def test_at_the_limit_is_no_fault(found, tmp_path):
    package = copied(tmp_path)
    lines = ['"""Planted."""', *(f'    x = {n}' for n in range(39))]
    lines.insert(1, 'def f():')
    lines += ['# line'] * (300 - len(lines))
    (package / 'maps' / 'planted.py').write_text('\n'.join(lines) + '\n')
    assert findings(package) <= found | {'long package: more than 15000 lines'}


def copied(folder: Path) -> Path:
    return Path(shutil.copytree(ROOT / NAME, folder / NAME, ignore=shutil.ignore_patterns('__pycache__', '.mim')))


def test_keys_and_stamp_work_without_torch():
    if any(sin.startswith('torch') for sin in known_sins()):
        pytest.skip('a known sin')
    code = (
        "import sys; sys.modules['torch'] = None\n"
        'import keyseg_mm.keys.key, keyseg_mm.keys.keyfile, keyseg_mm.keys.locator, keyseg_mm.stamp\n'
        'import keyseg_mm.envelope, keyseg_mm.seal.cipher\n'
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_test_module_imports_another():
    modules = [path for path in TESTS.rglob('*.py') if path.parent.name not in ('support', 'vectors')]
    assert len(modules) > 30
    for path in modules:
        own = {name for name in imports(path) if name.split('.')[0] in ('tests', 'conftest') or 'test_' in name}
        assert all(name.startswith(('tests.support.', 'tests.vectors.')) for name in own), f'{path}: {own}'


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
