"""The commands of docs/trace.md, typed as they stand there."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import torch

from keyseg_mm.checkpoint.files import read_checkpoint, write_checkpoint
from keyseg_mm.cli import main
from tests.support.configs import normed_model
from tests.support.readme import blocks

PAGE = Path(__file__).parents[2] / 'docs' / 'trace.md'
TRACE = ['--master', 'file:keys/master.key', '--licensees', 'customers.txt', '--original', 'plain.pth']


def test_the_walk_of_a_customers_copy(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_checkpoint('plain.pth', normed_model().state_dict(), {})
    Path('customers.txt').write_text('Bolt\nACME Ltd\nCrux GmbH\n')
    commands = [shlex.split(command) for block in blocks(PAGE) for command in block.commands]
    assert [words[1] for words in commands] == ['keygen', 'lock', 'rekey', 'keygen', 'show', 'unlock', 'trace']
    for words in commands:
        assert main(words[1:]) == 0, (words, capsys.readouterr().err)
    said = capsys.readouterr().out
    assert "this is the copy of 'ACME Ltd'" in said.splitlines()[-1]
    assert 'copy    with the fingerprint of a licensee, of 0.001' in said

    assert main(['trace', 'found.pth', *TRACE, '--json']) == 0
    told = json.loads(capsys.readouterr().out)
    assert told['owners'] == ['ACME Ltd']
    assert [row['certain'] for row in told['scores']] == [True, False, False]
    assert main(['trace', 'plain.pth', *TRACE, '--json']) == 3
    assert json.loads(capsys.readouterr().out)['owners'] == []


def test_lock_makes_a_copy_in_one_step_and_says_what_does_not_go_together(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    state = normed_model().state_dict()
    write_checkpoint('plain.pth', state, {}, others={'ema_state_dict': dict(state)})
    Path('customers.txt').write_text('Bolt\nACME Ltd\n')
    assert main(['keygen', '--out', 'keys/master.key']) == 0
    licensee = ['--master', 'file:keys/master.key', '--licensee', 'Bolt']
    assert main(['keygen', *licensee, '--out', 'bolt.key']) == 0
    lock = ['lock', 'plain.pth', '--out', 'bolt.pth']
    for wrong in (
        [*licensee, '--key', 'file:bolt.key'],
        ['--licensee', 'Bolt'],
        ['--key', 'file:bolt.key', '--no-fingerprint'],
        [*licensee, '--no-fingerprint', '--fingerprint-strength', '0.01'],
        [*licensee, '--fingerprint-strength', '2'],
    ):
        assert main([*lock, *wrong]) == 1, wrong
    assert not Path('bolt.pth').exists()
    assert main([*lock, *licensee, '--fingerprint-strength', '0.002']) == 0
    said = capsys.readouterr().out
    assert "the fingerprint of 'Bolt'" in said and 'dropped' in said and 'ema_state_dict' in said
    assert main(['unlock', 'bolt.pth', '--key', 'file:bolt.key', '--out', 'opened.pth']) == 0
    assert main(['trace', 'opened.pth', *TRACE]) == 0
    change = read_checkpoint('opened.pth')['state_dict']['backbone.conv1.weight'] - state['backbone.conv1.weight']
    assert 0.001 < float(change.std() / state['backbone.conv1.weight'].std()) < 0.003
    assert main([*lock[:3], 'exact.pth', *licensee, '--no-fingerprint']) == 0
    assert main(['unlock', 'exact.pth', '--key', 'file:bolt.key', '--out', 'exactly.pth']) == 0
    exactly = read_checkpoint('exactly.pth')['state_dict']
    assert all(torch.equal(exactly[name], value) for name, value in state.items())
    assert main(['rekey', 'bolt.pth', '--key', 'file:bolt.key', *licensee, '--out', 'twice.pth']) == 1
    assert 'already' in capsys.readouterr().err


def test_an_exported_copy_is_traced(tmp_path, monkeypatch, capsys):
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    from keyseg_mm import read_key_file
    from keyseg_mm.tracing import Fingerprint

    monkeypatch.chdir(tmp_path)
    state = normed_model().state_dict()
    write_checkpoint('plain.pth', state, {})
    Path('customers.txt').write_text('Bolt\nACME Ltd\n')
    assert main(['keygen', '--out', 'keys/master.key']) == 0
    copied = {name: value.clone() for name, value in state.items()}
    Fingerprint(read_key_file('keys/master.key'), 'Bolt').put(copied)
    arrays = {f'onnx::Conv_{i}': v.numpy() for i, v in enumerate(copied.values()) if v.dim() > 1}
    name, array = next(iter(arrays.items()))
    constant = helper.make_node('Constant', [], ['constant'], value=numpy_helper.from_array(arrays.pop(name)))
    held = [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in arrays.items()]
    onnx.save(helper.make_model(helper.make_graph([constant], 'graph', [], [], initializer=held)), 'found.onnx')
    capsys.readouterr()
    assert main(['trace', 'found.onnx', *TRACE]) == 0
    assert f'weights      {len(arrays) + 1} of the original' in capsys.readouterr().out
    Path('cut.onnx').write_bytes(Path('found.onnx').read_bytes()[:-9])
    assert main(['trace', 'cut.onnx', *TRACE]) == 1
