"""Changed inputs of every format that is read: right, or an error of this package, in no time."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyseg_mm.errors import KeysegError
from tests.support.fuzz import TARGETS, Target, inputs, mutate

FUZZER = Path(__file__).parents[1] / 'benchmarks' / 'fuzz.py'


@pytest.mark.parametrize('name', TARGETS)
def test_examples_are_right(name):
    for example in TARGETS[name].examples():
        assert TARGETS[name].read(example) or name == 'locators'


@pytest.mark.parametrize('name', TARGETS)
def test_changed_examples(name):
    target, read = TARGETS[name], []
    for data in itertools.islice(inputs(target, 0), 60 if target.is_file else 400):
        begun = time.process_time()
        read.append(target.read(data))
        assert time.process_time() - begun < 5
    assert not all(read), 'changes are found'


@pytest.mark.parametrize('name', TARGETS)
@settings(max_examples=25)
@given(st.binary(max_size=200), st.integers(0, 2**32))
def test_any_bytes_and_changes(name, data, seed):
    target = TARGETS[name]
    target.read(data)
    examples = target.examples()
    draw = random.Random(seed)  # noqa: S311
    target.read(mutate(examples[seed % len(examples)], draw, [data]))


def test_findings_are_found():
    def bad(data: bytes) -> None:
        if len(data) > 3:
            raise KeyError(data)
        raise KeysegError('right')

    target = Target(lambda: [b'abc'], bad)
    with pytest.raises(KeyError):
        for data in itertools.islice(inputs(target, 0), 100):
            target.read(data)


def test_the_long_run_records_what_it_did(tmp_path):
    command = [
        sys.executable,
        FUZZER,
        '--inputs',
        '50',
        '--targets',
        'points',
        '.safetensors',
        '--json',
        tmp_path / 'f',
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / 'f').read_text())
    assert found['points']['inputs'] == found['.safetensors']['inputs'] == 50
    assert all(not row['findings'] and 0 < row['errors'] <= 50 for row in found.values())
    assert '| points |' in done.stdout
