"""keyseg lock --scheme patches, encrypt_images, and what unlock, rekey, show and scan make of their files."""

from __future__ import annotations

import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from keyseg_mm import SecretKey, stamps_of, write_key_file
from keyseg_mm.bind import derive_cipher
from keyseg_mm.checkpoint.files import read_checkpoint
from keyseg_mm.cli.status import FOUND, NOT_TRACED
from keyseg_mm.envelope import SIGNED
from keyseg_mm.stamp import is_stamp
from tests.support.cli import keyseg
from tests.support.families import build, small_model

PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(96, 64), keep_ratio=False),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
SALT = '00112233445566778899aabbccddeeff'


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """A config and its plain checkpoint."""
    folder = tmp_path_factory.mktemp('made')
    cfg = small_model('setr')
    cfg.test_cfg = dict(mode='whole')
    Config(dict(model=cfg.to_dict(), test_pipeline=PIPELINE)).dump(str(folder / 'config.py'))
    torch.save({'meta': {'epoch': 3}, 'state_dict': build(cfg).state_dict(), 'optimizer': {}}, folder / 'plain.pth')
    write_key_file(folder / 'right.key', SecretKey(bytes(range(32))))
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
    assert keyseg(*lock, '--salt', SALT, '--out', folder / 'locked.pth') == 0
    return folder


@pytest.fixture
def files(tmp_path, monkeypatch, key_file, other_key_file, made):
    monkeypatch.chdir(tmp_path)
    for name in ('config.py', 'plain.pth', 'locked.pth'):
        shutil.copy(made / name, name)
    cv2.imwrite('photo.png', photo())
    return tmp_path


def photo(height: int = 32, width: int = 48) -> np.ndarray:
    ramp = np.add.outer(np.arange(height), np.arange(width))[..., None] * np.array([1, 2, 3])
    return (ramp % 256).astype(np.uint8)


def state(name):
    return read_checkpoint(name)['state_dict']


LOCK = ('lock', '--scheme', 'patches', 'plain.pth', '--config', 'config.py', '--key', 'file:right.key')
ENCRYPT = ('tool', 'encrypt_images', '--key', 'file:right.key', '--checkpoint', 'locked.pth')


def test_lock_rekey_unlock_show_and_scan(files, capsys):
    assert keyseg('lock', '--scheme', 'patches', 'plain.pth', '--config', 'config.py', '--dry-run') == 0
    assert 'a dry run' in capsys.readouterr().out
    assert keyseg(*LOCK, '--salt', SALT, '--out', 'again.pth') == 0
    again, before = state('again.pth'), state('locked.pth')
    assert stamps_of(again) == stamps_of(before) and stamps_of(again)[''].seal.mode == SIGNED
    assert all(torch.equal(t, before[n]) for n, t in again.items() if not is_stamp(n))
    out = capsys.readouterr().out
    assert 'backbone.patch_embed.projection.weight: blocks of 16 x 16' in out and 'backbone.pos_embed' in out
    assert '2^7027 ciphers' in out and 'encrypted images' in out and 'optimizer' in out
    assert set(read_checkpoint('locked.pth')) == {'meta', 'state_dict'}
    assert read_checkpoint('locked.pth')['meta'] == {'epoch': 3}
    before = (files / 'locked.pth').read_bytes()
    assert keyseg(*LOCK, '--out', 'locked.pth') == 1
    assert (files / 'locked.pth').read_bytes() == before and 'exists already' in capsys.readouterr().err

    assert keyseg('show', 'locked.pth') == 0
    out = capsys.readouterr().out
    assert 'takes encrypted images' in out and SALT in out and '2^7027' in out
    step = dict(type='keyseg_mm.EncryptImage', method='PATCH', key='file:right.key')
    Config(dict(test_dataloader=dict(dataset=dict(pipeline=[step])))).dump('encrypts.py')
    assert keyseg('show', 'encrypts.py') == 0
    assert "block     the checkpoint's" in capsys.readouterr().out
    assert keyseg('scan', 'locked.pth', '--key', 'file:right.key') == 0
    capsys.readouterr()
    stamp = stamps_of(state('locked.pth'))['']
    tables = derive_cipher(SecretKey(bytes(range(32))), stamp.salt, stamp.embeddings[0]).leaks()
    np.save('leak.npy', tables['block permutation'])
    assert keyseg('scan', '.', '--key', 'file:right.key') == FOUND
    out = capsys.readouterr().out
    assert 'FOUND right.key: the key' in out and 'FOUND leak.npy: the block permutation of the images' in out

    rekey = ['rekey', 'locked.pth', '--key', 'file:right.key', '--new-key', 'file:other.key']
    assert keyseg(*rekey, '--out', 'rekeyed.safetensors') == 0
    assert keyseg('unlock', 'rekeyed.safetensors', '--key', 'file:right.key', '--out', 'back.pth') == 1
    assert 'the key given is' in capsys.readouterr().err and not (files / 'back.pth').exists()
    assert keyseg('unlock', 'rekeyed.safetensors', '--key', 'file:other.key', '--out', 'back.pth') == 0
    plain, back = state('plain.pth'), state('back.pth')
    assert plain.keys() == back.keys() and not stamps_of(back)
    assert not torch.equal(state('rekeyed.safetensors')['backbone.pos_embed'], plain['backbone.pos_embed'])
    assert all(torch.allclose(back[n], plain[n], rtol=1e-5, atol=1e-5) for n in plain)
    assert sum(not torch.equal(back[n], plain[n]) for n in plain) <= 2


@pytest.mark.parametrize('scheme', ['features', 'tensors', 'patches'])
def test_it_is_not_locked_once_more(files, capsys, scheme):
    lock = [
        'lock',
        'locked.pth',
        '--config',
        'config.py',
        '--scheme',
        scheme,
        '--key',
        'file:right.key',
        '--out',
        'x.pth',
    ]
    assert keyseg(*lock) == 1
    assert 'takes encrypted images already' in capsys.readouterr().err and not (files / 'x.pth').exists()


def test_a_licensees_copy_is_told_by_its_stamp_and_fingerprint(files, capsys):
    (files / 'customers.txt').write_text('ACME Ltd\nBolt\n')
    master = ['--master', 'file:right.key']
    assert keyseg('rekey', 'locked.pth', *master, '--licensee', 'Bolt', '--out', 'bolt.pth') == 0
    trace = [*master, '--licensees', 'customers.txt']
    assert keyseg('trace', 'locked.pth', *trace) == NOT_TRACED
    capsys.readouterr()
    assert keyseg('trace', 'bolt.pth', *trace) == 0
    assert "the copy of 'Bolt'; its seal fits" in capsys.readouterr().out
    assert keyseg('trace', 'bolt.pth', *trace, '--original', 'locked.pth') == 0
    assert 'fingerprint' in capsys.readouterr().out


def test_lock_refusals(files, capsys):
    cfg = Config.fromfile('config.py')
    cfg.model.test_cfg = dict(mode='slide', crop_size=(64, 64), stride=(42, 42))
    cfg.dump('slide.py')
    overlapping = small_model('segformer')
    Config(dict(model=overlapping.to_dict())).dump('segformer.py')
    torch.save({'state_dict': build(overlapping).state_dict()}, 'segformer.pth')
    cases = {
        ('slide.py', 'plain.pth', '--key', 'file:right.key', '--out', 'x.pth'): 'model.test_cfg.stride=(32, 32)',
        ('segformer.py', 'segformer.pth', '--key', 'file:right.key', '--out', 'x.pth'): 'overlap',
        ('config.py', 'plain.pth', '--key', 'random:1', '--out', 'x.pth'): 'a real key',
        ('config.py', 'plain.pth', '--key', 'file:right.key'): '--dry-run',
        ('config.py', 'photo.png', '--key', 'file:right.key', '--out', 'x.pth'): 'no checkpoint',
        ('config.py', 'plain.pth', '--key', 'file:right.key', '--out', 'x.pth', '--salt', '00'): '32 hex digits',
        ('config.py', 'plain.pth', '--key', 'file:right.key', '--out', 'x.pth', '--permute', 'none', '--no-negate'): (
            'take at least one'
        ),
    }
    for (config, checkpoint, *arguments), words in cases.items():
        assert keyseg('lock', '--scheme', 'patches', checkpoint, '--config', config, *arguments) == 1, arguments
        assert words in capsys.readouterr().err
    assert not (files / 'x.pth').exists()


def test_png_round_trip_is_bit_for_bit(files, capsys):
    assert keyseg(*ENCRYPT, 'photo.png', 'hidden.png') == 0
    assert keyseg(*ENCRYPT, '--decrypt', 'hidden.png', 'back.png') == 0
    hidden, back = cv2.imread('hidden.png', cv2.IMREAD_UNCHANGED), cv2.imread('back.png', cv2.IMREAD_UNCHANGED)
    assert hidden.dtype == np.uint8 and hidden.shape == photo().shape
    assert not np.array_equal(hidden, photo())
    assert np.array_equal(back, photo())


def test_only_the_models_own_key_and_stamp(files, capsys):
    wrong = ('tool', 'encrypt_images', '--key', 'file:other.key', '--checkpoint', 'locked.pth', 'photo.png', 'c.png')
    assert keyseg(*wrong) == 1 and 'the key given is' in capsys.readouterr().err
    weakened = state('locked.pth')
    stamp = stamps_of(weakened)['']
    document = json.loads(stamp.to_json())
    document['entries'][0]['permute'] = 'none'  # what a curious server would like
    weakened[stamp.name] = torch.tensor(list(json.dumps(document, separators=(',', ':')).encode()), dtype=torch.uint8)
    torch.save(weakened, 'weakened.pth')
    assert keyseg(*ENCRYPT[:-1], 'weakened.pth', 'photo.png', 'c.png') == 1
    assert 'altered' in capsys.readouterr().err
    assert keyseg(*ENCRYPT[:-1], 'plain.pth', 'photo.png', 'c.png') == 1
    assert 'plain images' in capsys.readouterr().err and not (files / 'c.png').exists()


def test_sizes(files, capsys):
    cv2.imwrite('odd.png', photo(33, 50))
    assert keyseg(*ENCRYPT, 'odd.png', 'a.png') == 1
    error = capsys.readouterr().err
    assert 'odd.png: an image of 50 x 33 pixels' in error and 'ResizeToMultiple' in error
    assert keyseg(*ENCRYPT, '--config', 'config.py', 'odd.png', 'b.png') == 0
    assert cv2.imread('b.png').shape == (64, 96, 3)


def test_files_are_never_lost(files, capsys):
    (files / 'cut.png').write_bytes((files / 'photo.png').read_bytes()[:-40])
    (files / 'no.png').write_text('no image')
    (files / 'there.png').write_text('mine')
    cases = {
        ('photo.png', 'hidden.jpg'): 'written as PNG',
        ('photo.png', 'there.png'): 'exists already',
        ('cut.png', 'hidden.png'): 'cut.png: could not be read',
        ('no.png', 'hidden.png'): 'no.png: could not be read',
        ('gone.png', 'hidden.png'): 'no such file',
        ('--decrypt', 'photo.jpg', 'hidden.png'): 'no such file',
        ('photo.png', 'nowhere/hidden.png'): 'could not write',
        ('--decrypt', '--config', 'config.py', 'photo.png', 'hidden.png'): 'without --config',
    }
    for arguments, words in cases.items():
        assert keyseg(*ENCRYPT, *arguments) == 1, arguments
        assert words in capsys.readouterr().err
    cv2.imwrite('photo.jpg', photo())
    assert keyseg(*ENCRYPT, '--decrypt', 'photo.jpg', 'hidden.png') == 1
    assert 'ruins' in capsys.readouterr().err
    assert (files / 'there.png').read_text() == 'mine' and not (files / 'hidden.png').exists()


def test_folders(files, capsys):
    for name in ('in/a.png', 'in/deep/b.jpg'):
        (files / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(name, photo())
    (files / 'in' / 'notes.txt').write_text('no image')
    assert keyseg(*ENCRYPT, 'in', 'out') == 0
    made = sorted(p.relative_to(files / 'out').as_posix() for p in (files / 'out').rglob('*.*'))
    assert made == ['a.png', 'deep/b.png']
    assert keyseg(*ENCRYPT, '--decrypt', 'out', 'back') == 0
    assert not np.array_equal(cv2.imread('out/a.png'), photo())
    assert np.array_equal(cv2.imread('back/a.png'), photo())
    assert np.array_equal(cv2.imread('back/deep/b.png'), cv2.imread('in/deep/b.jpg'))
    assert keyseg(*ENCRYPT, 'in', 'out') == 1 and 'exists already' in capsys.readouterr().err
    (files / 'in' / 'deep' / 'c.png').write_text('no image')
    assert keyseg(*ENCRYPT, 'in', 'other') == 1 and 'c.png' in capsys.readouterr().err
    assert not (files / 'other').exists() and not list(files.glob('.other*'))
    cv2.imwrite('in/a.jpg', photo())
    assert keyseg(*ENCRYPT, 'in', 'other') == 1 and 'would both become' in capsys.readouterr().err
    (files / 'empty').mkdir()
    assert keyseg(*ENCRYPT, 'empty', 'other') == 1 and 'no images' in capsys.readouterr().err
