"""The configs that travel with the package, and what their README says."""

from __future__ import annotations

import argparse
import copy
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from textwrap import dedent

import mmseg
import pytest
import torch
from mmengine.config import Config, DictAction
from mmseg.registry import MODELS, TRANSFORMS

from keyseg_mm import lock
from keyseg_mm.mm.config import build_plain_model
from keyseg_mm.mm.keyed_config import check_keyed_options
from keyseg_mm.runtime.attach import protection_of, protections

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'configs'
STOCK = Path(mmseg.__file__).parent / '.mim' / 'configs'
FILES = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.glob('*/keyed_*.py'))
IMAGE_FILES = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.glob('*/images_*.py'))
ENCRYPT = dict(type='keyseg_mm.EncryptImage', method='SHF', block=8, key='env:KEYSEG_KEY')
PATCHES = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.glob('*/patches_*.py'))
LINEAR = dict(key='env:KEYSEG_KEY', points='linear', transform='SignedChannelPermutation')
GUARD = [dict(type='keyseg_mm.GuardHook')]
FAMILIES = (
    *('fcn', 'pspnet', 'deeplabv3', 'deeplabv3plus', 'upernet', 'swin', 'convnext', 'segformer', 'setr', 'segmenter'),
    *('bisenetv2', 'fastscnn', 'stdc', 'ocrnet', 'mask2former', 'knet'),
)

FAST_SCNN = 'fastscnn/fast_scnn_8xb4-160k_cityscapes-512x1024.py'


@cache
def load(path: Path) -> Config:
    return Config.fromfile(str(path), import_custom_modules=False)  # some want packages that are not installed


def without_scope(value):
    """Without the registry scope that mmengine notes in what comes from a base like ``mmseg::``."""
    if isinstance(value, dict):
        assert value.get('_scope_', 'mmseg') == 'mmseg'
        return {name: without_scope(item) for name, item in value.items() if name != '_scope_'}
    return type(value)(map(without_scope, value)) if isinstance(value, (list, tuple)) else value


def plain_of(cfg: Config) -> tuple[dict, dict]:
    """A protected config as a plain one, and what was taken off."""
    plain = cfg.to_dict()
    off = dict(type=plain['model'].pop('type'), protection=plain['model'].pop('protection'))
    plain['model']['type'] = plain['model'].pop('of')
    off['hooks'] = plain.pop('custom_hooks')
    assert plain.pop('protection') == off['protection']
    return plain, off


def write(path: Path, text: str) -> Config:
    path.write_text(dedent(text))
    return Config.fromfile(str(path))


def readme_block(after: str) -> str:
    """The first Python example of the README behind some words."""
    return (CONFIGS / 'README.md').read_text().partition(after)[2].partition('```python\n')[2].partition('```')[0]


def build(cfg: Config, *options: str) -> torch.nn.Module:
    """The model, with options as of a command line, and without downloads."""
    cfg = copy.deepcopy(cfg)
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='*', action=DictAction, default={})
    cfg.merge_from_dict(parser.parse_args(['--cfg-options', *options]).cfg_options)
    cfg.model.pop('pretrained', None)
    model = MODELS.build(cfg.model)
    assert model.eval()(torch.rand(1, 3, 64, 64), mode='tensor').shape[1] == 19
    for protection in protections(model):
        assert all(encryptor.calls for encryptor in protection.encryptors if 'test' in encryptor.site.runs)
    return model


@pytest.mark.parametrize('file', FILES)
def test_config_is_the_stock_one_but_for_the_protection(file):
    stock = load(STOCK / file.replace('keyed_', '')).to_dict()
    cfg = load(CONFIGS / file)
    assert without_scope(cfg.to_dict()) != stock
    plain, off = plain_of(cfg)
    assert without_scope(plain) == stock
    assert off == dict(type='keyseg_mm.Keyed', protection=LINEAR, hooks=GUARD)
    check_keyed_options(cfg, file)
    assert len((CONFIGS / file).read_text().splitlines()) <= 3


@pytest.mark.parametrize('file', FILES)
def test_config_survives_a_dump(file, tmp_path):
    cfg = load(CONFIGS / file)
    cfg.dump(str(tmp_path / 'dumped.py'))
    again = load(tmp_path / 'dumped.py')
    assert again.to_dict() == cfg.to_dict()
    assert '_base_ =' not in (tmp_path / 'dumped.py').read_text()


@pytest.mark.parametrize('family', FAMILIES)
def test_both_data_sets_are_served_where_mmseg_serves_them(family):
    for data in ('cityscapes-', 'ade20k-'):
        ships = any(data in path.name for path in (STOCK / family).glob('*.py'))
        assert ships == any(data in file for file in FILES if file.startswith(f'{family}/'))


@pytest.mark.parametrize('file', PATCHES)
def test_patches_config_is_the_stock_one_but_for_the_test_pipeline(file):
    """Both mmseg test loops get the encrypted pipeline: the stock transforms, and two more behind the resizing."""
    stock, cfg = load(STOCK / file.replace('patches_', '')).to_dict(), without_scope(load(CONFIGS / file).to_dict())
    assert cfg.pop('custom_hooks') == [dict(type='keyseg_mm.GuardHook')]
    pipeline, before = cfg.pop('patches_pipeline'), stock['test_pipeline']
    assert pipeline[:2] + pipeline[4:] == before
    assert pipeline[2] == dict(type='ResizeToMultiple', size_divisor=16)
    assert pipeline[3] == dict(type='keyseg_mm.EncryptImage', method='PATCH', key='env:KEYSEG_KEY')
    for loader in ('val_dataloader', 'test_dataloader'):
        assert cfg[loader]['dataset'].pop('pipeline') == pipeline
        assert stock[loader]['dataset'].pop('pipeline') == before
    windows = cfg['model']['test_cfg'].pop('stride')
    assert all(side % 16 == 0 for side in (*windows, *cfg['model']['test_cfg']['crop_size']))
    assert max(abs(a - b) for a, b in zip(windows, stock['model']['test_cfg'].pop('stride'))) < 16
    assert cfg == stock
    assert len((CONFIGS / file).read_text().splitlines()) <= 3


def test_every_family_has_configs_and_the_readme_lists_them_all():
    assert {file.partition('/')[0] for file in FILES} == set(FAMILIES)
    readme = (CONFIGS / 'README.md').read_text()
    assert [file for file in FILES + PATCHES if f']({file})' not in readme] == []
    bases = [path.relative_to(CONFIGS).as_posix() for path in CONFIGS.glob('_base_/protection/*.py')]
    bases += [path.relative_to(CONFIGS).as_posix() for path in CONFIGS.glob('_base_/images/*.py')]
    assert len(bases) == 11
    assert [file for file in [*bases, *IMAGE_FILES] if f']({file})' not in readme] == []


def without_encryption(value) -> tuple[object, int]:
    """A config less its encryptions of images, and how many there were; a step of test-time augmentation is a list."""
    if value in (ENCRYPT, [ENCRYPT]):
        return None, 1
    if isinstance(value, dict):
        parts = {name: without_encryption(item) for name, item in value.items()}
        return {name: part for name, (part, _) in parts.items()}, sum(n for _, n in parts.values())
    if isinstance(value, (list, tuple)):
        parts = [without_encryption(item) for item in value]
        kept = [part for item, (part, _) in zip(value, parts) if item not in (ENCRYPT, [ENCRYPT])]
        return type(value)(kept), sum(n for _, n in parts)
    return value, 0


@pytest.mark.parametrize('file', IMAGE_FILES)
def test_image_config_is_the_stock_one_but_for_the_encryption(file):
    cfg = load(CONFIGS / file)
    changed = without_scope(cfg.to_dict())
    assert changed.pop('image_encryption') == ENCRYPT
    assert changed.pop('custom_hooks') == [dict(type='keyseg_mm.GuardHook')]
    plain, count = without_encryption(changed)
    assert plain == load(STOCK / file.replace('images_', '')).to_dict()
    assert count == 6  # two pipelines and three loaders of them, and test-time augmentation
    for name in ('train', 'val', 'test'):
        steps = [step['type'] for step in cfg[f'{name}_dataloader'].dataset.pipeline]
        assert steps[-2:] == ['keyseg_mm.EncryptImage', 'PackSegInputs']


def test_image_configs_serve_both_data_sets():
    assert {data for file in IMAGE_FILES for data in ('cityscapes-', 'ade20k-') if data in file} == {
        'cityscapes-',
        'ade20k-',
    }


def test_image_options_of_the_readme(key_file, tmp_path):
    """The example of a config of one's own, and the way to name a key on the command line."""
    write(tmp_path / 'my_config.py', f"_base_ = 'mmseg::{FAST_SCNN}'")
    text = readme_block('Encrypt images').replace('keys/my.key', str(key_file))
    cfg = write(tmp_path / 'mine.py', text)
    steps = [cfg[f'{name}_dataloader'].dataset.pipeline[-2] for name in ('train', 'val', 'test')]
    assert [step.key for step in steps] == [f'file:{key_file}'] * 3
    cfg.merge_from_dict({'test_dataloader.dataset.pipeline.3.key': 'none'})
    assert cfg.test_dataloader.dataset.pipeline[3].key == 'none'
    assert cfg.val_dataloader.dataset.pipeline[3].key != 'none'
    assert repr(TRANSFORMS.build(dict(cfg.val_dataloader.dataset.pipeline[-2]))).startswith('EncryptImage(')


@pytest.mark.parametrize(
    'base, transform, points',
    [
        ('stages', dict(type='ChannelPermutation'), ['out:backbone:0', 'out:backbone:1', 'out:backbone:2']),
        ('signed', dict(type='SignedChannelPermutation'), ['out:backbone:0', 'out:backbone:1', 'out:backbone:2']),
        ('rotation', dict(type='ChannelRotation', block=8), ['out:backbone:0', 'out:backbone:1', 'out:backbone:2']),
        ('shuffle', dict(type='BlockShuffle', block=2), ['out:backbone:0', 'out:backbone:1', 'out:backbone:2']),
        ('negative', dict(type='NegativePositive', block=2), ['out:backbone:0', 'out:backbone:1', 'out:backbone:2']),
        ('linear', dict(type='SignedChannelPermutation'), None),
    ],
)
def test_protection_bases(base, transform, points, tmp_path, key_file):
    cfg = write(
        tmp_path / 'protected.py',
        f"""
        _base_ = ['mmseg::{FAST_SCNN}', '{CONFIGS}/_base_/protection/{base}.py']
        model = dict(type='keyseg_mm.Keyed', of='EncoderDecoder', protection={{{{_base_.protection}}}})
        """,
    )
    assert cfg.custom_hooks == GUARD
    plan = protection_of(build(cfg, f'model.protection.key=file:{key_file}')).stamp
    assert [entry.transform for entry in plan.entries] == [transform] * len(plan.entries)
    found = [entry.point for entry in plan.entries]
    assert found == points if points else len(found) > 20 and all(point.startswith('in:') for point in found)


@pytest.mark.parametrize('base, encryptors', [('locked', True), ('unlocked', False)])
def test_bases_for_locked_checkpoints(base, encryptors, tmp_path, key, key_file):
    cfg = write(
        tmp_path / 'protected.py',
        f"""
        _base_ = ['mmseg::{FAST_SCNN}', '{CONFIGS}/_base_/protection/{base}.py']
        model = dict(type='keyseg_mm.Keyed', of='EncoderDecoder', protection={{{{_base_.protection}}}})
        """,
    )
    assert cfg.custom_hooks == GUARD
    plain = build_plain_model(cfg)
    torch.manual_seed(0)
    for weight in plain.parameters():  # untrained, it says nearly the same whatever its weights are
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=(len(weight) / weight.numel()) ** 0.5)
    cfg.model.protection.key = f'file:{key_file}'
    model = MODELS.build(cfg.model)
    model.load_state_dict(lock(plain.state_dict(), plain, key))
    assert bool(protection_of(model).encryptors) == encryptors
    same = torch.equal(model.decode_head.conv_seg.weight, plain.decode_head.conv_seg.weight)
    assert same != encryptors


def test_options_of_the_readme(key_file):
    file = CONFIGS / 'fastscnn' / 'keyed_fast_scnn_8xb4-160k_cityscapes-512x1024.py'
    options = (
        f'model.protection.key=file:{key_file}',
        'model.protection.points=[stages,in:decode_head.conv_seg]',
        'model.protection.transform=SignedChannelPermutation',
    )
    model = build(Config.fromfile(str(file)), *options)
    entries = protection_of(model).stamp.entries
    assert [entry.point for entry in entries] == [*(f'out:backbone:{i}' for i in range(3)), 'in:decode_head.conv_seg']
    assert {entry.transform['type'] for entry in entries} == {'SignedChannelPermutation'}


def test_new_style_config_of_the_readme(tmp_path, key_file):
    write(
        tmp_path / 'my_config.py',
        """
        from mmseg.models import EncoderDecoder, FCNHead, FastSCNN
        head = dict(type=FCNHead, in_channels=128, in_index=-1, channels=8, num_classes=19)
        model = dict(type=EncoderDecoder, backbone=dict(type=FastSCNN), decode_head=head, test_cfg=dict(mode='whole'))
        """,
    )
    cfg = write(tmp_path / 'protected.py', readme_block('new-style').replace('keys/my.key', str(key_file)))
    model = build(cfg)
    assert type(model).__name__ == 'EncoderDecoder'
    assert len(protection_of(model).encryptors) == 32
    assert cfg.custom_hooks[0].type.__name__ == 'GuardHook'


def test_text_config_of_the_readme(tmp_path, key_file):
    write(tmp_path / 'my_config.py', f"_base_ = 'mmseg::{FAST_SCNN}'")
    cfg = write(tmp_path / 'protected.py', readme_block('A text config').replace('keys/my.key', str(key_file)))
    assert len(protection_of(build(cfg)).encryptors) == 35
    assert cfg.custom_hooks == GUARD


@pytest.mark.parametrize('part, where, points', [('Around one part', 'backbone', 55), ('As a neck', 'neck', 4)])
def test_parts_of_the_readme(part, where, points, tmp_path, key_file):
    text = readme_block(part).replace('keys/my.key', str(key_file))
    stock = "_base_ = 'mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py'\n"
    model = build(write(tmp_path / 'protected.py', stock + text))
    part_of_model = getattr(model, where)
    assert protections(model) == [protection_of(part_of_model)]
    assert len(protection_of(part_of_model).encryptors) == points
    assert type(part_of_model).__name__ == dict(backbone='ResNetV1c', neck='KeyedNeck')[where]


def test_configs_travel_in_the_wheel(tmp_path):
    """Built, unpacked, and resolved as ``keyseg_mm::`` by another process that sees the unpacked wheel first."""
    source, site = tmp_path / 'source', tmp_path / 'site'
    source.mkdir()
    for name in ('keyseg_mm', 'configs', 'tools'):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('README.md', 'setup.py', 'pyproject.toml'):
        shutil.copy(ROOT / name, source / name)
    wheel = [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', str(tmp_path), '.']
    subprocess.run(wheel, cwd=source, check=True, capture_output=True)
    shutil.unpack_archive(next(tmp_path.glob('*.whl')), site, 'zip')
    (tmp_path / 'mine.py').write_text("_base_ = 'keyseg_mm::fastscnn/keyed_fast_scnn_8xb4-160k_cityscapes-512x1024.py'")
    code = (
        'import keyseg_mm.mm; from mmengine.config import Config; print(keyseg_mm.__file__); '
        "print(Config.fromfile('mine.py').model.of); from mmengine.hub import get_config; "
        "print(get_config('keyseg_mm::fastscnn/keyed_fast_scnn_8xb4-160k_cityscapes-512x1024.py').model.type)"
    )
    env = {**os.environ, 'PYTHONPATH': str(site)}
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(site / 'keyseg_mm' / '__init__.py'), 'EncoderDecoder', 'keyseg_mm.Keyed']
    assert len(list((site / 'keyseg_mm' / '.mim' / 'configs').glob('*/keyed_*.py'))) == len(FILES)
