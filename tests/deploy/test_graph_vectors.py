"""The formats of exported graphs stay, and what is none is refused."""

from __future__ import annotations

import json

import pytest

from keyseg_mm import SecretKey
from keyseg_mm.deploy import read_exported
from keyseg_mm.errors import KeysegError
from tests.support.vectors import GRAPHS
from tests.vectors.graphs import bad, good

CASES = json.loads(GRAPHS.read_text())


def opened(case):
    return read_exported(bytes.fromhex(case['file']), SecretKey(bytes.fromhex(case['key'])))


@pytest.mark.parametrize('case', CASES['good'], ids=lambda case: case['of'])
def test_good_files_open(case):
    found = opened(case)
    assert bytes(found.graph).startswith(bytes.fromhex(case['graph'])) and found.format == 'onnx'
    assert {name: table.ravel().tolist() for name, table in found.tables.items()} == case['tables']
    assert found.meta['size'] == [64, 96]


@pytest.mark.parametrize('case', CASES['bad'], ids=lambda case: case['why'])
def test_bad_files_are_refused(case):
    with pytest.raises(KeysegError):
        opened(case)


def test_the_vectors_are_those_of_their_module():
    made = good()
    assert [case['of'] for case in CASES['good']] == list(made)
    assert [case['why'] for case in CASES['bad']] == [why for why, _ in bad(made)]
    assert len({case['file'] for case in CASES['bad']}) == len(CASES['bad']) > 18
