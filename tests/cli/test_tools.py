"""The host's own tools on protected configs, and commands whose output nobody reads."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.analysis import get_model_complexity_info
from mmengine.logging import HistoryBuffer
from mmseg.registry import MODELS

import keyseg_mm
from keyseg_mm import stamps_of
from keyseg_mm.checkpoint.files import read_checkpoint
from keyseg_mm.errors import NotFiredError, SecretExposedError
from tests.support.cli import keyseg
from tests.support.configs import keyed_cfg, tiny_model_cfg

MAIN = 'import sys; from keyseg_mm.cli import main; sys.exit(main())'


def test_the_tools_of_the_host_are_listed_and_named(capsys):
    assert keyseg('tool') == 0
    printed = capsys.readouterr().out
    assert all(f'  {name}\n' in printed for name in ('get_flops', 'benchmark', 'print_config', 'publish_model'))
    assert keyseg('tool', 'nonesuch') == 1
    assert 'has no tool nonesuch; it has analyze_logs, ' in capsys.readouterr().err


def test_a_tool_reads_the_hosts_configs_and_refuses_secrets(tmp_path, key, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tmp_path / 'config.py'
    config.write_text("_base_ = 'mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py'\nmark = 'read'\n")
    assert keyseg('tool', 'print_config', config) == 0
    assert "'read'" in capsys.readouterr().out
    assert keyseg('tool', 'print_config', config, '--cfg-options', f'model.protection.key={key.to_text()}') == 1
    assert 'burnt' in capsys.readouterr().err


def test_a_training_checkpoint_is_published(tmp_path, key_file, monkeypatch):
    """The host's tool reads it by torch.load, which refuses the training curves in it."""
    monkeypatch.setattr('subprocess.Popen', lambda command: Path(command[1]).rename(command[2]))
    model = MODELS.build(keyed_cfg(tiny_model_cfg(), f'file:{key_file}'))
    keyseg_mm.save(model, tmp_path / 'sealed.pth')
    content = read_checkpoint(tmp_path / 'sealed.pth')
    content |= {'message_hub': {'log_scalars': {'loss': HistoryBuffer([1.0], [1])}}, 'optimizer': {'state': {}}}
    torch.save(content, tmp_path / 'in.pth')
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / 'in.pth', weights_only=True)
    load = torch.load
    assert keyseg('tool', 'publish_model', tmp_path / 'in.pth', tmp_path / 'named.pth') == 0
    assert torch.load is load
    (published,) = tmp_path.glob('named-*.pth')
    found = read_checkpoint(published)
    assert 'optimizer' not in found and stamps_of(found['state_dict'])
    model.load_state_dict(found['state_dict'])


def flops(cfg):
    model = MODELS.build(cfg).eval()
    model.auxiliary_head = None  # as the host's tool does
    found = get_model_complexity_info(model, None, torch.rand(1, 3, 64, 64), show_table=False, show_arch=False)
    return (found['flops'], found['params']), model


@pytest.mark.parametrize(('points', 'words'), [('stages', 'export'), ('checkpoint', 'no protected checkpoint')])
def test_a_keyed_model_has_the_flops_of_the_plain_one_and_stays_keyed(points, words, key_file):
    counts, model = flops(keyed_cfg(tiny_model_cfg(), f'file:{key_file}', points=points))
    assert counts == flops(tiny_model_cfg())[0]
    with pytest.raises((SecretExposedError, NotFiredError), match=words):
        torch.jit.trace(model, torch.rand(1, 3, 64, 64), check_trace=False)


@pytest.mark.parametrize('arguments', [('keygen', '--out', 'my.key'), ('tool',)])
def test_output_that_nobody_reads_is_no_error(arguments, tmp_path):
    command = subprocess.Popen(
        [sys.executable, '-c', MAIN, *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    command.stdout.close()
    said = command.stderr.read()
    assert command.wait(120) == 141 and b'Broken' not in said and b'Traceback' not in said


def test_who_has_no_key_is_not_told_to_make_another(tmp_path, capsys):
    assert keyseg('unlock', tmp_path / 'a.pth', '--key', f'file:{tmp_path}/no.key', '--out', tmp_path / 'b.pth') == 1
    said = capsys.readouterr().err
    assert 'could not read the key file' in said and 'ask its owner' in said
