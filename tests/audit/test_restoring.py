"""Attacks on encrypted images: each breaks what it is known to break, between controls, and no secret gets out."""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from scipy.ndimage import gaussian_filter

import keyseg_mm.audit as package
from keyseg_mm import SecretKey, find_leaks, write_key_file
from keyseg_mm.audit.engine.attack import IMAGE_SUITES, Budget, Suite
from keyseg_mm.audit.engine.audit import audit
from keyseg_mm.audit.engine.datasets import common_size
from keyseg_mm.audit.engine.runner import Failure, Run, Runner, Scenario, to_json
from keyseg_mm.audit.images.attack import (
    ATTACKS,
    CONTROLS,
    ImageAttack,
    ImageCase,
    KnownPairs,
    OwnPhotos,
    Restored,
    Scheme,
    cut,
    register,
)
from keyseg_mm.audit.images.audit import ImageOrder, set_up, summarise
from keyseg_mm.audit.images.referee import ImageReferee, similarity, ssim
from keyseg_mm.audit.report.page import render
from keyseg_mm.bind import derive_cipher, stamp_tensor
from keyseg_mm.cli import main
from keyseg_mm.entries import EmbeddingEntry, ImageEntry
from keyseg_mm.errors import KeysegError, SecretExposedError
from keyseg_mm.locking.engine import lock_in_place
from keyseg_mm.locking.scheme import Plan
from keyseg_mm.mm.scenes import make_scene, write_scenes
from keyseg_mm.seal.sections import Sealing, seal_checkpoint
from keyseg_mm.stamp import SALT_BYTES, Stamp
from keyseg_mm.wrapping import memory_stamp
from tests.support.audits import errors_in, names_in
from tests.support.pages import PHONE, SCREEN, Page, look

KEY = SecretKey(bytes(range(32)))
SALT = bytes(range(SALT_BYTES))
TINY = Suite(12, 20.0, 6, 8, 96)
AUDIT = Path(package.__file__).parent


def scheme(method, block):
    if method in ('SHF', 'NP', 'FFX'):
        return Scheme(method, block, salt=SALT.hex(), key_id=KEY.id)
    permute, negate = {'patches': ('all', True), 'channel': ('channel', False), 'signs': ('none', True)}[method]
    return Scheme('PATCH', block, permute, negate, SALT.hex(), KEY.id)


def stamp(method, block):
    return Stamp(KEY.id, SALT, (ImageEntry(method, block, SALT.hex()),))


@pytest.fixture(scope='module')
def scenes():
    """Made photos, as smooth as photos are: those under attack, and the attacker's."""
    made = [
        np.stack([make_scene(1, split, i)[0] for i in range(count)]) for split, count in (('val', 6), ('train', 10))
    ]
    return [gaussian_filter(x, (0, 0.8, 0.8, 0)) for x in made]


def setting(scenes, method, block, public=True, budget=Budget(40, 30.0)):  # noqa: B008
    """A referee, and a case with all that an attacker may hold but pairs."""
    attacked, photos = scenes
    referee = ImageReferee(KEY, scheme(method, block), attacked)
    grants = (OwnPhotos(photos),) if public else ()
    return referee, ImageCase(referee.scheme, referee.encrypted, grants=grants, budget=budget)


def attack(name, referee, case):
    score = referee.judge({**CONTROLS, **ATTACKS}[name]().run(case, lambda share, words: None))
    return score, score.found


# --- the model of ciphers


@pytest.mark.parametrize(('method', 'found'), [
    ('SHF', ('all', False, False)), ('NP', ('none', True, False)), ('FFX', ('none', False, True)),
    ('patches', ('all', True, False)), ('channel', ('channel', False, False)), ('signs', ('none', True, False)),
])  # fmt: skip
def test_what_is_known_of_a_scheme_is_what_its_cipher_does(method, found):
    about, rng = scheme(method, 4), np.random.default_rng(0)
    assert (about.moves, about.negates, about.maps_bytes) == found
    x = rng.integers(0, 256, (1, 64, 96, 3), dtype=np.uint8)
    before, after = (cut(y, 4).reshape(-1, 48) for y in (x, ImageReferee(KEY, about, x).encrypted))
    folded = [np.minimum(y, 255 - y) for y in (before, after)] if about.negates else [before, after]
    assert (before != after).mean() > 0.3
    assert np.array_equal(*(np.sort(y, axis=1) for y in folded)) == (not about.maps_bytes)
    assert np.array_equal(*(folded)) == (about.moves == 'none' and not about.maps_bytes)


def test_the_number_of_ciphers_is_exact():
    for method, block, count in (
        ('SHF', 1, 6), ('SHF', 2, math.factorial(12)), ('NP', 2, 924), ('NP', 1, 3), ('signs', 2, 2**12),
        ('FFX', 1, 3 * math.factorial(256)), ('channel', 2, 24**3), ('patches', 2, math.factorial(12) * 2**12),
    ):  # fmt: skip
        assert scheme(method, block).ciphers == pytest.approx(math.log2(count)), (method, block)


def test_images_of_parts_of_blocks_are_refused():
    with pytest.raises(KeysegError, match='whole blocks'):
        cut(np.zeros((1, 9, 8, 3), np.uint8), 4)


# --- scores


def test_scores_are_those_of_scikit_image():
    """By scikit-image 0.26: structural_similarity(a, b, channel_axis=2, gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, data_range=255) and peak_signal_noise_ratio(a, b, data_range=255)."""
    rng = np.random.default_rng(0)
    a = np.kron(rng.integers(0, 256, (6, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    b = np.clip(a + rng.normal(0, 20, a.shape), 0, 255).astype(np.uint8)
    assert ssim(a, b) == pytest.approx(0.7943255524451757, abs=1e-9)
    assert similarity(a[None], b[None]).psnr == pytest.approx(22.550578424542028, abs=1e-9)
    same = similarity(a[None], a[None])
    assert (same.psnr, same.ssim, same.exact) == (math.inf, pytest.approx(1), 1) and to_json(same)['psnr'] is None
    with pytest.raises(KeysegError, match='compared'):
        similarity(a[None], b[None, :8])
    with pytest.raises(KeysegError, match='float'):
        similarity(a[None].astype(float), b[None])


# --- attacks


@pytest.mark.parametrize('block', [1, 4, 16])
@pytest.mark.parametrize('method', ['SHF', 'NP', 'FFX'])
def test_one_known_pair_gives_the_cipher_away(scenes, method, block):
    referee, case = setting(scenes, method, block)
    pair = referee.pairs(np.random.default_rng(0).integers(0, 256, (1, 96, 192, 3), dtype=np.uint8))
    score, found = attack('known-pairs', referee, case.granting(pair))
    assert score.psnr == math.inf and score.ssim == pytest.approx(1) and score.exact == 1
    assert found == 1


@pytest.mark.parametrize('method', ['patches', 'channel', 'signs'])
def test_one_known_photo_opens_the_images_of_vision_transformers(scenes, method):
    referee, case = setting(scenes, method, 8)
    case = case.granting(referee.pairs(scenes[1][:2]))
    score, found = attack('known-pairs', referee, case)
    assert score.psnr > 40 and found > 0.9


@pytest.mark.parametrize('public', [True, False])
@pytest.mark.parametrize(('method', 'block'), [('NP', 1), ('NP', 4), ('NP', 16), ('signs', 4)])
def test_negated_places_fall_to_correlation_signs(scenes, method, block, public):
    referee, case = setting(scenes, method, block)
    score, found = attack('correlation-signs', referee, case)
    assert score.psnr == math.inf and found == 1


@pytest.mark.parametrize(('method', 'block'), [('SHF', 2), ('SHF', 4), ('SHF', 8), ('patches', 4), ('channel', 8)])
def test_moved_values_fall_to_a_comparison_with_photos(scenes, method, block):
    referee, case = setting(scenes, method, block)
    score, found = attack('neighbour-order', referee, case)
    assert score.ssim > 0.9 and (found > 0.85 or block == 2)  # so small, a mirrored block looks the same
    assert score.ssim > 0.2 + max(attack(name, referee, case)[0].ssim for name in CONTROLS)


def test_moved_values_fall_to_a_comparison_with_noise(scenes):
    referee, case = setting(scenes, 'SHF', 4, public=False)
    score, _ = attack('neighbour-order', referee, case)
    assert score.ssim > 0.7
    assert score.ssim > 0.2 + max(attack(name, referee, case)[0].ssim for name in ('as-is', 'flat'))


@pytest.mark.parametrize('block', [1, 4, 16])
def test_byte_maps_fall_to_interpolation(scenes, block):
    referee, case = setting(scenes, 'FFX', block, public=False)
    score, found = attack('byte-statistics', referee, case)
    assert score.psnr > 30 and score.ssim > 0.9 and found > 0.5


def test_attacks_that_draw_give_the_same_again(scenes):
    referee, case = setting(scenes, 'SHF', 8, public=False, budget=Budget(3, 60.0))
    first, second = (ATTACKS['neighbour-order']().run(case, lambda share, words: None).images for _ in range(2))
    assert np.array_equal(first, second)


def test_every_attack_says_what_the_report_shows():
    assert len(ATTACKS) == 4
    for found in (*ATTACKS.values(), *CONTROLS.values()):
        assert found.__doc__ and found.title and found.source and found.cost
    for changes, words in (({'source': ''}, 'source'), ({}, 'two attacks')):
        body = {'name': 'known-pairs', 'title': 'x', 'source': 'x', 'cost': 'x', **changes}
        with pytest.raises(KeysegError, match=words):
            register(type('Other', (ImageAttack,), body))


def test_attacks_do_not_know_the_referee():
    secret = (
        'referee',
        'suite',
        'runner',
        'keyseg_mm.keys.key',
        'keyseg_mm.bind',
        'keyseg_mm.images.cipher',
    )
    files = [*(AUDIT / 'images' / 'attacks').glob('*.py'), AUDIT / 'images' / 'attack.py']
    assert len(files) > 3
    for path in files:
        nodes = [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, (ast.Import, ast.ImportFrom))
        ]
        names = ' '.join(ast.unparse(node) for node in nodes)
        assert not any(word in names for word in secret), path


# --- cases, the referee and runs


def test_a_case_holds_no_secret(scenes):
    referee, case = setting(scenes, 'SHF', 4)
    cipher = derive_cipher(KEY, SALT, stamp('SHF', 4).images[0])
    for changes in ({'grants': (OwnPhotos(referee),)}, {'grants': (KnownPairs(cipher, cipher),)}, {'seed': KEY}):
        with pytest.raises(SecretExposedError):
            dataclasses.replace(case, **changes)


@pytest.mark.parametrize('method', ['SHF', 'NP', 'FFX', 'patches'])
def test_the_referee_checks_itself(scenes, method):
    referee, case = setting(scenes, method, 4)
    positive, negative = referee.positive_control(), referee.negative_control(0)
    assert positive.passed and positive.score.psnr == math.inf and positive.score.ssim == pytest.approx(1)
    assert negative.passed and negative.score.psnr < 25
    assert not np.array_equal(case.encrypted, scenes[0]) and 'KEY' not in repr(referee)


def test_the_referee_encrypts_as_the_pipeline_does(scenes):
    """The host's images are blue first, and so are those that EncryptImage numbers."""
    image = scenes[0][0]
    expected = derive_cipher(KEY, SALT, stamp('SHF', 4).images[0]).encrypt(np.ascontiguousarray(image[..., ::-1]))[
        ..., ::-1
    ]
    assert np.array_equal(ImageReferee(KEY, scheme('SHF', 4), scenes[0]).encrypted[0], expected)


def test_finished_runs_are_taken_over_and_failures_tried_again(scenes, tmp_path):
    calls = []

    class Counting(ImageAttack):
        """Counts."""

        name, title, source, cost = 'counting', 'counting', 'here', 'nothing'

        def run(self, case, progress):
            calls.append(case)
            if len(calls) == 1:
                raise ValueError('the first time')
            return Restored(case.encrypted)

    referee, case = setting(scenes, 'NP', 4)
    runner = Runner(referee, tmp_path, [0], bars=False)
    run = Run(Counting, Scenario('images', 'images', case))
    first = runner.run(run)
    assert isinstance(first, Failure) and first.error.startswith('ValueError: the first time')
    second, third = runner.run(run), runner.run(run)
    assert second == third and len(calls) == 2 and len(second.pictures) == 1
    other = Run(Counting, Scenario('images', 'images', dataclasses.replace(case, seed=1)))
    Runner(referee, tmp_path, [0], bars=False).run(other)
    assert len(calls) == 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class MadeOrder(ImageOrder):
    """Of made photos."""

    scenes: list

    def stage(self, key, say):
        return set_up(self, TINY, ImageReferee(key, scheme('SHF', 8), self.scenes[0]), *self.scenes)


def made_audit(scenes, folder):
    order = MadeOrder(config=Path('a.py'), key='none', out=folder, suite='quick', bars=False, scenes=scenes)
    return audit(order, KEY)[0]


@pytest.fixture(scope='module')
def report(scenes, tmp_path_factory):
    """A whole audit with next to no training, and its folder."""
    folder = tmp_path_factory.mktemp('audit')
    return made_audit(scenes, folder), folder


def test_a_whole_audit_says_what_falls(report):
    found, folder = report
    read = json.loads((folder / 'report.json').read_text())
    assert not errors_in(read['outcomes'])
    assert names_in(read['outcomes']) >= {'neighbour-order', 'known-pairs', 'as-is'}
    summary = summarise(found)
    assert summary.level == 'falls' and 'restored' in summary.verdict and 'known pairs' in summary.verdict
    assert [row.has for row in summary.advantages] == ['images', 'photos', 'pairs']
    assert summary.advantages[2].attack.about.name == 'known-pairs'
    assert read == {'format': found.FORMAT, **to_json(found), 'summary': to_json(summary)}


def test_an_interrupted_audit_goes_on(report, scenes, monkeypatch, tmp_path):
    found, folder = report
    folder = shutil.copytree(folder, tmp_path / 'again')  # others compare what is written there
    monkeypatch.setattr(Runner, 'attempt', lambda *args: pytest.fail('run again'))
    assert made_audit(scenes, folder).outcomes == found.outcomes


def test_nothing_secret_is_written(report, tmp_path):
    folder = shutil.copytree(report[1], tmp_path / 'searched')
    assert find_leaks(folder, KEY, [stamp('SHF', 8)]) == []
    order = derive_cipher(KEY, SALT, stamp('SHF', 8).images[0]).tables_of().order
    wrong = np.array2string(order[:40], separator=',')
    (folder / 'leak.txt').write_text(wrong.strip('[]').replace('\n', '').replace(' ', ''))
    assert find_leaks(folder, KEY, [stamp('SHF', 8)])  # the search would have found it
    (folder / 'leak.txt').unlink()


@pytest.mark.parametrize(
    ('ssims', 'level'),
    [((0.3, 0.31), 'holds'), ((0.3, 0.5), 'leaks'), ((0.3, 0.9), 'falls'), ((0.3, None), 'void')],
)
def test_the_verdict_goes_by_what_the_best_attack_without_pairs_has_over_the_best_control(report, ssims, level):
    found, _ = report
    kinds, outcomes = {'control': ssims[0], 'attack': ssims[1]}, []
    for result in found.outcomes:
        value = 1.0 if result.about.scenario.startswith('pairs') else kinds[result.about.kind]
        if value is None:
            outcomes.append(Failure(result.about, '', 1.0, 'ValueError: x'))
        else:
            score = dataclasses.replace(result.score, ssim=value, psnr=10.0, exact=0.0)
            outcomes.append(dataclasses.replace(result, score=score))
    changed = dataclasses.replace(found, outcomes=tuple(outcomes))
    summary = summarise(changed)
    assert summary.level == level and summary.change
    parsed = Page()
    parsed.feed(render(changed, summary))
    assert not parsed.open


def test_a_failed_check_voids_the_audit(report):
    found, _ = report
    untrue = dataclasses.replace(found, positive=dataclasses.replace(found.positive, passed=False))
    assert summarise(untrue).level == 'void'


# --- the page


def test_the_page_stands_alone_and_says_it_all(report):
    found, _ = report
    summary = summarise(found)
    page = render(dataclasses.replace(found, config='<b>x</b>.py'), summary)
    parsed = Page()
    parsed.feed(page)
    assert not parsed.open and all(address.startswith('data:image/png;base64,') for address in parsed.addresses)
    assert '<b>x</b>' not in page and '<script' not in page
    text = ' '.join(' '.join(parsed.texts).split())
    for words in (summary.verdict, *summary.means, *summary.change, *summary.warnings, '∞ dB'):
        assert words in text, words
    assert text.index(summary.verdict) < text.index('What everybody sees') < text.index('All runs')


@pytest.mark.parametrize('width', [PHONE, SCREEN])
def test_a_browser_shows_it_without_scrolling_sideways(browser, tmp_path, report, width):  # noqa: F811
    measures, picture = look(browser, tmp_path, render(report[0], summarise(report[0])), width)
    assert measures['client'] == width and measures['scroll'] <= width and not measures['wide'], measures
    assert len(measures['images']) >= 12 and all(measures['images'])
    assert (24, 35, 180) in {tuple(p) for p in picture[:400].reshape(-1, 3).tolist()}


# --- the command


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Made scenes as Cityscapes has them, and a key."""
    root = tmp_path_factory.mktemp('command')
    write_scenes(root / 'data', 0, {'train': 6, 'val': 5})
    write_key_file(root / 'my.key', KEY)
    return root


def config(root, name, *steps):
    """A config over those scenes whose test pipeline has these steps before PackSegInputs."""
    text = {
        'pipeline': [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), *steps, dict(type='PackSegInputs')]
    }
    loaders = {}
    for split, where in (('train', 'train'), ('test', 'val')):
        prefix = dict(img_path=f'leftImg8bit/{where}', seg_map_path=f'gtFine/{where}')
        dataset = dict(type='CityscapesDataset', data_root=str(root / 'data'), data_prefix=prefix, **text)
        loaders[f'{split}_dataloader'] = dict(dataset=dataset)
    path = root / f'{name}.py'
    Config(loaders).dump(str(path))
    return path


def step(**changes):
    return {'type': 'keyseg_mm.EncryptImage', 'method': 'NP', 'block': 8, 'key': 'env:NOT_SET', **changes}


def call(root, path, out, *options):
    key = () if '--key' in options else ('--key', f'file:{root}/my.key')
    return main(['audit', str(path), *options, *key, '--out', str(out), '--suite', 'quick'])


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(IMAGE_SUITES, 'quick', dataclasses.replace(TINY, steps=3))


def test_the_command_audits_the_images_of_a_config(folder, tmp_path, capsys, tiny):
    assert call(folder, config(folder, 'np', step()), tmp_path / 'out') == 4
    told = capsys.readouterr().out
    assert 'can be restored' in told and 'bit for bit' in told and 'report.html' in told
    found = json.loads((tmp_path / 'out/report.json').read_text())
    assert found['scheme']['key_id'] == KEY.id and (found['images'], found['photos']) == (5, 6)
    assert found['size'] == [48, 96]
    assert find_leaks(tmp_path, KEY, [Stamp(KEY.id, SALT, (ImageEntry('NP', 8),))]) == []
    assert str(folder) not in (tmp_path / 'out/report.json').read_text()


def test_the_command_audits_the_images_of_a_checkpoint(folder, tmp_path, capsys, tiny):
    tensors = {'embed.weight': torch.randn(8, 3, 8, 8), 'embed.bias': torch.randn(8)}
    entry = EmbeddingEntry('embed.weight', 'embed.bias', 0, 8, 'all', True, 'rgb', (127.5,) * 3, (50.0,) * 3)
    lock_in_place(tensors, Plan('patches', (entry,)), KEY, SALT)
    signed = seal_checkpoint({'state_dict': tensors, 'meta': {}}, Sealing(KEY, mode='signed'))
    torch.save(signed, tmp_path / 'locked.pth')
    plain = config(folder, 'plain')
    assert call(folder, plain, tmp_path / 'out', str(tmp_path / 'locked.pth'), '--images') == 4
    found = json.loads((tmp_path / 'out/report.json').read_text())
    expected = {'method': 'PATCH', 'block': 8, 'permute': 'all', 'negate': True, 'salt': SALT.hex(), 'key_id': KEY.id}
    assert found['scheme'] == expected
    signed['state_dict']['embed.bias'] = tensors['embed.bias'] + 1
    torch.save(signed, tmp_path / 'altered.pth')
    assert call(folder, plain, tmp_path / 'no', str(tmp_path / 'altered.pth'), '--images') == 1
    assert 'altered' in capsys.readouterr().err
    stamp, trained = Stamp(KEY.id, SALT, (ImageEntry('SHF', 4),)), {'w': torch.zeros(1)}
    trained[stamp.name] = stamp_tensor(memory_stamp(KEY, stamp, KEY.features(SALT)))
    torch.save({'state_dict': trained, 'meta': {}}, tmp_path / 'trained.pth')
    assert call(folder, config(folder, 'np', step()), tmp_path / 'no', str(tmp_path / 'trained.pth'), '--images') == 1
    assert 'audit one of them' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('steps', 'options', 'words'),
    [
        ((), (), 'encrypts no images'),
        ((step(), step(block=4)), (), 'more than once'),
        ((step(block=99),), (), 'from 1 to 64'),
        ((step(method='AES'),), (), 'there are SHF'),
        ((step(salt='12'),), (), 'salt'),
        ((dict(type='keyseg_mm.EncryptImage', method='PATCH', key='env:NOT_SET'),), (), 'encrypts no images'),
        ((step(),), ('--key', 'random:1'), 'real key'),
        ((step(),), ('--second', 'other.pth'), 'give CHECKPOINT'),
        ((step(),), ('--key', 'file:nowhere.key'), 'nowhere.key'),
    ],
)
def test_errors_say_what_is_missing(folder, tmp_path, capsys, steps, options, words):
    assert call(folder, config(folder, 'bad', *steps), tmp_path / 'out', *options) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_missing_photos_are_errors(folder, tmp_path, capsys):
    good = Config.fromfile(str(config(folder, 'np', step())))
    for changes, words in (
        ({'test_dataloader.dataset.data_root': str(tmp_path)}, 'check data_root'),
        (
            {'train_dataloader.dataset.data_prefix': good.test_dataloader.dataset.data_prefix},
            'among those under attack',
        ),
    ):
        changed = Config(good.to_dict())
        changed.merge_from_dict(changes)
        changed.dump(str(tmp_path / 'config.py'))
        assert call(folder, tmp_path / 'config.py', tmp_path / 'out') == 1
        assert words in capsys.readouterr().err
    good = Config({name: value for name, value in good.to_dict().items() if name != 'train_dataloader'})
    good.dump(str(tmp_path / 'config.py'))
    assert call(folder, tmp_path / 'config.py', tmp_path / 'out') == 1
    assert 'no train_dataloader' in capsys.readouterr().err


def test_sizes_are_whole_blocks():
    assert common_size((96, 192), 16, None, 2) == (96, 192) and common_size((360, 480), 16, 192, 2) == (144, 192)
    assert common_size((20, 20), 64, 192, 2) == (128, 128) and common_size((1024, 2048), 7, 192, 2) == (98, 189)
