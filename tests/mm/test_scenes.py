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
    (0, 'val', 0): ('3ddd7e3f666ac0a7', 'fbfafe3282f3c6b2'),
    (0, 'val', 1): ('cfbbc053287ccb34', '95cddc27be7dca50'),
    (0, 'train', 3): ('15ca674d3c65c305', '22d6de22b1649909'),
    (5, 'train', 7): ('f772291882a1efdb', '7330579245d4666f'),
    (123, 'val', 40): ('8522a902ff8b327a', '9ca4a1bc78e8beba'),
    (2, 'train', 17): ('e3688d39a4224d94', '6dff4b12a8d1e9a8'),
}
ALL = 'f172237a54c88749827fafd5822ff16b98b5a16e330e106838ef52e50b5ea43a'


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


def test_neither_place_nor_colour_alone_tells_the_class():
    def many(split, count):
        images, labels = zip(*(scenes.make_scene(0, split, i) for i in range(count)))
        colours = (np.stack(images) // 32).astype(int) @ [64, 8, 1]
        places = np.broadcast_to(np.arange(colours[0].size).reshape(colours[0].shape), colours.shape)
        return {'colour': colours, 'place': places}, np.stack(labels)

    (seen, truth), (new, wanted) = many('train', 40), many('val', 12)
    for clue in ('place', 'colour'):
        votes = np.zeros((seen[clue].max() + 1, 19), int)
        np.add.at(votes, (seen[clue], truth), 1)
        votes = np.pad(votes, ((0, max(0, new[clue].max() + 1 - len(votes))), (0, 0)))
        guess = votes.argmax(1)[new[clue]]
        ious = [((guess == c) & (wanted == c)).sum() / ((guess == c) | (wanted == c)).sum() for c in Label]
        assert np.mean(ious) < 0.25, clue


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
