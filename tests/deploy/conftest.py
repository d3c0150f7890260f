"""A model that was locked, and what `keyseg export` made of it: sealed, keyed, and as a program of torch."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config

from keyseg_mm import Identity, SecretKey, plan_lock, write_key_file
from keyseg_mm.checkpoint.files import write_checkpoint
from keyseg_mm.checkpoint.operations import lock_file, seal_file
from keyseg_mm.mm.bench import preprocess
from keyseg_mm.mm.config import build_plain_model
from keyseg_mm.mm.dryrun import trace_module
from keyseg_mm.seal.sections import Sealing
from tests.support.exports import SIZE, export, model_cfg


@pytest.fixture(scope='session')
def shop(tmp_path_factory):
    """Config, key, a customer's identity, and checkpoints: plain, sealed, locked."""
    folder = tmp_path_factory.mktemp('shop')
    cfg = Config({'model': model_cfg(), 'default_scope': 'mmseg', 'crop_size': SIZE})
    cfg.dump(str(folder / 'config.py'))
    torch.manual_seed(0)
    model = build_plain_model(cfg)
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=(len(weight) / weight.numel()) ** 0.5)
    key, customer = SecretKey(bytes(range(32))), Identity(bytes(range(1, 33)))
    write_key_file(folder / 'my.key', key)
    write_key_file(folder / 'customer.key', customer)
    (folder / 'customer.recipient').write_text(customer.recipient.to_text() + '\n')
    write_checkpoint(folder / 'plain.pth', model.state_dict(), {'dataset_meta': {'classes': list('abcde')}})
    plan = plan_lock(model, 'linear', 'SignedChannelPermutation', trace_module(model))
    lock_file(folder / 'plain.pth', model, plan, key, folder / 'locked.pth')
    seal_file(folder / 'plain.pth', Sealing(key), folder / 'sealed.pth')
    return SimpleNamespace(folder=folder, model=model.eval(), key=key, customer=customer)


@pytest.fixture(scope='session')
def sealed(shop):
    """An opened model's graph, for a customer too, from photos to scores."""
    recipient = f'file:{shop.folder}/customer.recipient'
    assert export(shop, 'model.onnx.sealed', '--with-preprocessing', '--to', recipient) == 0
    return shop.folder / 'model.onnx.sealed'


@pytest.fixture(scope='session')
def keyed(shop):
    """A graph whose tables are inputs, of images of any size."""
    assert export(shop, 'model.onnx', '--keys-as-inputs', '--size', 'dynamic') == 0
    return shop.folder / 'model.onnx'


@pytest.fixture(scope='session')
def photo():
    return np.random.default_rng(0).integers(0, 256, (1, *SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope='session')
def image(shop, photo):
    """The photo as the host's preprocessing makes it."""
    return preprocess(shop.model, torch.from_numpy(photo).permute(0, 3, 1, 2)).numpy()


@pytest.fixture(scope='session')
def scores(shop, image):
    """What the plain model says of it."""
    size = image.shape[2:]
    meta = dict(img_shape=size, ori_shape=size, pad_shape=size, padding_size=[0] * 4)
    with torch.no_grad():
        return shop.model.encode_decode(torch.from_numpy(image), [meta]).numpy()
