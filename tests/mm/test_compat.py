"""The mends for the two mmseg stacks."""

from __future__ import annotations

import argparse
import builtins

import numpy as np
import pytest
import torch
from mmengine.config import Config, DictAction
from mmengine.logging import HistoryBuffer
from mmengine.runner import FlexibleRunner, Runner
from mmengine.runner.checkpoint import _load_checkpoint

from keyseg_mm.checkpoint.files import read_checkpoint
from keyseg_mm.errors import KeyFileError, KeysegError, SecretExposedError
from keyseg_mm.keys.locator import locate
from keyseg_mm.mm.compat import history_buffer_method, installed_version, keep_locators_whole


class Reaching:
    """Asks the unpickler for an attribute by getattr, as an attack would."""

    def __reduce__(self):
        return (builtins.getattr, (np.ndarray, 'tofile'))


@pytest.fixture
def curves():
    buffer = HistoryBuffer([1.0, 2.0], [1, 1])
    return {'message_hub': {'log_scalars': {'loss': buffer}}, 'state_dict': {'w': torch.ones(2)}}


def test_the_host_opens_its_own_training_checkpoints(tmp_path, curves):
    torch.save(curves, tmp_path / 'a.pth')
    loaded = _load_checkpoint(str(tmp_path / 'a.pth'), map_location='cpu')
    assert loaded['message_hub']['log_scalars']['loss'].mean() == 1.5


def test_read_checkpoint_needs_no_host_classes(tmp_path, curves):
    torch.save(curves, tmp_path / 'a.pth')
    allowed = set(map(repr, torch.serialization.get_safe_globals()))
    assert torch.equal(read_checkpoint(tmp_path / 'a.pth')['state_dict']['w'], torch.ones(2))
    assert set(map(repr, torch.serialization.get_safe_globals())) == allowed


def test_getattr_in_a_pickle_reaches_nothing_else(tmp_path):
    torch.save({'state_dict': {}, 'x': Reaching()}, tmp_path / 'evil.pth')
    with pytest.raises(KeysegError):
        read_checkpoint(tmp_path / 'evil.pth')
    for owner, name in (
        (np.ndarray, 'tofile'),
        (HistoryBuffer, '__init__'),
        (HistoryBuffer, '__globals__'),
        (builtins, 'eval'),
    ):
        with pytest.raises(AttributeError):
            history_buffer_method(owner, name)
    assert history_buffer_method(HistoryBuffer, 'mean') is HistoryBuffer.mean


@pytest.mark.skipif(installed_version('mmengine') is None, reason='onedl-mmengine brings its own loader')
def test_weights_only_stays_on_under_the_mend(tmp_path):
    torch.save({'state_dict': {}, 'x': Reaching()}, tmp_path / 'evil.pth')
    with pytest.raises(KeysegError, match='cut short or no checkpoint|more than weights'):
        _load_checkpoint(str(tmp_path / 'evil.pth'), map_location='cpu')


def test_bases_of_mmseg_resolve(tmp_path):
    config = tmp_path / 'c.py'
    config.write_text("_base_ = 'mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py'\n")
    assert Config.fromfile(str(config)).model.type == 'EncoderDecoder'


@pytest.mark.parametrize('path', ['my keys/k 1.key', 'a,b.key', 'k(1.key', '[k].key', "it's.key", 'schlüssel/ключ.key'])
def test_a_key_file_may_be_called_what_it_likes(path):
    keep_locators_whole()
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    others = ['a.b=1,2', 'model.protection.recipients=file:a, file:b', 'x.key=1,2']
    for quote in ('', '"'):
        given = ['--cfg-options', f'model.protection.key={quote}file:{path}{quote}', *others]
        assert parser.parse_args(given).cfg_options == {
            'model.protection.key': f'file:{path}',
            'a.b': [1, 2],
            'model.protection.recipients': ['file:a', 'file:b'],
            'x.key': [1, 2],
        }
    with pytest.raises(KeyFileError, match='comma'):
        locate(['file:a', 'b.key'])


@pytest.mark.parametrize('runner_type', [Runner, FlexibleRunner])
def test_a_secret_in_a_config_is_refused_before_it_is_logged(runner_type, key, tmp_path):
    cfg = Config({'model': {'protection': {'key': key.needles()['hex'].decode()}}, 'work_dir': str(tmp_path / 'work')})
    with pytest.raises(SecretExposedError, match='burnt'):
        runner_type.from_cfg(cfg)
    assert not (tmp_path / 'work').exists()
