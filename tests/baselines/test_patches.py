"""Encrypted patch embeddings: the cipher's laws, the maths of the lock, every family of models, and the stamp."""

from __future__ import annotations

import copy
import json
import logging
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import ConfigDict
from mmengine.runner import load_checkpoint
from mmseg.registry import MODELS

from keyseg_mm import SecretKey, find_leaks, lock, rekey, stamps_of, unlock
from keyseg_mm.baselines.patches import plan_patches
from keyseg_mm.bind import derive_cipher, derive_patches
from keyseg_mm.entries import EmbeddingEntry
from keyseg_mm.envelope import SIGNED
from keyseg_mm.errors import (
    IntegrityError,
    KeyMismatchError,
    LockError,
    PlanMismatchError,
    SecretExposedError,
    TransformError,
)
from keyseg_mm.locking import SCHEMES, Plan, lock_in_place
from keyseg_mm.locking.proof import Proof
from keyseg_mm.maps.keyspace import bits_of_patches
from keyseg_mm.maps.pixels import BlockCipher
from keyseg_mm.mm.bench import HostBench
from keyseg_mm.mm.embeddings import misaligned, normalisation
from keyseg_mm.seal.sections import Sealing, seal_checkpoint
from tests.support.configs import keyed_cfg
from tests.support.families import build, plain_or_skip, small_model
from tests.support.vectors import PATCHES, encrypted_ramp

KEY, OTHER, SALT = SecretKey(bytes(range(32))), SecretKey(bytes(32)), bytes(16)
STEPS = [('all', True), ('all', False), ('channel', True), ('channel', False), ('none', True)]
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
FAMILIES = ('setr', 'segmenter', 'dpt', 'vit', 'beit', 'mae', 'swin')


def whole_model(family: str) -> ConfigDict:
    """A small model that is tested on whole images: its sliding windows would cut blocks."""
    return ConfigDict(small_model(family), test_cfg=dict(mode='whole'))


def by(tables, block):
    return BlockCipher(block, lambda colours: tables, whole=True)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def plan_of(order='rgb', permute='all', negate=True, offset='b', mean=MEAN, std=STD) -> Plan:
    return Plan('patches', (EmbeddingEntry('w', offset, 0, 4, permute, negate, order, mean, std),))


def locked_by(plan: Plan, tensors: dict, salt: bytes | None = None) -> dict:
    locked = dict(tensors)
    lock_in_place(locked, plan, KEY, salt)
    return locked


def cipher_of(locked: dict, key: SecretKey = KEY):
    stamp = stamps_of(locked)['']
    return derive_cipher(key, stamp.salt, stamp.embeddings[0])


def proved(model: torch.nn.Module, plan: Plan) -> Proof:
    return SCHEMES['patches'].prove(HostBench(), model, model.state_dict(), plan, KEY, SALT)


def embedded(tensors: dict, plan: Plan, image: np.ndarray) -> torch.Tensor:
    """What a patch embedding makes of an 8-bit image, red first, in float64."""
    (entry,) = plan.entries
    x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].double()
    x = x.flip(1) if entry.order == 'bgr' else x
    mean, std = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (entry.mean, entry.std))
    bias = tensors['b'].double() if 'b' in tensors else None
    return torch.nn.functional.conv2d((x - mean) / std, tensors['w'].double(), bias, stride=entry.patch)


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / a.norm())


@pytest.fixture
def tensors():
    torch.manual_seed(0)
    return {'w': torch.randn(8, 3, 4, 4), 'b': torch.randn(8)}


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 17),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from(STEPS),
    st.binary(min_size=32, max_size=32),
)
def test_cipher_is_undone_bit_for_bit_and_keeps_blocks_apart(patch, rows, columns, steps, material):
    cipher = derive_patches(SecretKey(material), SALT, patch, *steps)
    image = noise(patch * rows, patch * columns)
    done = cipher.encrypt(image)
    assert not np.array_equal(done, image)
    assert done.dtype == np.uint8 and done.shape == image.shape
    back = by(cipher.tables_of().inverse(), patch)
    assert np.array_equal(cipher.decrypt(done), image) and np.array_equal(back.encrypt(done), image)
    assert np.array_equal(cipher.encrypt(back.encrypt(image)), image)
    assert np.array_equal(done[:patch, :patch], cipher.encrypt(image[:patch, :patch]))
    assert np.array_equal(image, noise(patch * rows, patch * columns))  # not in place


@pytest.mark.parametrize('steps', STEPS)
def test_composition(steps):
    one, two = derive_patches(KEY, SALT, 4, *steps), derive_patches(OTHER, SALT, 4, *steps)
    image = noise(8, 12)
    both, other = (by(b.tables_of().compose(a.tables_of()), 4).encrypt(image) for b, a in ((one, two), (two, one)))
    assert not np.array_equal(both, one.encrypt(image)) and not np.array_equal(both, other) or steps[0] == 'none'
    assert np.array_equal(both, one.encrypt(two.encrypt(image)))


def test_steps_do_what_they_say():
    image = noise(4, 4)
    kept = derive_patches(KEY, SALT, 4, 'channel', False).encrypt(image)
    for channel in range(3):
        assert not np.array_equal(kept[..., channel], image[..., channel])
        assert sorted(kept[..., channel].flat) == sorted(image[..., channel].flat)
    mixed = derive_patches(KEY, SALT, 4, 'all', False).encrypt(image)
    assert sorted(mixed[..., 0].flat) != sorted(image[..., 0].flat)
    assert sorted(mixed.flat) == sorted(image.flat)
    negated = derive_patches(KEY, SALT, 4, 'none', True).encrypt(image)
    changed = negated != image
    assert changed.any() and not changed.all()
    assert np.array_equal(negated[changed], 255 - image[changed])


def test_each_key_salt_patch_and_step_has_its_own_cipher():
    image = noise(16, 16)
    ciphers = [(KEY, SALT, 4, 'all', True), (OTHER, SALT, 4, 'all', True), (KEY, bytes([1] * 16), 4, 'all', True)]
    ciphers += [(KEY, SALT, 4, 'all', False), (KEY, SALT, 4, 'channel', True), (KEY, SALT, 8, 'all', True)]
    assert len({derive_patches(*c).encrypt(image).tobytes() for c in ciphers}) == len(ciphers)


def test_vectors():
    cases = json.loads(PATCHES.read_text())
    assert len(cases) >= 5
    for case in cases:
        assert encrypted_ramp(case) == case['gives'], case


def test_bad_steps_and_images():
    for steps in [(1, 'all', True), (True, 'all', True), (4, 'some', True), (4, 'all', 'yes'), (4, 'none', False)]:
        with pytest.raises(TransformError):
            derive_patches(KEY, SALT, *steps)
    cipher = derive_patches(KEY, SALT, 4)
    for image in (noise(4, 6), noise(4, 4).astype(np.float32), noise(4, 4)[..., :2], noise(4, 4)[:0], noise(4, 4)[0]):
        with pytest.raises(TransformError):
            cipher.encrypt(image)


def test_cipher_tells_nothing():
    cipher = derive_patches(KEY, SALT, 4)
    assert repr(cipher) == '<BlockCipher of blocks of 4 x 4 pixels>'
    assert copy.deepcopy(cipher) is cipher
    with pytest.raises(SecretExposedError):
        pickle.dumps(cipher)


def test_key_space_by_hand():
    assert bits_of_patches(2, 'all', False) == pytest.approx(math.log2(math.factorial(12)))
    assert bits_of_patches(2, 'channel', True) == pytest.approx(3 * math.log2(math.factorial(4)) + 12)
    assert bits_of_patches(2, 'none', True) == 12
    assert bits_of_patches(16, 'channel', False) > 256  # more ciphers than keys
    assert bits_of_patches(4, 'channel', False) < 256 < 251 + bits_of_patches(4, 'none', True)


@pytest.mark.parametrize('order', ['rgb', 'bgr'])
@pytest.mark.parametrize('steps', STEPS)
def test_locked_embedding_of_encrypted_is_plain_embedding_of_plain(tensors, order, steps):
    plan = plan_of(order, *steps)
    locked = locked_by(plan, tensors, SALT)
    image = noise(8, 16)
    wanted, cipher = embedded(tensors, plan, image), cipher_of(locked)
    assert gap(wanted, embedded(locked, plan, image)) > 0.2
    assert gap(wanted, embedded(tensors, plan, cipher.encrypt(image))) > 0.2
    assert gap(wanted, embedded(locked, plan, cipher_of(locked, OTHER).encrypt(image))) > 0.2
    assert gap(wanted, embedded(locked, plan, cipher.encrypt(image))) < 1e-6


@pytest.mark.parametrize('steps', STEPS)
def test_unlock_and_rekey(tensors, steps):
    """Weights come back bit for bit but where they were scaled; what takes the constant comes back to rounding."""
    before = {name: value.clone() for name, value in tensors.items()}
    plan, image = plan_of('rgb', *steps), noise(4, 8)
    locked = locked_by(plan, tensors)
    assert not torch.equal(locked['w'], tensors['w'])
    again = rekey(locked, KEY, OTHER)
    assert not torch.equal(again['w'], locked['w'])
    old, new = stamps_of(locked)[''], stamps_of(again)['']
    assert new.key_id == OTHER.id and new.salt != old.salt and new.entries == old.entries
    wanted = embedded(tensors, plan, image)
    assert gap(wanted, embedded(again, plan, cipher_of(locked).encrypt(image))) > 0.2
    assert gap(wanted, embedded(again, plan, cipher_of(again, OTHER).encrypt(image))) < 1e-6
    for plain in (unlock(locked, KEY), unlock(again, OTHER)):
        assert list(plain) == ['w', 'b']
        assert torch.equal(plain['w'], before['w']) == (steps[0] != 'all')
        assert torch.allclose(plain['w'], before['w'], rtol=1e-6, atol=0)
        assert torch.allclose(plain['b'], before['b'], rtol=0, atol=1e-5)
        assert torch.equal(plain['b'], before['b']) or steps != ('channel', False)
    assert all(torch.equal(tensors[name], before[name]) for name in before)


def test_where_all_means_are_in_the_middle_and_all_std_equal_everything_is_exact(tensors):
    """Segmenter's normalisation: a negated value is the negative, and there is no constant."""
    plan = plan_of(offset='', mean=(127.5,) * 3, std=(127.5,) * 3)
    bare = {'w': tensors['w']}
    locked = locked_by(plan, bare)
    assert not torch.equal(locked['w'], bare['w'])
    assert sorted(locked['w'].abs().flatten().tolist()) == sorted(bare['w'].abs().flatten().tolist())
    assert torch.equal(unlock(locked, KEY)['w'], bare['w'])


def test_no_room_for_the_constant(tensors):
    bare = {'w': tensors['w']}
    with pytest.raises(LockError, match='no bias.*--permute channel --no-negate'):
        locked_by(plan_of(offset=''), bare)
    locked = locked_by(plan_of('rgb', 'channel', False, ''), bare)
    assert not torch.equal(locked['w'], bare['w'])
    assert torch.equal(unlock(locked, KEY)['w'], bare['w'])


def test_several_embeddings_are_locked_alike_or_not_at_all(tensors):
    (entry,) = plan_of().entries
    twins = {**tensors, 'v': tensors['w'] * 2, 'c': tensors['b'] * 2}
    plan = Plan('patches', (entry, replace(entry, weight='v', offset='c')))
    locked = locked_by(plan, twins)
    assert not torch.equal(locked['w'], twins['w'])
    assert torch.equal(locked['v'], 2 * locked['w']) and torch.allclose(locked['c'], 2 * locked['b'])
    assert torch.allclose(unlock(locked, KEY)['v'], twins['v'], rtol=1e-6, atol=0)
    short = {name: value for name, value in twins.items() if name != 'v'}
    before = dict(short)
    with pytest.raises(LockError, match='v: .* no patch embedding'):
        lock_in_place(short, plan, KEY)
    assert short == before


def test_wrong_checkpoints_are_refused_and_stay_as_they_are(tensors):
    plan = plan_of()
    for wrong in ({'b': tensors['b']}, {**tensors, 'w': torch.randn(8, 3, 8, 8)}, {**tensors, 'w': tensors['w'].int()}):
        before = dict(wrong)
        with pytest.raises(LockError, match='no patch embedding'):
            lock_in_place(wrong, plan, KEY)
        assert wrong == before
    with pytest.raises(LockError, match='plain: it carries no stamp'):
        unlock(tensors, KEY)
    locked = locked_by(plan, tensors)
    with pytest.raises(KeyMismatchError, match=f'{KEY.id}.*{OTHER.id}'):
        unlock(locked, OTHER)
    signed = seal_checkpoint({'state_dict': locked}, Sealing(KEY, mode=SIGNED))['state_dict']
    altered = {**signed, 'b': signed['b'] + 1}
    with pytest.raises(IntegrityError):
        unlock(altered, KEY)
    assert torch.equal(unlock(altered, KEY, check=False)['w'], unlock(locked, KEY)['w'])


def test_stamp(tensors, tmp_path):
    locked = locked_by(plan_of(), tensors, SALT)
    (name,) = set(locked) - set(tensors)
    assert name == f'keyseg_stamp_model_takes_images_encrypted_with_key_{KEY.id}'
    stamp = stamps_of(locked)['']
    assert (stamp.key_id, stamp.salt, stamp.entries) == (KEY.id, SALT, plan_of().entries)
    assert stamps_of(tensors) == {}
    torch.save(locked, tmp_path / 'locked.pth')
    assert find_leaks(tmp_path, KEY, [stamp]) == []
    tables = cipher_of(locked).leaks()
    assert set(tables) == {'block permutation', 'inverse block permutation', 'mask', 'signs'}
    (tmp_path / 'leak').write_bytes(tables['block permutation'].astype('<i4').tobytes())
    (leak,) = find_leaks(tmp_path, KEY, [stamp])
    assert leak.what.startswith('the block permutation of the images (numpy <i')


@pytest.mark.parametrize('family', FAMILIES)
def test_family(family):
    """Encrypted images give the locked model the plain one's outputs; plain and wrongly encrypted ones give rubbish."""
    cfg = whole_model(family)
    if family in ('beit', 'mae'):  # which run at one size only
        cfg.backbone.img_size = (128, 128)
    model = build(cfg)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plan = plan_patches(model)
    assert {entry.patch for entry in plan.entries} == {4 if family in ('swin', 'twins') else 16}
    proof = proved(model, plan)
    assert list(proof.without) == ['plain images', 'encrypted with another key']
    assert all(found.error > 0.3 and not found.is_equal for found in proof.without.values())
    assert proof.with_key.error < 1e-4 and proof.with_key.is_equal and proof.with_key.same > 0.999
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    back = unlock(locked_by(plan, before), KEY)
    assert list(back) == list(before)
    exact = [name for name in before if torch.equal(back[name], before[name])]
    rounded = {e.weight for e in plan.entries} | {e.offset for e in plan.entries}
    assert set(before) - set(exact) == (set() if family == 'segmenter' else rounded)
    assert all(torch.allclose(back[name], before[name], rtol=1e-5, atol=1e-5) for name in rounded)


@pytest.mark.parametrize(
    'family, why', [('segformer', 'kernel.*overlap'), ('fcn', 'overlap'), ('poolformer', 'overlap')]
)
def test_models_without_blocks_of_their_own_are_refused(family, why):
    model = plain_or_skip(family, small_model(family), 64)
    with pytest.raises(LockError, match=why):
        plan_patches(model)


def test_other_readers_of_the_image_are_refused():
    class Peeks(MODELS.get('VisionTransformer')):
        def forward(self, inputs):
            return tuple(x + inputs.mean() for x in super().forward(inputs))

    model = build(small_model('setr'))
    model.backbone.__class__ = Peeks
    with pytest.raises(LockError, match='mean in backbone.*more than patch embeddings'):
        plan_patches(model)


@pytest.mark.parametrize(
    'changes', [dict(bgr_to_rgb=False), dict(bgr_to_rgb=False, rgb_to_bgr=True), dict(mean=None, std=None)]
)
def test_normalisations(changes):
    """The order of the channels, and having no normalisation, are found out and absorbed too."""
    cfg = small_model('segmenter')
    cfg.data_preprocessor.update({'mean': [100.0, 120.0, 90.0], 'std': [50.0, 60.0, 70.0], **changes})
    model = build(cfg)
    order, mean, std = normalisation(model)
    assert order == ('bgr' if changes == dict(bgr_to_rgb=False) else 'rgb')
    assert (mean, std) == (
        ((0.0,) * 3, (1.0,) * 3) if 'mean' in changes else ((100.0, 120.0, 90.0), (50.0, 60.0, 70.0))
    )
    proof = proved(model, plan_patches(model))
    assert all(found.error > 0.1 for found in proof.without.values())
    assert proof.with_key.error < 1e-4


def test_a_preprocessor_that_does_more_is_refused():
    model = build(small_model('setr'))
    assert normalisation(model)[0] == 'rgb'

    class Gamma(type(model.data_preprocessor)):
        def forward(self, data, training=False):
            return {'inputs': super().forward(data, training)['inputs'] ** 2}

    model.data_preprocessor.__class__ = Gamma
    with pytest.raises(LockError, match='Gamma of this model does more'):
        normalisation(model)


def test_an_embedding_without_bias_and_with_a_norm_has_no_room():
    cfg = whole_model('setr')
    cfg.backbone.patch_norm = True
    model = build(cfg)
    plan = plan_patches(model)
    assert plan.entries[0].offset == ''
    with pytest.raises(LockError, match='--permute channel --no-negate'):
        locked_by(plan, model.state_dict())
    proof = proved(model, plan_patches(model, 'channel', False))
    assert proof.without['plain images'].error > 0.1 and proof.with_key.error < 1e-4


def test_misaligned():
    cfg = small_model('setr')
    cfg.test_cfg = dict(mode='slide', crop_size=(512, 512), stride=(341, 341))
    model = build(cfg)
    (problem,) = misaligned(model, 16)
    assert 'stride (341, 341)' in problem and '(336, 336)' in problem
    with pytest.raises(LockError, match='stride .*cut blocks of 16 pixels'):
        plan_patches(model)
    assert len(misaligned(model, 48)) == 2
    model.test_cfg.stride = (336, 336)
    assert misaligned(model, 16) == []
    assert plan_patches(model).entries
    model.data_preprocessor.test_cfg = dict(size_divisor=32)
    assert 'ResizeToMultiple' in misaligned(model, 16)[0]
    model.data_preprocessor.test_cfg = dict(size_divisor=8)
    assert misaligned(model, 16) == []


@pytest.fixture(scope='module')
def locked_file(tmp_path_factory):
    path = tmp_path_factory.mktemp('locked') / 'locked.pth'
    model = build(whole_model('setr'))
    locked = lock(model.state_dict(), model, KEY, scheme='patches', salt=SALT)
    torch.save({'state_dict': locked}, path)
    return path


def test_a_host_without_a_key_loads_it_and_is_told_what_it_wants(locked_file, caplog, capsys):
    model = MODELS.build(small_model('setr'))
    with caplog.at_level(logging.WARNING):
        load_checkpoint(model, str(locked_file), logger=logging.getLogger('host'))
    assert f'takes_images_encrypted_with_key_{KEY.id}' in caplog.text + capsys.readouterr().out
    stored = torch.load(locked_file)['state_dict']
    assert torch.equal(model.backbone.patch_embed.projection.weight, stored['backbone.patch_embed.projection.weight'])


@pytest.mark.parametrize(
    'options', [{}, {'runtime': 'plain'}, {'points': 'checkpoint'}, {'points': 'linear', 'start': 'plain'}]
)
@pytest.mark.parametrize('locator', ['file', 'none', 'random:1'])
def test_keyed_says_that_it_is_the_wrong_kind(locked_file, key_file, locator, options):
    locator = f'file:{key_file}' if locator == 'file' else locator
    model = MODELS.build(keyed_cfg(small_model('setr'), locator, **options))
    with pytest.raises(PlanMismatchError, match='takes encrypted images.*plain config.*keyseg unlock'):
        load_checkpoint(model, str(locked_file))


def test_it_cannot_be_locked_at_points_too(locked_file):
    for scheme in ('features', 'tensors', 'patches'):
        with pytest.raises(LockError, match='takes encrypted images already'):
            lock(torch.load(locked_file)['state_dict'], MODELS.build(whole_model('setr')), KEY, scheme=scheme)


def test_scrambled_blocks_pass_the_backbone_and_not_the_head():
    """Why the order of blocks stays as it is: position embeddings can follow it, but heads read neighbouring tokens."""
    cfg = small_model('setr')
    model = build(cfg).eval()
    torch.nn.init.normal_(model.backbone.pos_embed)
    images, order = torch.rand(1, 3, 64, 64), torch.from_numpy(np.random.default_rng(0).permutation(16))

    def scrambled(x: torch.Tensor, size: int) -> torch.Tensor:
        blocks = x.unfold(2, size, size).unfold(3, size, size).flatten(2, 3)[:, :, order]
        return blocks.unflatten(2, (4, 4)).permute(0, 1, 2, 4, 3, 5).reshape(x.shape)

    twin = copy.deepcopy(model)
    twin.backbone.pos_embed.data[:, 1:] = model.backbone.pos_embed.data[:, 1:][:, order]
    with torch.no_grad():
        plain, other = model.extract_feat(images), twin.extract_feat(scrambled(images, 16))
        logits, theirs = model.decode_head(plain), twin.decode_head(other)
    assert gap(plain[-1], other[-1]) > 0.1
    size = logits.shape[2] // 4
    if model.with_neck:  # which mixes neighbours already; the backbone itself does not
        plain, other = model.backbone(images), twin.backbone(scrambled(images, 16))
    assert all(gap(scrambled(a, 1), b) < 1e-4 for a, b in zip(plain, other))
    assert gap(scrambled(logits, size), theirs) > 0.05
