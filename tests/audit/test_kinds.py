"""Audits of what is no channel map: encrypted weights, encrypted images, and block-wise transforms of feature maps."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch

from keyseg_mm import SecretKey, attach, detach, entries_at, find_leaks, lock
from keyseg_mm.audit.engine.attack import Budget, ModelSuite
from keyseg_mm.audit.model import audit as suite
from keyseg_mm.audit.model.attack import ALL, ATTACKS, Case, LabelledPhotos, PublicWeights, Target
from keyseg_mm.audit.model.attacks.substitutes import in_blocks
from keyseg_mm.audit.model.forward import ImageEncryption, Pixels, predict
from keyseg_mm.audit.model.referee import Referee, encryption
from keyseg_mm.audit.model.training import Recipe, train
from keyseg_mm.bind import derive_cipher, stamp_tensor
from keyseg_mm.checkpoint.files import write_checkpoint
from keyseg_mm.cli import main
from keyseg_mm.entries import ImageEntry
from keyseg_mm.mm.config import read_config
from keyseg_mm.mm.dryrun import trace_module
from keyseg_mm.stamp import Stamp, is_stamp, stamps_of
from keyseg_mm.wrapping import memory_stamp
from tests.support.audits import CLASSES, build, errors_in, names_in, scenes, small_model_cfg
from tests.support.configs import runner_cfg
from tests.support.families import build as build_family
from tests.support.families import small_model

KEY = SecretKey(bytes(range(32)))
CPU = torch.device('cpu')
SALT = bytes(16)  # so that nothing of it is chance
# Blocks of which a few colours depend on everything: with others the model makes do with what is left plain of them.
BLOCK = {'SHF': 1, 'NP': 2, 'FFX': 1}
SHOWN = scenes(6, seed=2)
LONG = Budget(60, 60.0)


def to_case(state, *more, budget=LONG) -> Case:
    """What an attacker has of a state_dict with its stamp, labelled photos and more grants."""
    stamps = stamps_of(state)
    weights = {name: value for name, value in state.items() if not is_stamp(name)}
    model, plan = build(), stamps['']
    sites = {str(point): site for point, site in trace_module(model).sites.items()}
    images = tuple(ImageEncryption(entry, Pixels.of(model)) for entry in (*plan.images, *plan.embeddings))
    return Case(plan, weights, build, CLASSES, sites, grants=(scenes(8, seed=1), *images, *more), budget=budget)


def judged(case, name, key=KEY):
    """An attack's attempt, its score, and the referee."""
    referee = Referee(key, case.stamp, case, SHOWN)
    assert ATTACKS[name].possible(case)
    attempt = ATTACKS[name]().run(case, lambda share, words: None)
    return attempt, referee.judge(attempt)[0], referee


@pytest.fixture(scope='module')
def by_blocks():
    """State_dicts with their stamps of models trained with a block-wise transform, by its name."""
    found = {}
    for name in ('BlockShuffle', 'NegativePositive'):
        model = build()
        site = next(s for p, s in trace_module(model).sites.items() if str(p) == 'out:backbone:0')
        attach(model, KEY, [site], entries_at([site], {'type': name, 'block': 2}), salt=SALT)
        train(model, scenes(16), Recipe(80, 5e-3, crop=1.0))
        found[name] = {n: v.clone() for n, v in model.state_dict().items()}
        detach(model)
    return found


def encryption_of(method: str, block: int) -> ImageEncryption:
    return ImageEncryption(ImageEntry(method, block), Pixels.of(build()))


@pytest.fixture(scope='module')
def by_images():
    """State_dicts with their stamps of models trained on encrypted images, by method."""
    found = {}
    for method in ('SHF', 'NP', 'FFX'):
        model, photos = build(), scenes(16)
        images = encryption_of(method, BLOCK[method])
        encrypted = dataclasses.replace(photos, images=encryption(KEY, SALT, images)(photos.images))
        train(model, encrypted, Recipe(80, 5e-3, crop=1.0))
        stamp = Stamp(KEY.id, SALT, (images.entry,))
        found[method] = {**{n: v.clone() for n, v in model.state_dict().items()}, stamp.name: stamp_tensor(stamp)}
    return found


def locked(plain, transform):
    """Weights locked by one of the schemes that encrypt parameters."""
    how = {'TensorPermutation': {'scheme': 'tensors'}, 'SelectiveEncryption': {'scheme': 'selective', 'share': 0.2}}
    return lock(plain, build(), KEY, salt=SALT, **how[transform])


# --- kinds and referees


def test_a_case_knows_what_is_encrypted(plain, by_blocks, by_images):  # noqa: F811
    model = build()
    kinds = {
        Target.MAPS: to_case(lock(plain, model, KEY, salt=SALT)).target,
        Target.BLOCKS: to_case(by_blocks['BlockShuffle']).target,
        Target.WEIGHTS: to_case(lock(plain, model, KEY, salt=SALT, scheme='tensors')).target,
        Target.IMAGES: to_case(by_images['SHF']).target,
    }
    assert kinds == {kind: kind for kind in ALL}


def test_every_attack_says_what_it_is_against():
    assert all(cls.against and cls.against <= ALL for cls in ATTACKS.values())
    assert {kind for cls in ATTACKS.values() if len(cls.against) == 1 for kind in cls.against} == ALL


@pytest.mark.parametrize(
    'what', ['BlockShuffle', 'NegativePositive', 'TensorPermutation', 'SelectiveEncryption', 'SHF', 'NP', 'FFX']
)
def test_the_true_key_scores_full_marks_and_a_random_one_does_not(what, plain, by_blocks, by_images):  # noqa: F811
    if what in by_blocks:
        case = to_case(by_blocks[what])
    elif what in by_images:
        case = to_case(by_images[what])
    else:
        case = to_case(locked(plain, what))
    referee = Referee(KEY, case.stamp, case, SHOWN)
    assert referee.full.miou > 60 and referee.full.agreement == 100
    good, bad = referee.positive_control(), referee.negative_control(0)
    assert good.passed and good.score.miou == pytest.approx(referee.full.miou, abs=0.1)
    assert bad.passed and bad.score.miou < good.score.miou - 3


def test_weights_come_back_bit_for_bit_for_the_referee(plain):  # noqa: F811
    case = to_case(locked(plain, 'TensorPermutation'))
    found = Referee(KEY, case.stamp, case, SHOWN).model_with(KEY).state_dict()
    assert all(torch.equal(found[name], plain[name]) for name in plain)
    assert any(not torch.equal(case.weights[name], plain[name]) for name in plain)


@pytest.mark.parametrize('method', ['SHF', 'NP', 'FFX'])
def test_the_referee_encrypts_as_the_pipeline_does(method):
    images = encryption_of(method, 4)
    bytes_ = torch.randint(0, 256, (2, 10, 14, 3), dtype=torch.uint8)  # as the host reads them: blue first
    cipher = derive_cipher(KEY, SALT, images.entry)
    wanted = torch.stack([torch.from_numpy(cipher.encrypt(image.numpy())) for image in bytes_])
    normalised = images.pixels.normalised(bytes_.permute(0, 3, 1, 2).float())
    found = images.pixels.values(encryption(KEY, SALT, images)(normalised)).round().byte().permute(0, 2, 3, 1)
    assert torch.equal(found, wanted) and not torch.equal(found, bytes_)


def test_blocks_are_cut_and_put_together_again():
    x, seen = torch.randn(2, 3, 10, 13), []
    same = in_blocks(x, 4, lambda blocks: seen.append(blocks) or blocks)
    assert torch.equal(same, x) and seen[0].shape == (2, 2, 3, 48)
    assert torch.equal(seen[0][0, 1, 2], x[0, :, 4:8, 8:12].flatten())
    changed = in_blocks(x, 4, torch.neg)
    assert torch.equal(changed[:, :, :8, :12], -x[:, :, :8, :12])
    assert torch.equal(changed[:, :, 8:], x[:, :, 8:]) and torch.equal(changed[..., 12:], x[..., 12:])


# --- each attack breaks what it is known to break


@pytest.mark.parametrize('what', ['TensorPermutation', 'SelectiveEncryption'])
def test_ranks_of_public_weights_undo_any_order(what, plain):  # noqa: F811
    draw = torch.Generator().manual_seed(0)
    near = {
        n: v + 1e-7 * torch.randn(v.shape, generator=draw) if v.is_floating_point() else v for n, v in plain.items()
    }
    case = to_case(locked(plain, what), PublicWeights(near))
    _, score, referee = judged(case, 'rank-matching')
    assert predict(case.model(), SHOWN.images).ne(referee.authorised).float().mean() > 0.1  # or nothing was undone
    assert score.agreement > 99


@pytest.mark.parametrize('name', ['BlockShuffle', 'NegativePositive'])
def test_a_single_early_block_transform_falls_to_a_substitute(name, by_blocks):
    case = to_case(by_blocks[name])
    attempt, score, referee = judged(case, 'substitute-blocks')
    bare, _ = referee.judge(type(attempt)())
    assert bare.miou < referee.full.miou - 10  # or there was nothing to break
    assert score.miou > bare.miou + 0.5 * (referee.full.miou - bare.miou)


@pytest.mark.parametrize('method', ['SHF', 'NP', 'FFX'])
def test_a_weak_encryption_of_images_falls_to_a_substitute(method, by_images):
    case = to_case(by_images[method])
    attempt, score, referee = judged(case, 'substitute-cipher')
    bare, _ = referee.judge(type(attempt)())
    assert bare.miou < referee.full.miou - 3  # or there was nothing to break
    assert score.miou > bare.miou + 0.5 * (referee.full.miou - bare.miou)


def test_a_locked_patch_embedding_falls_to_public_weights():
    cfg = small_model('setr')
    cfg.test_cfg = dict(mode='whole')  # windows of its stride would cut through blocks

    def make():
        torch.manual_seed(3)
        return build_family(cfg).eval()

    model = make()
    state = lock(model.state_dict(), model, KEY, salt=SALT, scheme='patches')
    weights = {name: value for name, value in state.items() if not is_stamp(name)}
    draw = torch.Generator().manual_seed(0)
    public = {
        n: v + 1e-3 * v.std() * torch.randn(v.shape, generator=draw)
        for n, v in model.state_dict().items()
        if v.numel() > 1
    }
    plan = stamps_of(state)['']
    images, classes = ImageEncryption(plan.embeddings[0], Pixels.of(model)), cfg.decode_head.num_classes
    case = Case(plan, weights, make, classes, grants=(PublicWeights(public), images))
    shown = LabelledPhotos(SHOWN.images, SHOWN.labels.clamp(max=classes - 1))
    referee = Referee(KEY, plan, case, shown)
    plainly = predict(make(), images.pixels.normalised(images.pixels.values(shown.images).round().clamp(0, 255)))
    assert (referee.authorised == plainly).float().mean() > 0.99  # encrypted images into the locked model
    attempt = ATTACKS['match-patches']().run(case, lambda share, words: None)
    bare, _ = referee.judge(type(attempt)())
    assert referee.judge(attempt)[0].agreement > 95 > bare.agreement


def test_attacks_keep_to_a_budget_of_no_time(plain, by_blocks, by_images):  # noqa: F811
    none = Budget(3, 0.0)
    cases = {
        'rank-matching': to_case(locked(plain, 'TensorPermutation'), PublicWeights(plain), budget=none),
        'substitute-blocks': to_case(by_blocks['BlockShuffle'], budget=none),
        'substitute-cipher': to_case(by_images['SHF'], budget=none),
    }
    for name, case in cases.items():
        attempt, score, _ = judged(case, name)
        assert attempt.exhausted or name == 'rank-matching', name
        assert score.miou >= 0


# --- from files to a report


def audit_files(folder, checkpoint, config, key_file, *more):
    arguments = ['audit', str(config), str(checkpoint), '--key', f'file:{key_file}', '--suite', 'quick']
    status = main([*arguments, '--out', str(folder / 'out'), '--device', 'cpu', *map(str, more)])
    path = folder / 'out' / 'report.json'
    return status, json.loads(path.read_text()) if path.exists() else None


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(suite, 'SUITES', {'quick': ModelSuite(3, 20.0, 3, 4, 64, (0.5,))})


def test_a_file_with_encrypted_weights_is_audited(trained_on_files, tmp_path, key, key_file, short, capsys):  # noqa: F811
    config, weights = trained_on_files
    write_checkpoint(tmp_path / 'locked.pth', lock(weights, build(), key, salt=SALT, scheme='tensors'), {})
    torch.save({'state_dict': weights}, tmp_path / 'public.pth')
    public = '--public', tmp_path / 'public.pth'
    _, report = audit_files(tmp_path, tmp_path / 'locked.pth', config, key_file, *public)
    assert report['target'] == 'weights' and report['places'][0]['values'] > 1000
    assert report['positive']['passed'] and report['negative']['passed']
    assert not errors_in(report['outcomes'])
    tried = {'finetune-all', 'finetune-head', 'finetune-norm', 'rank-matching'}
    assert names_in(report['outcomes'], 'attack') == tried
    ranks = next(one['score'] for one in report['outcomes'] if one['about']['name'] == 'rank-matching')
    assert ranks['miou'] == pytest.approx(report['authorised']['miou'], abs=0.5)
    assert ranks['miou'] > report['no_key']['miou'] + 5
    page = (tmp_path / 'out' / 'report.html').read_text()
    assert 'TensorPermutation' in page and 'None' not in page
    said = capsys.readouterr()
    assert audit_files(tmp_path, tmp_path / 'locked.pth', config, key_file, '--second', tmp_path / 'locked.pth')[0] == 1
    assert '--second is for models with encrypted feature maps' in capsys.readouterr().err + said.err


def test_a_model_of_encrypted_images_is_audited(tiny_cityscapes, tmp_path, key, key_file, short):
    stamp = Stamp(key.id, SALT, (ImageEntry('SHF', 2),))
    cfg = runner_cfg(tiny_cityscapes, tmp_path / 'work', small_model_cfg())
    step = dict(type='keyseg_mm.EncryptImage', method='SHF', block=2, key=f'file:{key_file}')
    for part in ('train', 'val', 'test'):
        cfg[f'{part}_dataloader'].dataset.pipeline.insert(-1, dict(step))
    cfg.dump(str(tmp_path / 'images.py'))
    state = build().state_dict()
    state[stamp.name] = stamp_tensor(memory_stamp(key, stamp, key.features(SALT)))
    write_checkpoint(tmp_path / 'trained.pth', state, {})
    _, report = audit_files(tmp_path, tmp_path / 'trained.pth', tmp_path / 'images.py', key_file)
    assert report['target'] == 'images' and report['places'][0]['transform'] == {'type': 'SHF', 'block': 2}
    assert report['positive']['passed'] and report['negative']['passed']
    assert not errors_in(report['outcomes'])
    assert 'substitute-cipher' in names_in(report['outcomes'])
    assert not find_leaks(tmp_path / 'out', key, [])
    shutil.rmtree(tmp_path / 'out')
    write_checkpoint(tmp_path / 'untold.pth', build().state_dict(), {})
    status, report = audit_files(tmp_path, tmp_path / 'untold.pth', tmp_path / 'images.py', key_file)
    assert status == 1 and report is None


def test_photos_of_an_audit_are_plain(tiny_cityscapes, tmp_path, key_file):
    from keyseg_mm.audit.model.loading import PhotoSource

    cfg = runner_cfg(tiny_cityscapes, tmp_path / 'work', small_model_cfg())
    cfg.dump(str(tmp_path / 'plain.py'))
    for part in ('train', 'test'):
        step = dict(type='keyseg_mm.EncryptImage', method='SHF', block=2, key=f'file:{key_file}')
        cfg[f'{part}_dataloader'].dataset.pipeline.insert(-1, step)
    cfg.dump(str(tmp_path / 'images.py'))
    a, b = (PhotoSource(read_config(tmp_path / f), 'test', build()).load([0], CPU) for f in ('plain.py', 'images.py'))
    assert torch.equal(a.images, b.images)
