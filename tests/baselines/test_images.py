"""Encryption of images: the law, the definition, sizes, the derivation, the step in a pipeline, pickling, secrecy."""

from __future__ import annotations

import copy
import json
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import TRANSFORMS
from torch.utils.data import DataLoader, Dataset

from keyseg_mm import SecretKey, Stamp, find_leaks, write_key_file
from keyseg_mm.bind import derive_cipher, stamp_tensor
from keyseg_mm.cli import main
from keyseg_mm.entries import ImageEntry
from keyseg_mm.errors import KeyFileError, KeyMismatchError, SecretExposedError, StampError, TransformError
from keyseg_mm.maps.ff1 import byte_map
from keyseg_mm.maps.keyspace import bits_of_images
from keyseg_mm.maps.pixels import METHODS as ALL_METHODS
from keyseg_mm.maps.pixels import PATCH
from keyseg_mm.mm import EncryptImage
from keyseg_mm.wrapping import memory_stamp
from tests.support.ff1 import FF1
from tests.support.vectors import DERIVE, derived_images

METHODS = [method for method in ALL_METHODS if method != PATCH]
KEY = SecretKey(bytes(range(32)))
SALT = '00112233445566778899aabbccddeeff'
STEP = 'keyseg_mm.EncryptImage'
RNG = np.random.default_rng(0)
# SP 800-38G, FF1 samples 1 to 3 and 7 to 9: key, tweak, plaintext, ciphertext; radix 10, or 36 where there are letters
AES128 = '2B7E151628AED2A6ABF7158809CF4F3C'
AES256 = AES128 + 'EF4359D8D580AA4F7F036D6F04FC6A94'
FF1_SAMPLES = [
    (AES128, '', '0123456789', '2433477484'),
    (AES128, '39383736353433323130', '0123456789', '6124200773'),
    (AES128, '3737373770717273373737', '0123456789abcdefghi', 'a9tv40mll9kdu509eum'),
    (AES256, '', '0123456789', '6657667009'),
    (AES256, '39383736353433323130', '0123456789', '1001623463'),
    (AES256, '3737373770717273373737', '0123456789abcdefghi', 'xs8a0azh2avyalyzuwd'),
]


def cipher(method='SHF', block=8, key=KEY, salt=''):
    return derive_cipher(key, bytes(16), ImageEntry(method, block, salt))


def picture(high, wide, channels=3):
    return RNG.integers(0, 256, (high, wide, channels), dtype=np.uint8)


def stamp_of(key, *entries):
    return Stamp(key.id, bytes(16), entries)


def by_hand(method, c, image):
    """The definition, value by value."""
    size, (high, wide, channels) = c.block, image.shape
    tables, result = c.tables_of(channels), image.copy()
    for top in range(0, high, size):
        for left in range(0, wide, size):
            places = [
                (i, j, k)
                for i in range(min(size, high - top))
                for j in range(min(size, wide - left))
                for k in range(channels)
            ]
            numbers = [(i * size + j) * channels + k for i, j, k in places]
            if method == 'SHF':
                there = dict(zip(numbers, places))
                sources = [there[n] for n in tables.order.tolist() if n in there]
                for (i, j, k), (a, b, d) in zip(places, sources):
                    result[top + i, left + j, k] = image[top + a, left + b, d]
                continue
            for number, (i, j, k) in zip(numbers, places):
                p = int(image[top + i, left + j, k])
                if tables.changed[number]:
                    result[top + i, left + j, k] = 255 - p if method == 'NP' else tables.values[p]
    return result


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(sorted(METHODS)),
    st.integers(1, 17),
    st.integers(0, 40),
    st.integers(0, 40),
    st.sampled_from([1, 3, 4]),
)
def test_decrypting_undoes_encrypting(method, block, high, wide, channels):
    c, x = cipher(method, block), picture(high, wide, channels)
    y = c.encrypt(x)
    assert y.shape == x.shape and y.dtype == np.uint8
    assert np.array_equal(c.decrypt(y), x)
    assert np.array_equal(c.encrypt(c.decrypt(x)), x)


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('block', [1, 2, 3, 8])
@pytest.mark.parametrize('size', [(16, 24), (13, 11), (5, 17), (2, 2)])
def test_it_does_what_it_says(method, block, size):
    c, x = cipher(method, block), picture(*size)
    kept = x.copy()
    assert np.array_equal(c.encrypt(x), by_hand(method, c, x))
    assert np.array_equal(x, kept)


@pytest.mark.parametrize('method', METHODS)
def test_every_part_of_the_picture_is_changed_and_by_this_key_alone(method):
    x = picture(1029, 67)
    y, other = cipher(method).encrypt(x), cipher(method, key=SecretKey(bytes(32)))
    for rest in (np.s_[:1024, :64], np.s_[1024:, :64], np.s_[:1024, 64:], np.s_[1024:, 64:]):
        assert (y[rest] != x[rest]).mean() > 0.3
        assert (other.decrypt(y)[rest] != x[rest]).mean() > 0.3
    salted = cipher(method, salt=SALT)
    assert not np.array_equal(salted.encrypt(x), y)


@pytest.mark.parametrize('method', METHODS)
def test_several_pictures_are_encrypted_alike(method):
    c, x = cipher(method), np.stack([picture(20, 17) for _ in range(3)])
    assert not np.array_equal(x[0], x[1])
    assert np.array_equal(c.encrypt(x), np.stack([c.encrypt(one) for one in x]))
    assert np.array_equal(c.decrypt(c.encrypt(x)), x)


@pytest.mark.parametrize('method', METHODS)
def test_any_layout_of_memory(method):
    c, x = cipher(method), picture(40, 30)
    want = c.encrypt(x)
    assert np.array_equal(c.encrypt(np.asfortranarray(x)), want)
    assert np.array_equal(c.encrypt(x[:, ::-1]), c.encrypt(x[:, ::-1].copy()))
    grey = x[..., 0]
    assert c.encrypt(grey).shape == grey.shape
    assert np.array_equal(c.encrypt(grey), c.encrypt(grey[..., None])[..., 0])


@pytest.mark.parametrize('bad', [np.zeros((8, 8, 3), np.float32), np.zeros(8, np.uint8), torch.zeros(3, 8, 8), None])
def test_only_images_of_bytes_are_taken(bad):
    with pytest.raises(TransformError, match='right before PackSegInputs'):
        cipher().encrypt(bad)


@pytest.mark.parametrize('key, tweak, plain, encrypted', FF1_SAMPLES)
def test_ff1_gives_nists_samples(key, tweak, plain, encrypted):
    radix = 10 if plain.isdigit() else 36
    digits = FF1(bytes.fromhex(key), radix, bytes.fromhex(tweak)).encrypt([int(c, 36) for c in plain])
    assert digits == [int(c, 36) for c in encrypted]


def test_the_byte_map_is_ff1_on_eight_bits():
    keys = [bytes([seed] * 32) for seed in range(3)]
    maps = [byte_map(key) for key in keys]
    for key, found in zip(keys, maps):
        whole = [FF1(key, 2).encrypt([value >> bit & 1 for bit in range(7, -1, -1)]) for value in range(256)]
        assert found.tolist() == np.packbits(np.array(whole, np.uint8), axis=1).ravel().tolist()
    assert all(sorted(m.tolist()) == list(range(256)) for m in maps)
    assert not np.array_equal(maps[0], maps[1])
    assert sum(int((m == np.arange(256)).sum()) for m in maps) < 20


@pytest.mark.parametrize('case', json.loads(DERIVE.read_text())['images'], ids=lambda c: f'{c["method"]}-{c["block"]}')
def test_vectors(case):
    assert derived_images(case) == case['gives']


def test_the_vectors_cover_every_method():
    assert {case['method'] for case in json.loads(DERIVE.read_text())['images']} == set(METHODS)


def build(**options):
    return TRANSFORMS.build(dict(type=STEP, **options))


@pytest.mark.parametrize('method', METHODS)
def test_a_step_of_a_pipeline(method, key_file, key):
    options = dict(method=method, block=4, key=f'file:{key_file}', salt=SALT)
    pipeline = Compose([dict(type=STEP, **options), dict(type='mmseg.PackSegInputs', meta_keys=())])
    x = picture(31, 45)
    packed = pipeline(dict(img=x.copy()))['inputs'].permute(1, 2, 0).numpy()
    assert not np.array_equal(packed, x)
    step = build(**options)
    assert np.array_equal(step.decrypt(packed), x)
    assert np.array_equal(packed, cipher(method, 4, key, SALT).encrypt(x))
    both = step(dict(img=x, img2=x))
    assert np.array_equal(both['img2'], both['img'])
    assert repr(step) == f'EncryptImage({method}, block 4, salt {SALT}, key id {key.id})'


def test_locators_mean_what_they_mean_everywhere(key_file, key, monkeypatch, caplog, tmp_path):
    x = picture(16, 16)
    monkeypatch.setenv('MY_KEY', key.to_text())
    right = build(key=f'file:{key_file}')(dict(img=x))['img']
    assert np.array_equal(build(key='env:MY_KEY')(dict(img=x))['img'], right)
    assert not caplog.records
    plain = build(key='none')
    assert np.array_equal(plain(dict(img=x))['img'], x) and np.array_equal(plain.decrypt(x), x)
    assert 'images stay PLAIN' in caplog.text and 'key id none' in repr(plain)
    wrong = build(key='random:1')(dict(img=x))['img']
    assert 'a wrong key' in caplog.text
    assert not np.array_equal(wrong, x) and not np.array_equal(wrong, right)
    for locator in (None, '', f'file:{tmp_path}/no.key', 'env:NO_SUCH', '-', 'what'):
        with pytest.raises(KeyFileError):
            build(key=locator)
    with pytest.raises(SecretExposedError) as caught:
        build(key=key.to_text())
    assert key.to_text() not in str(caught.value)


@pytest.mark.parametrize(
    'bad', [dict(method='AES'), dict(block=0), dict(block=65), dict(block=4.0), dict(salt='00'), dict(salt='x' * 32)]
)
def test_bad_options_are_refused_before_the_key_is_read(bad):
    with pytest.raises(StampError if 'salt' in bad else TransformError):
        EncryptImage(key='file:no/such', **bad)


def test_key_space_by_hand():
    half = math.log2(math.comb(48, 24))
    assert bits_of_images('SHF', 2) == pytest.approx(math.log2(math.factorial(12)))
    assert bits_of_images('NP', 4) == pytest.approx(half)
    assert bits_of_images('FFX', 4) == pytest.approx(half + math.log2(math.factorial(256)))


def test_a_pickle_carries_the_locator_and_no_key(key_file, key, other_key, tmp_path):
    step, x = build(method='FFX', key=f'file:{key_file}'), picture(20, 20)
    want = step(dict(img=x))['img']
    data = pickle.dumps(step)
    (tmp_path / 'pickled').mkdir()
    (tmp_path / 'pickled' / 'step.pkl').write_bytes(data)
    assert find_leaks(tmp_path / 'pickled', key, [stamp_of(key, step.entry)]) == []
    again = pickle.loads(data)
    assert np.array_equal(again(dict(img=x))['img'], want) and repr(again) == repr(step)
    assert copy.deepcopy(step) is step
    key_file.unlink()
    with pytest.raises(KeyFileError):
        pickle.loads(data)
    write_key_file(key_file, other_key)
    with pytest.raises(KeyMismatchError, match='replaced'):
        pickle.loads(data)
    with pytest.raises(SecretExposedError, match='locator'):
        pickle.dumps(EncryptImage(key=key))
    with pytest.raises(SecretExposedError):
        pickle.dumps(step.cipher)
    assert str(key.to_text()) not in repr(vars(step))


class Pictures(Dataset):
    """Three pictures, encrypted as they are fetched."""

    def __init__(self, step):
        self.step = step

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return torch.from_numpy(self.step(dict(img=np.full((16, 16, 3), 70 * index, np.uint8)))['img'])


def test_spawned_workers_encrypt_alike(key_file):
    data = Pictures(build(method='FFX', key=f'file:{key_file}'))
    here = torch.stack([data[i] for i in range(3)])
    loader = DataLoader(data, batch_size=3, num_workers=1, multiprocessing_context='spawn')
    assert torch.equal(next(iter(loader)), here)
    assert here.unique().numel() > 3


@pytest.mark.parametrize('method', METHODS)
def test_their_tables_are_searched_for(method, key, tmp_path):
    stamp = stamp_of(key, ImageEntry(method, 8))
    tables = cipher(method, key=key).leaks()
    assert tables
    for name, table in tables.items():
        torch.save({'x': torch.from_numpy(table.copy())}, tmp_path / 'planted.pth')
        assert name in str(find_leaks(tmp_path, key, [stamp])[0])
        assert find_leaks(tmp_path, key) == []


def test_show_and_scan(tmp_path, key_file, key, capsys):
    step = dict(type=STEP, method='NP', block=4, key=f'file:{key_file}', salt=SALT)
    loaders = {n: dict(dataset=dict(pipeline=[step])) for n in ('train_dataloader', 'test_dataloader')}
    Config(loaders).dump(str(tmp_path / 'config.py'))
    assert main(['show', str(tmp_path / 'config.py')]) == 0
    shown = capsys.readouterr().out
    assert shown.count('pipeline.0 encrypts images') == 2 and key.id in shown
    assert all(text in shown for text in ('NP', 'block     4', SALT))
    entry, tensors = ImageEntry('FFX', 4, SALT), {'w': torch.zeros(2)}
    stamp = memory_stamp(key, stamp_of(key, entry), key.features(stamp_of(key, entry).salt))
    run = tmp_path / 'run'
    run.mkdir()
    torch.save({'meta': {}, 'state_dict': {**tensors, stamp.name: stamp_tensor(stamp)}}, run / 'model.pth')
    assert main(['show', str(run / 'model.pth')]) == 0
    shown = capsys.readouterr().out
    assert f'to be encrypted: FFX, block 4, salt {SALT}' in shown and f'key id  {key.id}' in shown
    assert main(['scan', str(run), '--key', f'file:{key_file}']) == 0
    assert 'secrets of 1 points, tensors and images' in capsys.readouterr().out
    np.save(run / 'planted.npy', derive_cipher(key, stamp.salt, entry).leaks()['byte map'])
    assert main(['scan', str(run), '--key', f'file:{key_file}']) == 3
    assert 'the byte map of the images' in capsys.readouterr().out
