"""The host's own tests on encrypted images: by EncryptImage in the pipeline, and on files that a client encrypted."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmseg.apis import inference_model, init_model

from keyseg_mm import SecretKey, stamps_of, write_key_file
from keyseg_mm.bind import derive_cipher
from keyseg_mm.checkpoint.files import read_checkpoint, write_checkpoint
from keyseg_mm.errors import (
    IntegrityError,
    KeyFileError,
    KeyMismatchError,
    NotFiredError,
    PlainCheckpointError,
    PlanMismatchError,
    TransformError,
)
from keyseg_mm.mm import EncryptImage
from tests.support.cli import keyseg
from tests.support.configs import runner_cfg, setr_cfg
from tests.support.families import build

LAYOUTS = ('cityscapes', 'ade20k')
GUARD = [dict(type='keyseg_mm.GuardHook')]


def write_tiny_ade20k(root: Path, images: int = 3) -> Path:
    """A few pictures, some of them not made of whole blocks, laid out as ADE20K: JPEG files, and labels from 1 on."""
    rng = np.random.default_rng(1)
    for index in range(images):
        size = (64, 64 + 8 * index)
        label = np.kron(rng.integers(1, 6, (4, 4)), np.ones((16, 24)))[: size[0], : size[1]].astype(np.uint8)
        image = (label[..., None] * np.array([50, 30, 10]) + rng.integers(0, 20, (*size, 3))).astype(np.uint8)
        for folder, suffix, what in (('images', '.jpg', image), ('annotations', '.png', label)):
            path = root / folder / 'validation' / f'{index}{suffix}'
            path.parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(path), what)
    return root


def encrypted_cfg(place: dict, encrypt: dict | None, data: Path | None = None, **changes) -> Config:
    """A whole config that tests a layout's model, with EncryptImage where it is asked for."""
    layout = place['layout']
    cfg = runner_cfg(data or place['data'], place['folder'] / 'work', setr_cfg(**changes))
    head = [dict(type='LoadImageFromFile'), dict(type='ResizeToMultiple', size_divisor=16)]
    cfg.custom_hooks = GUARD if encrypt else []
    encryption = [{'type': 'keyseg_mm.EncryptImage', 'method': 'PATCH', **encrypt}] if encrypt else []
    labels = dict(type='LoadAnnotations', reduce_zero_label=layout == 'ade20k')
    pipeline = [*head, *encryption, labels, dict(type='PackSegInputs')]
    cfg.test_pipeline = pipeline  # what the host's inference APIs go by
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.pipeline = pipeline
        if layout == 'ade20k':
            loader.dataset.type = 'ADE20KDataset'
            loader.dataset.data_prefix = dict(img_path='images/validation', seg_map_path='annotations/validation')
            loader.dataset.img_suffix = '.png' if data else '.jpg'
    return cfg


def metrics(cfg: Config, checkpoint: str, place: dict) -> dict:
    cfg.load_from = str(place['folder'] / checkpoint)
    return Runner.from_cfg(cfg).test()


@pytest.fixture(scope='module', params=LAYOUTS)
def place(request, tmp_path_factory, tiny_cityscapes):
    """A layout's data, a plain model and the locked one, keys, and what the host's test says of the plain one."""
    layout, folder = request.param, tmp_path_factory.mktemp(request.param)
    data = tiny_cityscapes if layout == 'cityscapes' else write_tiny_ade20k(folder / 'ade')
    for name, material in (('right', bytes(range(32))), ('other', bytes(32))):
        write_key_file(folder / f'{name}.key', SecretKey(material))
    torch.save({'meta': {}, 'state_dict': build(setr_cfg()).state_dict()}, folder / 'plain.pth')
    found = {'layout': layout, 'folder': folder, 'data': data}
    config = encrypted_cfg(found, None)
    config.dump(str(folder / 'config.py'))
    lock = [
        'lock',
        '--scheme',
        'patches',
        folder / 'plain.pth',
        '--config',
        folder / 'config.py',
        '--key',
        f'file:{folder}/right.key',
    ]
    assert keyseg(*lock, '--out', folder / 'locked.pth') == 0
    found['stamp'] = stamps_of(read_checkpoint(folder / 'locked.pth')['state_dict'])['']
    return {**found, 'metrics': metrics(config, 'plain.pth', found)}


def right(place: dict) -> dict:
    return dict(key=f'file:{place["folder"]}/right.key')


def test_the_host_tests_encrypted_images_by_config_alone(place):
    assert place['metrics']['mIoU'] > 0
    assert metrics(encrypted_cfg(place, None), 'locked.pth', place) != place['metrics']
    for wrong in ('none', 'random:1'):
        assert metrics(encrypted_cfg(place, dict(key=wrong)), 'locked.pth', place) != place['metrics']
    assert metrics(encrypted_cfg(place, right(place)), 'locked.pth', place) == place['metrics']


def test_the_server_tests_files_that_the_client_encrypted(place, capsys):
    """The server has neither key nor plain image, and a config that knows nothing of this package."""
    folder, part = place['folder'], dict(cityscapes='leftImg8bit', ade20k='images')[place['layout']]
    server = folder / 'server'
    server.mkdir()
    encrypt = ['tool', 'encrypt_images', '--key', f'file:{folder}/right.key', '--checkpoint', folder / 'locked.pth']
    assert keyseg(*encrypt, '--config', folder / 'config.py', place['data'] / part, server / part) == 0
    labels = dict(cityscapes='gtFine', ade20k='annotations')[place['layout']]
    shutil.copytree(place['data'] / labels, server / labels)
    cfg = encrypted_cfg(place, None, server)
    assert 'keyseg_mm' not in str(cfg.to_dict())
    if place['layout'] == 'cityscapes':  # ADE20K's images were resized by the client, and these labels were not
        assert metrics(cfg, 'locked.pth', place) == place['metrics']
    sample = sorted((server / part).rglob('*.png'))[0]
    (plain,) = (place['data'] / part / sample.relative_to(server / part)).parent.glob(f'{sample.stem}.*')
    wanted = inference_model(init_model(str(folder / 'config.py'), str(folder / 'plain.pth'), 'cpu'), str(plain))
    host = init_model(str(folder / 'config.py'), str(folder / 'locked.pth'), 'cpu')
    got, rubbish = (inference_model(host, str(path)).seg_logits.data for path in (sample, plain))
    wanted = wanted.seg_logits.data
    assert float((rubbish - wanted).norm() / wanted.norm()) > 0.2
    assert float((got - wanted).norm() / wanted.norm()) < 1e-4


SLIDE = dict(mode='slide', crop_size=(32, 32), stride=(16, 16))


def test_sliding_windows(place):
    plain = metrics(encrypted_cfg(place, None, **SLIDE), 'plain.pth', place)
    assert plain != place['metrics']
    assert metrics(encrypted_cfg(place, right(place), **SLIDE), 'locked.pth', place) == plain
    with pytest.raises(PlanMismatchError, match=r'stride \(10, 10\) cut blocks'):
        metrics(encrypted_cfg(place, right(place), **{**SLIDE, 'stride': (10, 10)}), 'locked.pth', place)


@pytest.fixture
def cityscapes(place):
    if place['layout'] != 'cityscapes':
        pytest.skip('once is enough')
    return place


def test_the_guard_stops_what_would_be_rubbish(cityscapes, tmp_path):
    place, folder = cityscapes, cityscapes['folder']
    with pytest.raises(PlainCheckpointError, match='takes plain images'):
        metrics(encrypted_cfg(place, right(place)), 'plain.pth', place)
    with pytest.raises(KeyMismatchError):
        metrics(encrypted_cfg(place, dict(key=f'file:{folder}/other.key')), 'locked.pth', place)
    state = read_checkpoint(folder / 'locked.pth')['state_dict']
    state['backbone.cls_token'] = state['backbone.cls_token'] + 1
    write_checkpoint(folder / 'altered.pth', state, {})
    with pytest.raises(IntegrityError):
        metrics(encrypted_cfg(place, right(place)), 'altered.pth', place)
    late = encrypted_cfg(place, right(place))
    pipeline = late.test_dataloader.dataset.pipeline
    pipeline[1], pipeline[2] = pipeline[2], pipeline[1]
    with pytest.raises(PlanMismatchError, match='ResizeToMultiple would change encrypted images'):
        metrics(late, 'locked.pth', place)
    without = encrypted_cfg(place, right(place))
    dataset = without.test_dataloader.dataset
    dataset.pipeline.pop(2)
    with pytest.raises(NotFiredError, match='no protection'):
        metrics(without.copy(), 'locked.pth', place)
    whole = encrypted_cfg(place, right(place)).test_dataloader.dataset
    without.test_dataloader.dataset = dict(type='ConcatDataset', datasets=[whole, dataset])
    with pytest.raises(PlanMismatchError, match='EncryptImage 0 times'):
        metrics(without, 'locked.pth', place)
    twice = encrypted_cfg(place, right(place))
    twice.test_dataloader.dataset.pipeline.insert(2, twice.test_dataloader.dataset.pipeline[2])
    with pytest.raises(PlanMismatchError, match='EncryptImage 2 times'):
        metrics(twice, 'locked.pth', place)
    trained = encrypted_cfg(place, dict(right(place), method='SHF', block=16))
    with pytest.raises(PlanMismatchError, match="SHF.*the checkpoint wants method='PATCH'"):
        metrics(trained, 'locked.pth', place)
    padded = encrypted_cfg(place, right(place))
    padded.model.data_preprocessor.test_cfg = dict(size_divisor=32)
    with pytest.raises(PlanMismatchError, match='pads images after'):
        metrics(padded, 'locked.pth', place)


def test_with_test_time_augmentation(cityscapes):
    """Flips and sizes come before the encryption, in each of the pipelines."""
    place, found = cityscapes, []
    for encrypt, checkpoint in ((None, 'plain.pth'), (None, 'locked.pth'), (right(cityscapes), 'locked.pth')):
        cfg = encrypted_cfg(place, encrypt)
        load, resize, *rest = cfg.test_dataloader.dataset.pipeline
        flips = [dict(type='RandomFlip', prob=float(p), direction='horizontal') for p in (0, 1)]
        branches = [[resize], flips, *([t] for t in rest)]
        cfg.test_dataloader.dataset.pipeline = [load, dict(type='TestTimeAug', transforms=branches)]
        cfg.model = dict(type='SegTTAModel', module=cfg.model)
        found.append(metrics(cfg, checkpoint, place))
    assert found[0] != found[1]
    assert found[0] == found[2]


def test_workers_follow_the_stamp(cityscapes):
    cfg = encrypted_cfg(cityscapes, right(cityscapes))
    cfg.test_dataloader.update(num_workers=1)
    assert metrics(cfg, 'locked.pth', cityscapes) == cityscapes['metrics']


def test_the_step_itself(cityscapes):
    key, image = right(cityscapes)['key'], np.random.default_rng(0).integers(0, 256, (32, 48, 3)).astype(np.uint8)
    state = read_checkpoint(cityscapes['folder'] / 'locked.pth')['state_dict']
    transform, stamp = EncryptImage(key, 'PATCH'), cityscapes['stamp']
    with pytest.raises(PlanMismatchError, match='waits for a checkpoint'):
        transform({'img': image})
    transform.follow(stamp, state)
    done = transform({'img': image.copy()})['img']
    assert not np.array_equal(done, image)
    assert np.array_equal(transform.decrypt(done), image)
    # the cipher counts red first, and the host loads blue first
    cipher = derive_cipher(SecretKey(bytes(range(32))), stamp.salt, stamp.embeddings[0])
    assert np.array_equal(cipher.encrypt(image[..., ::-1]), done[..., ::-1])
    assert not np.array_equal(cipher.encrypt(image), done)
    again = pickle.loads(pickle.dumps(transform))
    assert np.array_equal(again({'img': image.copy()})['img'], done)
    for text in (repr(transform), str(vars(transform)), pickle.dumps(transform).decode('latin1')):
        assert str(bytes(range(32))) not in text and bytes(range(32)).decode('latin1') not in text
    plain = EncryptImage('none', 'PATCH')
    plain.follow(stamp, state)
    assert np.array_equal(plain({'img': image.copy()})['img'], image)
    with pytest.raises(TransformError, match='50 x 32 pixels.*ResizeToMultiple'):
        transform({'img': np.zeros((32, 50, 3), np.uint8)})
    with pytest.raises(TransformError, match='images of bytes'):
        transform({'img': image.astype(np.float32)})
    with pytest.raises(TransformError, match='3 colours, and met 1'):
        transform({'img': image[..., 0]})
    for options in (dict(block=16), dict(salt='00' * 16)):
        with pytest.raises(PlanMismatchError, match='from the checkpoint'):
            EncryptImage(key, 'PATCH', **options)
    with pytest.raises(KeyFileError):
        EncryptImage('file:/nowhere/at/all.key', 'PATCH')
