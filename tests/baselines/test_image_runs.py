"""Encrypted images and block-wise transforms through the host's own tools, by config alone, on both data sets."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import ConcatDataset
from mmengine.runner import Runner
from mmseg.apis import inference_model, init_model
from mmseg.registry import MODELS

from keyseg_mm import SecretKey, find_leaks, read_key_file, stamps_of, unlock, write_key_file
from keyseg_mm.bind import stamp_tensor
from keyseg_mm.checkpoint.files import read_checkpoint
from keyseg_mm.cli import main
from keyseg_mm.entries import ImageEntry
from keyseg_mm.envelope import SEALED, SIGNED
from keyseg_mm.errors import (
    IntegrityError,
    KeyFileError,
    KeyMismatchError,
    LeakError,
    NotFiredError,
    PlainCheckpointError,
    PlanMismatchError,
    StampError,
)
from keyseg_mm.mm import GuardHook
from keyseg_mm.mm.pipeline import EncryptImage, chains_of
from keyseg_mm.seal.sections import trusted_stamp
from tests.support.cli import keyseg
from tests.support.configs import keyed_cfg, runner_cfg, tiny_model_cfg

LAYOUTS = ['cityscapes', 'ade20k']
ONE = pytest.mark.parametrize('data', LAYOUTS[:1], indirect=True)
TEST = 'test_dataloader.dataset.pipeline.2'


@pytest.fixture(scope='module', params=LAYOUTS)
def data(request):
    """A layout, its tiny data, and its number of classes."""
    root = request.getfixturevalue(f'tiny_{request.param}')
    return request.param, root, {'cityscapes': 19, 'ade20k': 150}[request.param]


def image_cfg(data, work_dir, locator, method='SHF', block=8, **changes) -> Config:
    """A plain model whose pipelines encrypt, right before PackSegInputs, as the configs do it."""
    layout, root, classes = data
    cfg = runner_cfg(root, work_dir, tiny_model_cfg(classes), layout=layout)
    step = dict(type='keyseg_mm.EncryptImage', method=method, block=block, key=str(locator))
    for name in ('train', 'val', 'test'):
        cfg[f'{name}_dataloader'].dataset.pipeline.insert(-1, dict(step))
    cfg.test_pipeline = cfg.test_dataloader.dataset.pipeline
    cfg.tta_pipeline[1].transforms.insert(-1, [dict(step)])
    cfg.custom_hooks = [dict(type='keyseg_mm.GuardHook')]
    cfg.merge_from_dict(changes)
    return cfg


def run(cfg, what='train'):
    runner = Runner.from_cfg(cfg)
    return runner, getattr(runner, what)()


def predictions(config, checkpoint, tmp_path, *options):
    """``keyseg test``: its exit status, and the predicted label maps."""
    import cv2

    out = tmp_path / f'out{len(list(tmp_path.iterdir()))}'
    options = ['--work-dir', str(tmp_path / 'work'), '--out', str(out), '--cfg-options', *options]
    assert main(['test', str(config), str(checkpoint), *options]) == 0
    return np.stack([cv2.imread(str(path), -1) for path in sorted(out.glob('*.png'))])


@pytest.fixture(scope='module')
def trained(tmp_path_factory, data):
    """A model that ``keyseg train`` made of encrypted images."""
    folder = tmp_path_factory.mktemp('images')
    for name, material in (('right', bytes(range(32))), ('other', bytes(range(1, 33)))):
        write_key_file(folder / f'{name}.key', SecretKey(material))
    cfg = image_cfg(data, folder / 'work', f'file:{folder}/right.key')
    cfg.dump(str(folder / 'config.py'))
    assert main(['train', str(folder / 'config.py'), '--work-dir', str(folder / 'work')]) == 0
    return folder, folder / 'config.py', folder / 'work' / 'iter_4.pth'


def test_by_config_alone_through_the_hosts_tools(trained, tmp_path):
    """The right key, none and a wrong one predict differently; another user's key is an error."""
    folder, config, checkpoint = trained
    right = predictions(config, checkpoint, tmp_path, f'{TEST}.key=file:{folder}/right.key')
    assert np.array_equal(right, predictions(config, checkpoint, tmp_path, f'{TEST}.block=8'))
    none = predictions(config, checkpoint, tmp_path, f'{TEST}.key=none')
    wrong = predictions(config, checkpoint, tmp_path, f'{TEST}.key=random:1')
    for other in (none, wrong):  # alike: a sealed file without its key is noise
        assert (right != other).mean() > 0.01
    for options, error in (
        (f'{TEST}.key=file:{folder}/other.key', KeyMismatchError),
        (f'{TEST}.method=NP', PlanMismatchError),
        (f'{TEST}.block=4', PlanMismatchError),
        (f'{TEST}.salt=' + '11' * 16, PlanMismatchError),
        (f'{TEST}.key=file:{folder}/no.key', KeyFileError),
    ):
        cfg = Config.fromfile(str(config))
        cfg.load_from = str(checkpoint)
        name, value = options.split('=')
        cfg.merge_from_dict({name: value if 'block' not in name else 4})
        with pytest.raises(error):
            run(cfg, 'test')


def test_the_checkpoint_says_it_and_nothing_secret_is_written(trained):
    folder, _, checkpoint = trained
    key = read_key_file(folder / 'right.key')
    tensors = read_checkpoint(checkpoint)['state_dict']
    (stamp,) = stamps_of(tensors).values()
    assert (stamp.key_id, stamp.entries) == (key.id, (ImageEntry('SHF', 8, ''),))
    assert stamp.name in tensors and key.id in stamp.name
    assert trusted_stamp(key, tensors) == stamp and stamp.seal.mode == SIGNED
    assert find_leaks(folder / 'work', key, [stamp]) == []


@ONE
def test_a_checkpoint_that_was_altered_is_refused(trained, tmp_path):
    _, config, checkpoint = trained
    tensors = read_checkpoint(checkpoint)['state_dict']
    stamp = stamps_of(tensors)['']
    weaker = replace(stamp, entries=(ImageEntry('SHF', 4),))
    bare = replace(stamp, recipients=(), commitment='', seal=None)
    weight = 'decode_head.conv_seg.bias'
    for changes, error in (
        ({weight: (tensors[weight].view(torch.int32) ^ 1).view(torch.float32)}, IntegrityError),
        ({stamp.name: stamp_tensor(replace(stamp, salt=bytes(16)))}, IntegrityError),
        ({stamp.name: None, bare.name: stamp_tensor(bare)}, IntegrityError),
        ({stamp.name: stamp_tensor(weaker)}, IntegrityError),
        ({stamp.name: torch.zeros(9, dtype=torch.uint8)}, StampError),
        ({}, None),
    ):
        altered = {name: value for name, value in {**tensors, **changes}.items() if value is not None}
        torch.save({'meta': {}, 'state_dict': altered}, tmp_path / 'altered.pth')
        cfg = Config.fromfile(str(config))
        cfg.load_from = str(tmp_path / 'altered.pth')
        with pytest.raises(error) if error else nullcontext():
            run(cfg, 'test')


@ONE
def test_what_the_commands_say_of_it(trained, tmp_path, capsys):
    folder, config, checkpoint = trained
    key = ['--key', f'file:{folder}/right.key']
    assert keyseg('show', checkpoint) == 0
    shown = capsys.readouterr().out
    key_id = read_key_file(folder / 'right.key').id
    assert 'images  encrypted in training, and to be encrypted: SHF, block 8' in shown and f'key id  {key_id}' in shown
    assert keyseg('scan', folder / 'work', *key) == 0
    assert 'secrets of 1 points, tensors and images' in capsys.readouterr().out
    for command in (
        ['unlock', checkpoint, *key],
        ['rekey', checkpoint, *key, '--new-key', f'file:{folder}/other.key'],
        ['lock', checkpoint, '--config', config, *key],
    ):
        assert keyseg(*command, '--out', tmp_path / 'out.pth') == 1
        assert 'encrypted images' in capsys.readouterr().err and not (tmp_path / 'out.pth').exists()
    command = ['unlock', checkpoint, '--key', f'file:{folder}/other.key', '--out', tmp_path / 'out.pth']
    assert keyseg(*command) == 1
    assert f'protected with key {key_id}' in capsys.readouterr().err


@ONE
def test_training_and_inference_need_the_same_images(trained, data):
    """init_model's and inference_model's way: the config's pipeline encrypts, and a picture of a file is enough."""
    folder, config, checkpoint = trained
    picture = str(sorted(data[1].rglob('*0.jpg' if data[0] == 'ade20k' else '*000000_leftImg8bit.png'))[0])
    logits = []
    for locator in (f'file:{folder}/right.key', 'none'):
        model = init_model(str(config), str(checkpoint), 'cpu', {'test_pipeline.2.key': locator})
        logits.append(inference_model(model, picture).seg_logits.data)
    assert not torch.allclose(*logits, atol=1e-2)
    model = init_model(str(config), str(checkpoint), 'cpu')
    assert torch.equal(inference_model(model, picture).seg_logits.data, logits[0])


def first_logits(runner):
    """What a model makes of the first picture that a runner's test loader hands it, of its first augmentation."""
    batch = next(iter(runner.test_dataloader))
    model = runner.model
    if hasattr(model, 'module'):
        model, batch = model.module, {name: values[0] for name, values in batch.items()}
    with torch.no_grad():
        return model.eval().test_step(batch)[0].seg_logits.data


@ONE
def test_test_time_augmentation(trained):
    folder, config, checkpoint = trained
    logits = []
    for key in (f'file:{folder}/right.key', 'none'):
        cfg = Config.fromfile(str(config))
        cfg.load_from = str(checkpoint)
        cfg.tta_pipeline[1].transforms[-2][0].key = key
        cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
        cfg.tta_model.module = cfg.model
        cfg.model = cfg.tta_model
        runner, metrics = run(cfg, 'test')
        assert 'mIoU' in metrics
        logits.append(first_logits(runner))
    assert not torch.allclose(*logits, atol=1e-2)


@ONE
def test_resume_and_plain_checkpoints(trained, data, tmp_path):
    folder, config, checkpoint = trained
    cfg = Config.fromfile(str(config))
    cfg.load_from, cfg.resume, cfg.work_dir = str(checkpoint), True, str(tmp_path)
    runner, _ = run(cfg.copy())
    assert runner.iter == 4
    for loader in ('train', 'val'):
        cfg.merge_from_dict({f'{loader}_dataloader.dataset.pipeline.{3 if loader == "train" else 2}.key': 'random:2'})
    cfg.resume = False
    run(cfg)  # wrong on purpose: warned of, no error
    content = read_checkpoint(checkpoint)
    stamp = stamps_of(content['state_dict'])['']
    plain = {name: value for name, value in content['state_dict'].items() if name != stamp.name}
    torch.save({'meta': {}, 'state_dict': plain}, tmp_path / 'plain.pth')
    fresh = image_cfg(data, tmp_path, f'file:{folder}/right.key', load_from=str(tmp_path / 'plain.pth'))
    with pytest.raises(PlainCheckpointError, match='allow_plain'):
        run(fresh)
    fresh.custom_hooks[0].allow_plain = True
    run(fresh)
    assert stamps_of(read_checkpoint(tmp_path / 'iter_4.pth')['state_dict'])[''].images == stamp.images


@ONE
@pytest.mark.parametrize('method', ['NP', 'FFX'])
def test_the_other_methods_train_too(method, data, tmp_path, key_file):
    cfg = image_cfg(data, tmp_path, f'file:{key_file}', method, 4)
    run(cfg)
    cfg.load_from = str(tmp_path / 'iter_4.pth')
    right = first_logits(run(cfg.copy(), 'test')[0])
    cfg.merge_from_dict({f'{TEST}.key': 'none'})
    assert not torch.allclose(first_logits(run(cfg, 'test')[0]), right, atol=1e-2)


@ONE
def test_together_with_encrypted_feature_maps(data, tmp_path, key_file, other_key_file, key):
    """Both protections in one model, by one key: one stamp tells of both, and both are checked."""
    plain = image_cfg(data, tmp_path, f'file:{key_file}')
    cfg = plain.copy()
    cfg.model = keyed_cfg(cfg.model, f'file:{key_file}', points='linear')
    run(cfg.copy())
    cfg.load_from = str(tmp_path / 'iter_4.pth')
    tensors = read_checkpoint(cfg.load_from)['state_dict']
    (stamp,) = stamps_of(tensors).values()
    assert len(stamp.maps) > 20 and stamp.images == (ImageEntry('SHF', 8),)
    assert trusted_stamp(key, tensors) == stamp and stamp.seal.mode == SEALED
    runner, right = run(cfg.copy(), 'test')
    logits = first_logits(runner)
    for changes in ({f'{TEST}.key': 'none'}, {'model.protection.key': 'none'}):
        less = cfg.copy()
        less.merge_from_dict(changes)
        assert not torch.allclose(first_logits(run(less, 'test')[0]), logits, atol=1e-2)
    for name in (f'{TEST}.key', 'model.protection.key'):
        wrong = cfg.copy()
        wrong.merge_from_dict({name: f'file:{other_key_file}'})
        with pytest.raises(KeyMismatchError):
            run(wrong, 'test')
    wrong = cfg.copy()
    wrong.merge_from_dict({f'{TEST}.block': 4})
    with pytest.raises(PlanMismatchError, match='encrypted in different ways'):
        run(wrong, 'test')
    cfg.resume = True
    run(cfg.copy())
    assert stamps_of(read_checkpoint(cfg.load_from)['state_dict'])[''].entries == stamp.entries

    model = MODELS.build(plain.model)
    opened = unlock(tensors, key, model)
    assert stamps_of(opened)[''].entries == stamp.images
    assert not torch.equal(opened['decode_head.convs.0.conv.weight'], tensors['decode_head.convs.0.conv.weight'])
    torch.save({'meta': {}, 'state_dict': opened}, tmp_path / 'opened.pth')
    plain.load_from = str(tmp_path / 'opened.pth')
    runner, metrics = run(plain, 'test')
    assert torch.allclose(first_logits(runner), logits, rtol=1e-3, atol=1e-4) and metrics == right


@ONE
def test_a_model_and_its_images_have_one_key(data, tmp_path, key_file, other_key_file, key, other_key):
    cfg = image_cfg(data, tmp_path, f'file:{key_file}')
    cfg.model = keyed_cfg(cfg.model, f'file:{other_key_file}')
    with pytest.raises(KeyMismatchError, match=f'{key.id}, and the model with {other_key.id}: take one key for both'):
        run(cfg)
    assert not list(tmp_path.rglob('*.pth'))


@ONE
def test_pipelines_that_do_not_belong_together_are_errors(data, tmp_path, key_file, other_key_file):
    cfg = image_cfg(data, tmp_path, f'file:{key_file}')
    cfg.val_dataloader.dataset['pipeline'][2]['key'] = f'file:{other_key_file}'
    with pytest.raises(KeyMismatchError, match='the train pipeline: SHF.* the val pipeline: SHF'):
        run(cfg)
    del cfg.val_dataloader.dataset.pipeline[2]
    with pytest.raises(NotFiredError, match='the val data set'):
        run(cfg)
    cfg = image_cfg(data, tmp_path, f'file:{key_file}')
    cfg.train_dataloader.dataset['pipeline'][3]['key'] = f'file:{tmp_path}/no.key'
    with pytest.raises(KeyFileError):
        run(cfg)
    assert not list(tmp_path.rglob('*.pth'))


@ONE
def test_wrapped_data_sets_and_steps_are_looked_into(data, tmp_path, key_file):
    cfg = image_cfg(data, tmp_path, f'file:{key_file}')
    inner = cfg.train_dataloader.dataset
    plain = inner.copy()
    plain.pipeline = [step for step in inner.pipeline if step['type'] != 'keyseg_mm.EncryptImage']
    nested = inner.copy()
    nested.pipeline = [*inner.pipeline[:3], dict(type='RandomApply', transforms=[inner.pipeline[3]], prob=1.0)]
    cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=dict(type='ConcatDataset', datasets=[]))
    cfg.train_dataloader.dataset.dataset.datasets = [inner, nested, plain]
    dataset = Runner.build_dataloader(cfg.train_dataloader).dataset
    assert isinstance(dataset.dataset, ConcatDataset)
    counts = [sum(isinstance(step, EncryptImage) for step in chain) for chain in chains_of(dataset)]
    assert counts == [1, 1, 0]
    with pytest.raises(NotFiredError, match='the train data set has a pipeline without'):
        run(cfg)


@ONE
def test_the_hook_stops_leaks(data, tmp_path, key_file, key):
    cfg = image_cfg(data, tmp_path, f'file:{key_file}')
    with pytest.raises(LeakError, match='the config: the key'):
        cfg.note = key.material.hex()  # the text form is refused before anything is built
        run(cfg)
    cfg.note = ''
    runner = Runner.from_cfg(cfg)
    runner._test_loop = runner.build_test_loop(runner._test_loop)
    hook = next(hook for hook in runner.hooks if isinstance(hook, GuardHook))
    hook.before_run(runner)
    (chain,) = chains_of(runner.test_loop.dataloader.dataset)
    (step,) = (step for step in chain if isinstance(step, EncryptImage))
    table = step.cipher.leaks()['block permutation']
    hook.before_save_checkpoint(runner, {'meta': {}, 'state_dict': {}})
    with pytest.raises(LeakError, match='the block permutation of the images'):
        hook.before_save_checkpoint(runner, {'meta': {}, 'state_dict': {'x': torch.from_numpy(table)}})


@pytest.mark.parametrize('spec', [dict(type='BlockShuffle', block=2), dict(type='NegativePositive', block=2)])
def test_block_wise_transforms_by_config_alone(spec, data, tmp_path, key_file, other_key_file, key):
    """Maps of 61 by 59 pictures are 16x15, 8x8, 4x4 and 2x2: not all are multiples of the block."""
    layout, root, classes = data
    model = keyed_cfg(tiny_model_cfg(classes), f'file:{key_file}', transform=spec)
    cfg = runner_cfg(root, tmp_path / 'run', model, layout=layout)
    cfg.dump(str(tmp_path / 'config.py'))
    assert main(['train', str(tmp_path / 'config.py'), '--work-dir', str(tmp_path / 'run')]) == 0
    checkpoint = tmp_path / 'run' / 'iter_4.pth'
    plan = stamps_of(read_checkpoint(checkpoint)['state_dict'])['']
    assert {e.transform['type'] for e in plan.entries} == {spec['type']}
    assert find_leaks(tmp_path / 'run', key, [plan]) == []
    key_option = 'model.protection.key='
    right = predictions(tmp_path / 'config.py', checkpoint, tmp_path, f'{key_option}file:{key_file}')
    none = predictions(tmp_path / 'config.py', checkpoint, tmp_path, f'{key_option}none')
    wrong = predictions(tmp_path / 'config.py', checkpoint, tmp_path, f'{key_option}random:1')
    for other in (none, wrong):  # alike: a sealed file without its key is noise
        assert (right != other).mean() > 0.01
    options = ['--work-dir', str(tmp_path / 'x'), '--cfg-options', f'{key_option}file:{other_key_file}']
    assert main(['test', str(tmp_path / 'config.py'), str(checkpoint), *options]) == 1
