"""The host's own doors: files from anywhere in ``load_from``, configs for tools that import nothing of ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine import fileio
from mmengine.config import Config
from mmengine.fileio import LocalBackend, load
from mmengine.runner import CheckpointLoader
from mmseg.apis import init_model
from mmseg.registry import MODELS

from keyseg_mm.checkpoint.files import write_checkpoint
from keyseg_mm.checkpoint.operations import seal_file
from keyseg_mm.errors import KeyMismatchError, KeysegError
from keyseg_mm.mm import forget, from_bytes
from keyseg_mm.mm.compat import installed_version
from keyseg_mm.seal.sections import Sealing
from tests.support.configs import keyed_cfg, tiny_model_cfg

CONFIGS = Path(__file__).parents[2] / 'configs'
FAST_SCNN = 'fastscnn/fast_scnn_8xb4-160k_cityscapes-512x1024.py'


class Vault(LocalBackend):
    """A file client of one's own."""

    def get(self, filepath):
        return super().get(filepath.removeprefix('vault://'))


@pytest.fixture
def made(tmp_path, key, key_file):
    torch.manual_seed(0)
    weights = MODELS.build(tiny_model_cfg()).state_dict()
    write_checkpoint(tmp_path / 'plain.pth', weights, {'dataset_meta': {'classes': ['a'], 'palette': [[0, 0, 0]]}})
    for name in ('sealed.pth', 'sealed.safetensors'):
        seal_file(tmp_path / 'plain.pth', Sealing(key), tmp_path / name)
    return weights, lambda file=key_file: Config(
        {
            'model': keyed_cfg(tiny_model_cfg(), f'file:{file}', points='checkpoint', runtime='plain'),
            'default_scope': 'mmseg',
        }
    )


SOURCES = {
    'a file': lambda path: str(path),
    'any backend': lambda path: f'keyseg://vault://{path}',
    'the disk': lambda path: f'keyseg://{path}',
    'memory': lambda path: from_bytes(path.read_bytes()),
}


@pytest.mark.parametrize('name', ['sealed.pth', 'sealed.safetensors'])
@pytest.mark.parametrize('source', SOURCES)
def test_a_sealed_file_is_loaded_from_anywhere(source, name, made, tmp_path, other_key_file):
    fileio.register_backend('vault', Vault, force=True, prefixes='vault')
    weights, config = made
    where = SOURCES[source](tmp_path / name)
    model = init_model(config(), where, 'cpu')
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in weights.items())
    with pytest.raises(KeyMismatchError):
        init_model(config(other_key_file), where, 'cpu')


def test_what_is_not_there_is_said_not_to_be(tmp_path):
    name = from_bytes(b'no checkpoint')
    with pytest.raises(KeysegError, match='cut short or no checkpoint'):
        CheckpointLoader.load_checkpoint(name)
    forget(name)
    with pytest.raises(KeysegError, match='no such file in this process'):
        CheckpointLoader.load_checkpoint(name)
    with pytest.raises(KeysegError, match='could not be fetched: FileNotFoundError'):
        CheckpointLoader.load_checkpoint(f'keyseg://{tmp_path}/none.pth')


def read_by_the_host(path, text):
    """What another process, which imports mmengine alone, says of a config."""
    path.write_text(text)
    code = f'from mmengine.config import Config; print(Config.fromfile({str(path)!r}).model.type)'
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=path.parent)


def test_a_config_that_asks_for_its_bases_is_read_by_the_host_alone(tmp_path):
    done = read_by_the_host(tmp_path / 'asks.py', f"_base_ = __import__('keyseg_mm').bases('mmseg::{FAST_SCNN}')\n")
    assert done.stdout.splitlines()[-1:] == ['EncoderDecoder'], done.stderr
    plain = read_by_the_host(tmp_path / 'plain.py', f"_base_ = 'mmseg::{FAST_SCNN}'\n")
    assert bool(plain.returncode) == installed_version('mmsegmentation', 'onedl-mmsegmentation')[0].startswith('onedl')


def test_all_configs_are_listed_by_their_names():
    listed = [row['Config'] for row in load(str(CONFIGS / 'metafile.yml'))['Models']]
    there = [path for path in CONFIGS.glob('*/*.py') if not path.parent.name.startswith('_')]
    assert listed == sorted(f'configs/{path.parent.name}/{path.name}' for path in there) != []
