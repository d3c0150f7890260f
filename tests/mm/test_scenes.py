"""Painted street scenes: what is in them, that data sets read them, and that they stay as they are, bit for bit."""

from __future__ import annotations

import hashlib

import cv2
import numpy as np
import pytest

from keyseg_mm.mm.floor import constant_prediction_floor
from keyseg_mm.mm.scenes import street as scenes
from keyseg_mm.mm.scenes.paint import Label

# SHA-256 of image and label map, their first 16 digits; figures of the demo and of proofs depend on them
SCENES = {
    (0, 'val', 0): ('f2c453fa2baa1dc6', '49cbada2c416bb2f'),
    (0, 'val', 1): ('439a949a5155882d', 'e8c3ff45dc68b357'),
    (0, 'train', 3): ('9c5769c4f06e018e', 'a9baf392b3f7581f'),
    (5, 'train', 7): ('9ce121e187d552fb', 'e03c989f8263fe71'),
    (123, 'val', 40): ('cbbfd2aeddc2a7b7', 'fb682f31c034ce23'),
    (2, 'train', 17): ('15e97d24f6e65c70', '7b9951dfba03754c'),
}
ALL = 'ad431d047f8b1c6786e072055dd076d94f9f231041464d8a4ff0c447cfda50e6'


@pytest.mark.parametrize('scene', SCENES)
def test_a_scene_is_what_it_was(scene):
    assert tuple(hashlib.sha256(part.tobytes()).hexdigest()[:16] for part in scenes.make_scene(*scene)) == SCENES[scene]


def test_many_scenes_are_what_they_were():
    digest = hashlib.sha256()
    for seed in range(3):
        for split in ('train', 'val'):
            for index in range(12):
                for part in scenes.make_scene(seed, split, index):
                    digest.update(part.tobytes())
    assert digest.hexdigest() == ALL


def test_the_same_seed_gives_the_same_scene_and_another_one_another():
    image, label = scenes.make_scene(5, 'train', 7)
    again = scenes.make_scene(5, 'train', 7)
    for other in (scenes.make_scene(6, 'train', 7), scenes.make_scene(5, 'val', 7), scenes.make_scene(5, 'train', 8)):
        assert not np.array_equal(image, other[0])
        assert not np.array_equal(label, other[1])
    assert np.array_equal(image, again[0])
    assert np.array_equal(label, again[1])
    assert image.shape == (scenes.HEIGHT, scenes.WIDTH, 3)
    assert label.shape == (scenes.HEIGHT, scenes.WIDTH)
    assert image.dtype == label.dtype == np.uint8


def test_a_few_scenes_show_every_class_and_no_other():
    labels = np.stack([scenes.make_scene(0, 'val', i)[1] for i in range(12)])
    pixels = np.bincount(labels.ravel(), minlength=256)
    assert {int(c) for c in np.flatnonzero(pixels)} == {int(c) for c in Label}
    assert all(pixels[c] > 300 for c in Label)
    # No class fills the scenes: a constant guess must score next to nothing.
    assert constant_prediction_floor(labels, 19) < 4


def test_labels_are_the_cityscapes_train_ids():
    from mmseg.datasets import CityscapesDataset

    classes = CityscapesDataset.METAINFO['classes']
    assert {label.name.lower().replace('_', ' '): int(label) for label in Label}.items() <= {
        name: i for i, name in enumerate(classes)
    }.items()


def test_the_stock_dataset_reads_what_is_written(tmp_path):
    from mmseg.datasets import CityscapesDataset

    calls = []
    scenes.write_scenes(tmp_path, 2, {'train': 2, 'val': 1}, lambda: calls.append(1))
    prefix = dict(img_path='leftImg8bit/train', seg_map_path='gtFine/train')
    dataset = CityscapesDataset(data_root=str(tmp_path), data_prefix=prefix, pipeline=[])
    assert len(dataset) == 2
    assert len(calls) == 3
    info = dataset.get_data_info(1)
    image, label = scenes.make_scene(2, 'train', 1)
    assert np.array_equal(cv2.imread(info['img_path'])[..., ::-1], image)
    assert np.array_equal(cv2.imread(info['seg_map_path'], cv2.IMREAD_UNCHANGED), label)
