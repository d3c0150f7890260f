"""The customer's walk of docs/deploy.md, typed in an environment that has neither torch nor mmsegmentation."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from keyseg_mm.checkpoint.rekeying import rekey_file
from keyseg_mm.cli import build_parser
from keyseg_mm.keys.identity import read_recipient
from tests.support.exports import SIZE

ROOT = Path(__file__).parents[2]


def block(name):
    """The lines of a block of docs/deploy.md."""
    text = (ROOT / 'docs' / 'deploy.md').read_text()
    return re.search(rf'<!-- {name} -->\n```\w*\n(.*?)```', text, flags=re.DOTALL)[1]


def test_the_owners_line_is_understood():
    line = next(line for line in block('owner').splitlines() if line.startswith('keyseg'))
    args = build_parser(['export']).parse_args(shlex.split(line)[1:])
    assert args.with_preprocessing and args.argmax and args.to == ['file:customer.recipient']


@pytest.fixture(scope='module')
def environment(tmp_path_factory):
    """A fresh environment with what the walk installs, and nothing of the one that runs this test."""
    folder = tmp_path_factory.mktemp('customer')
    for name in ('keyseg_mm', 'configs', 'tools', 'README.md', 'setup.py', 'pyproject.toml'):
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, folder / name)
    venv.create(folder / 'env', with_pip=False)
    install = shlex.split(block('customer').splitlines()[0])[2:]
    wheel = [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', str(folder), '.']
    subprocess.run(wheel, cwd=folder, check=True, capture_output=True)
    wanted = [word.replace('keyseg-mm', str(next(folder.glob('*.whl')))) for word in install]
    pip = [
        sys.executable,
        '-m',
        'pip',
        '--python',
        str(folder / 'env'),
        'install',
        '-q',
        '-c',
        ROOT / 'constraints.txt',
    ]
    done = subprocess.run([*pip, '-c', ROOT / 'constraints.txt', *wanted], capture_output=True, text=True, env=bare())
    if done.returncode:
        pytest.skip(f'pip cannot install here: {done.stderr.strip().splitlines()[-1:]}')
    return folder / 'env' / 'bin'


def bare():
    return {name: value for name, value in os.environ.items() if name not in ('PYTHONPATH', 'VIRTUAL_ENV')}


def test_the_customers_walk(environment, sealed, shop, tmp_path):
    def typed(*words):
        done = subprocess.run(
            [environment / words[0], *words[1:]], cwd=tmp_path, capture_output=True, text=True, env=bare()
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    listed = typed('python', '-c', 'import importlib.metadata as m; print(*(d.name for d in m.distributions()))')
    assert 'onnxruntime' in listed and not {'torch', 'mmengine', 'scipy', 'jinja2'} & set(listed.lower().split())
    printed = typed(*shlex.split(block('customer').splitlines()[1]))
    line = re.search(r'KEYSEG-RECIPIENT-1-\S+', printed)[0]
    rekey_file(sealed, shop.key, [read_recipient(line)], tmp_path / 'model.onnx.sealed')
    assert typed('python', '-c', block('python')).strip() == f'(1, 5, {SIZE[0]}, {SIZE[1]})'
    assert sorted(path.name for path in tmp_path.iterdir()) == ['customer.key', 'model.onnx.sealed']
