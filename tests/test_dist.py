"""What is handed out: wheel and sdist, the same bit by bit each time, and whole."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def build(folder, tmp_path):
    """Wheel and sdist of a copy of what is committed or about to be; their digests, by name."""
    names = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, check=True).stdout
    packed = ['tar', 'c', '--ignore-failed-read', '--null', '-T', '-']
    archive = subprocess.run(packed, cwd=ROOT, input=names, capture_output=True, check=True).stdout
    folder.mkdir()
    subprocess.run(['tar', 'x', '-C', folder], input=archive, check=True)
    subprocess.run(
        [sys.executable, '-m', 'build', '--no-isolation', '-o', folder / 'dist', '.'],
        cwd=folder,
        check=True,
        capture_output=True,
        env={**os.environ, 'SOURCE_DATE_EPOCH': '1700000000', 'TMPDIR': str(tmp_path)},
    )
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / 'dist').iterdir()}


def test_they_are_the_same_each_time_and_whole(tmp_path):
    first, second = (build(tmp_path / name, tmp_path) for name in ('a', 'b'))
    assert first == second and len(first) == 2
    made = sorted((tmp_path / 'a' / 'dist').iterdir())
    subprocess.run([sys.executable, '-m', 'twine', 'check', '--strict', *made], check=True, capture_output=True)
    wheel, sdist = made
    names = zipfile.ZipFile(wheel).namelist()
    for name in ('py.typed', '.mim/tools/test.py', '.mim/configs/_base_/protection/linear.py', 'demo/protected.py.in'):
        assert f'keyseg_mm/{name}' in names
    assert not [name for name in names if name.startswith(('tests', 'docs', 'benchmarks'))]
    with tarfile.open(sdist) as archive:
        assert len({info.mtime for info in archive}) == 1
