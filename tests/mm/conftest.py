"""A model that was trained with a key."""

from __future__ import annotations

import pytest
from mmseg.apis import inference_model, init_model

from keyseg_mm import SecretKey, write_key_file
from tests.support.runs import keyed_run, opened, run


@pytest.fixture(scope='module')
def trained(tmp_path_factory, tiny_cityscapes):
    """A protected model that was trained for a moment, and what the right key makes of it."""
    folder = tmp_path_factory.mktemp('trained')
    for name, key in (('right', SecretKey(bytes(range(32)))), ('other', SecretKey(bytes(range(1, 33))))):
        write_key_file(folder / f'{name}.key', key)
    cfg = keyed_run(tiny_cityscapes, folder / 'work', f'file:{folder}/right.key')
    cfg.model.protection.points = ['stages', 'in:decode_head.conv_seg']
    run(cfg)
    config = folder / 'config.py'
    cfg.dump(str(config))
    checkpoint = folder / 'work' / 'iter_4.pth'
    picture = sorted((tiny_cityscapes / 'leftImg8bit' / 'val').rglob('*.png'))[0]
    model = init_model(str(config), str(checkpoint), device='cpu')
    return {
        'folder': folder,
        'config': config,
        'checkpoint': checkpoint,
        'picture': str(picture),
        'logits': inference_model(model, str(picture)).seg_logits.data,
        'metrics': run(opened(config, checkpoint), 'test')[1],
    }
