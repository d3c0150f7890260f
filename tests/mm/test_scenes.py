"""Painted street scenes: what is in them, and that data sets read them."""

from __future__ import annotations

import cv2
import numpy as np

from keyseg_mm.mm import scenes
from keyseg_mm.mm.floor import constant_prediction_floor
from keyseg_mm.mm.scenes import Label


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
        assert np.mean(ious) < 0.35, clue


def test_labels_are_the_cityscapes_train_ids():
    from mmseg.datasets import CityscapesDataset

    classes = CityscapesDataset.METAINFO['classes']
    assert {label.name.lower().replace('_', ' '): int(label) for label in Label}.items() <= {
        name: i for i, name in enumerate(classes)
    }.items()


def test_the_stock_dataset_reads_what_is_written(tmp_path):
    from mmseg.datasets import CityscapesDataset

    scenes.write_scenes(tmp_path, 2, {'train': 2, 'val': 1})
    prefix = dict(img_path='leftImg8bit/train', seg_map_path='gtFine/train')
    dataset = CityscapesDataset(data_root=str(tmp_path), data_prefix=prefix, pipeline=[])
    assert len(dataset) == 2
    info = dataset.get_data_info(1)
    image, label = scenes.make_scene(2, 'train', 1)
    assert np.array_equal(cv2.imread(info['img_path'])[..., ::-1], image)
    assert np.array_equal(cv2.imread(info['seg_map_path'], cv2.IMREAD_UNCHANGED), label)
