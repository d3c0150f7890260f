"""``keyseg train`` and ``test`` on plain configs, and what ``keyseg lock`` says and writes for them."""

from __future__ import annotations

import re
import shlex

import pytest
import torch
from mmengine.config import Config
from mmengine.utils import ManagerMixin
from mmseg.registry import MODELS

from keyseg_mm import SecretKey, write_key_file
from keyseg_mm.checkpoint.files import stamps_in
from keyseg_mm.mm.keyed_config import opened_config, options_for
from tests.support.cli import keyseg
from tests.support.configs import keyed_cfg, runner_cfg, tiny_model_cfg


@pytest.fixture(scope='module')
def made(tmp_path_factory, tiny_cityscapes):
    """A plain config and checkpoint, the same config protected, keys, and what is locked of the checkpoint."""
    folder = tmp_path_factory.mktemp('made')
    for name, start in (('my', 0), ('other', 1)):
        write_key_file(folder / f'{name}.key', SecretKey(bytes(range(start, start + 32))))
    for name, model in (('plain', tiny_model_cfg()), ('keyed', keyed_cfg(tiny_model_cfg(), 'file:other.key'))):
        runner_cfg(tiny_cityscapes, f'work_dirs/{name}', model, iterations=1).dump(str(folder / f'{name}.py'))
    torch.manual_seed(0)
    torch.save(MODELS.build(tiny_model_cfg()).state_dict(), folder / 'plain.pth')
    return folder


@pytest.fixture
def said(made, monkeypatch, capsys):
    """Runs a command in the folder; gives its status and what it says."""
    monkeypatch.chdir(made)
    classes = [ManagerMixin]
    for cls in classes:
        classes += cls.__subclasses__()

    def run(*words):
        for cls in classes[1:]:  # else two runs within a second share a name, and what is kept by it
            monkeypatch.setattr(cls, '_instance_dict', {})
        status = keyseg(*words)
        return status, ''.join(capsys.readouterr())

    return run


def score(text):
    return re.search(r'mIoU: ([\d.]+)', text)[1]


def test_what_lock_advises_works_as_pasted(said, made):
    plain = said('test', 'plain.py', 'plain.pth')[1]
    lock = ('lock', 'plain.pth', '--key', 'file:my.key')
    for more in ((), ('--config', 'keyed.py'), ('--config', 'plain.py', '--write-config', 'locked.py')):
        status, text = said(*lock, '--out', 'locked.pth', '--overwrite', *more)
        assert status == 0, text
        (line,) = re.findall(r'^    keyseg (test .*)$', text, flags=re.MULTILINE)
        assert ('CONFIG' in line) == (not more)
        status, text = said(*shlex.split(line.replace('CONFIG', 'plain.py')))
        assert status == 0 and score(text) == score(plain), text
    assert 'keyseg_mm.Keyed' in (made / 'locked.py').read_text()
    assert said(*lock, '--out', 'new.pth', '--config', 'plain.py', '--write-config', 'locked.py')[0] == 1
    assert not (made / 'new.pth').exists(), 'nothing is written where the config would be lost'


def test_what_cannot_be_written_is_explained(said):
    lock = ('lock', 'plain.pth', '--out', 'no.pth', '--write-config', 'no.py')
    assert '--write-config goes with --config' in said(*lock, '--key', 'file:my.key')[1]
    assert 'a config names its key' in said(*lock, '--key', '-', '--config', 'plain.py')[1]


def test_a_plain_config_trains_protected(said, made):
    status, text = said('train', 'plain.py', '--key', 'file:my.key', '--points', 'linear', '--work-dir', 'run')
    assert status == 0, text
    (stamp,) = stamps_in(made / 'run' / 'iter_1.pth').values()
    assert len(stamp.maps) > 5 and stamp.seal is not None
    status, text = said('test', 'plain.py', 'run/iter_1.pth', '--key', 'file:other.key')
    assert status == 1 and 'give its own key' in text


def test_what_goes_wrong_is_explained(said):
    option = 'model.protection.key=file:my.key'
    status, text = said('test', 'plain.py', 'plain.pth', '--cfg-options', option)
    assert status == 1 and 'plain.py is a plain config' in text and '--key LOC' in text
    assert 'no such file' in said('test', 'plain.py', 'nonesuch.pth')[1]
    assert 'no such file' in said('train', 'nonesuch.py')[1]
    assert 'go with --key' in said('train', 'plain.py', '--points', 'linear')[1]
    assert 'standard input' in said('train', 'plain.py', '--key', '-')[1]
    assert 'burnt' in said('train', 'plain.py', '--key', '00' * 32)[1]


LAZY = """
from mmseg.models import EncoderDecoder, FCNHead, ResNet

model = dict(
    type=EncoderDecoder, backbone=dict(type=ResNet, depth=18, base_channels=8),
    decode_head=dict(type=FCNHead, in_channels=64, channels=8, in_index=3, num_classes=4), test_cfg=dict(mode='whole'))
"""


def test_a_config_in_python_is_wrapped_and_written(tmp_path):
    write_key_file(tmp_path / 'my.key', SecretKey(bytes(range(32))))
    (tmp_path / 'lazy.py').write_text(LAZY)
    cfg = Config.fromfile(str(tmp_path / 'lazy.py'))
    (tmp_path / 'written.py').write_text(opened_config(cfg, f'file:{tmp_path}/my.key', 'x.pth'))
    cfg.merge_from_dict(options_for(cfg, f'file:{tmp_path}/my.key', ['stages']))
    for found in (cfg, Config.fromfile(str(tmp_path / 'written.py'))):
        assert type(MODELS.build(found.model)).__name__ == 'EncoderDecoder' and found.model.type == 'keyseg_mm.Keyed'


def test_the_key_goes_where_the_config_takes_one():
    plain = Config(dict(model=tiny_model_cfg()))
    assert options_for(plain, 'none')['model.protection'] == {'key': 'none'}
    assert options_for(plain, 'none', opens=True)['model.protection'] == {'key': 'none', 'runtime': 'plain'}
    images = [dict(type='LoadImageFromFile'), dict(type='keyseg_mm.EncryptImage')]
    loader = dict(dataset=dict(pipeline=images))
    assert options_for(Config(dict(model=tiny_model_cfg(), test_dataloader=loader)), 'file:a') == {
        'test_dataloader.dataset.pipeline.1.key': 'file:a'
    }
    keyed = Config(dict(model=tiny_model_cfg()))
    keyed.model.backbone = dict(type='keyseg_mm.Keyed', of='ResNet', protection=dict(key='none'))
    assert options_for(keyed, 'file:a', runtime='plain') == {
        'model.backbone.protection.key': 'file:a',
        'model.backbone.protection.runtime': 'plain',
    }
