"""The mends for the two mmseg stacks."""

from __future__ import annotations

import argparse

import pytest
from mmengine.config import Config, DictAction
from mmengine.runner import FlexibleRunner, Runner

from keyseg_mm.errors import KeyFileError, SecretExposedError
from keyseg_mm.keys.locator import locate
from keyseg_mm.mm.compat import keep_locators_whole


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
    cfg = Config({'model': {'protection': {'key': key.material.hex()}}, 'work_dir': str(tmp_path / 'work')})
    with pytest.raises(SecretExposedError, match='burnt'):
        runner_type.from_cfg(cfg)
    assert not (tmp_path / 'work').exists()
