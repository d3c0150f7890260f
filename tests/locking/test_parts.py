"""Models and files without a part that was protected: its points are left out, and that is said."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from mmseg.registry import MODELS

from keyseg_mm import lock, rekey, save, stamps_of, unlock
from keyseg_mm.cli import main
from keyseg_mm.entries import MapEntry
from keyseg_mm.errors import KeysegError
from keyseg_mm.locking.parts import fitted
from keyseg_mm.stamp import Stamp
from tests.support.configs import keyed_cfg, normed_model, tiny_model_cfg

PARTS = ('', 'backbone', 'backbone.conv', 'head', 'head.conv', 'aux', 'aux.0', 'aux.0.conv', 'aux.1', 'aux.1.conv')
SPEC = {'type': 'ChannelPermutation'}


def entries(*rows):
    return tuple(MapEntry(point, 8, SPEC, tuple(weights)) for point, *weights in rows)


ROWS = {
    # entry: what is left without all of aux; without aux.1; without head
    ('in:head.conv',): (1, 1, 0),
    ('in:aux.1.conv', 'aux.1.conv.weight'): (0, 0, 1),
    ('in:aux.0.conv',): (0, 1, 1),
    ('out:backbone',): (1, 1, 1),
    ('out:backbone', 'head.conv.weight', 'aux.0.conv.weight'): (1, 1, 1),
    ('out:backbone', 'aux.1.conv.weight'): (0, 0, 1),
    ('out:aux.1',): (0, 0, 1),
    ('out:.',): (1, 1, 1),
    ('out:head',): (1, 1, 1),  # who reads it is not known: an error when it is looked for
}


@pytest.mark.parametrize('row', ROWS)
def test_which_points_are_of_absent_parts(row):
    stamp = Stamp('ks1', bytes(16), (*entries(row), MapEntry('in:backbone.conv', 8, SPEC)))
    for gone, left in zip(('aux', 'aux.1', 'head'), ROWS[row]):
        names = [name for name in PARTS if not f'{name}.'.startswith(f'{gone}.')]
        fit, absent = fitted(stamp, names)
        assert len(fit.maps) == 1 + left and absent == [row[0]] * (not left)
        assert all(name.startswith(tuple(names[1:])) for name in fit.maps[0].weights)
    assert fitted(stamp, PARTS) == (stamp, [])
    assert fitted(stamp, ['else']) == (stamp, []) or 'out:' in row[0]


def build(key_file, aux, **protection):
    return MODELS.build(keyed_cfg(tiny_model_cfg(aux=aux), f'file:{key_file}', **protection)).eval()


def logits(model, image):
    with torch.no_grad():
        return model(image)


LINEAR = dict(points='linear', transform='SignedChannelPermutation')
HOW = {'linear': LINEAR, 'checkpoint': dict(points='checkpoint'), 'plain': dict(runtime='plain')}
SLIM = {'whole file': False, 'file without the part': True}


@pytest.mark.parametrize('how', HOW)
@pytest.mark.parametrize('made', ['trained', 'locked'])
@pytest.mark.parametrize('slim', SLIM)
def test_a_model_runs_without_its_auxiliary_head(slim, made, how, key, key_file, image, caplog):
    if made == 'locked':
        plain = normed_model()
        want, content = logits(plain, image), lock(plain.state_dict(), plain, key)
    else:
        torch.manual_seed(0)
        keyed = build(key_file, True, **LINEAR)
        want, content = logits(keyed, image), dict(keyed.state_dict())
    if SLIM[slim]:
        content = {name: value for name, value in content.items() if not name.startswith('auxiliary_head')}
    torch.manual_seed(1)
    model = build(key_file, False, **HOW[how])
    if how != 'linear' or made == 'trained':  # what is locked has no point at layers that a preset leaves out
        with caplog.at_level(logging.WARNING):
            model.load_state_dict(content, strict=False)
        assert torch.allclose(logits(model, image), want, atol=1e-4)
        assert 'in:auxiliary_head.conv_seg' in caplog.text
    other = build(key_file, False, points='linear', transform='ChannelPermutation')
    with pytest.raises(KeysegError, match='protected otherwise'):
        other.load_state_dict(content, strict=False)


def test_files_without_a_part_are_turned_and_shown(key, other_key, key_file, image, tmp_path, capsys):
    plain = normed_model()
    locked = lock(plain.state_dict(), plain, key)
    slim = {name: value for name, value in locked.items() if not name.startswith('auxiliary_head')}
    opened = unlock(slim, key)
    assert all(torch.equal(opened[name], plain.state_dict()[name]) for name in opened)
    turned = rekey(slim, key, other_key)
    assert len(stamps_of(turned)[''].maps) == len(stamps_of(locked)[''].maps) - 2
    model = build(key_file, True, points='checkpoint')
    model.load_state_dict(locked)
    del model.auxiliary_head
    slim_model = build(key_file, False, points='checkpoint')
    slim_model.load_state_dict(copy.deepcopy(slim))
    save(slim_model, tmp_path / 'slim.pth')
    torch.save({'state_dict': slim}, tmp_path / 'by_hand.pth')
    for name, words in (('slim.pth', 0), ('by_hand.pth', 2)):
        assert main(['show', str(tmp_path / name)]) == 0
        assert capsys.readouterr().out.count('  absent  in:auxiliary_head') == words
