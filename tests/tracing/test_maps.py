"""Whose copy a file is: by its stamp, or by its weights where that is gone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from keyseg_mm import lock, rekey, stamps_of, unlock
from keyseg_mm.bind import licensee_salt, stamp_tensor
from keyseg_mm.envelope import MODES
from keyseg_mm.errors import LockError
from keyseg_mm.seal.sections import Sealing, seal_checkpoint
from keyseg_mm.tracing import PLAIN, by_stamp, by_weights
from tests.support.configs import normed_model

TRANSFORMS = ['ChannelPermutation', 'SignedChannelPermutation', 'ChannelRotation']
NAMES = ['ACME Ltd', 'Bolt', 'Crux GmbH']


@pytest.fixture
def plain():
    return normed_model()


@pytest.fixture
def master(other_key):
    return other_key


def copy_for(name, owners, master):
    return rekey(owners, master, master.licensee(name), salt=licensee_salt(master, name, owners))


@pytest.mark.parametrize('transform', TRANSFORMS)
def test_a_stripped_and_fine_tuned_copy_is_traced(plain, master, transform):
    state = plain.state_dict()
    owners = lock(state, plain, master, transform=transform)
    found = copy_for('Bolt', owners, master)
    assert by_stamp(found, master, NAMES) == ('Bolt', True)
    assert by_stamp(found, master, ['ACME Ltd']) is None
    other = replace(stamps_of(found)[''], salt=bytes(16))
    assert by_stamp({**found, other.name: stamp_tensor(other)}, master, NAMES) == ('Bolt', False)

    stripped = {n: v for n, v in found.items() if n in state}
    assert by_stamp(stripped, master, NAMES) is None
    noise = torch.Generator().manual_seed(0)
    tuned = {
        n: v + 0.3 * v.std() * torch.randn(v.shape, generator=noise) if v.dim() > 1 else v for n, v in stripped.items()
    }
    for original in (state, owners):
        for suspect in (stripped, tuned):
            ranking = by_weights(suspect, original, master, NAMES)
            assert ranking[0].name == 'Bolt'
            assert ranking[0].is_certain
            assert not any(likeness.is_certain for likeness in ranking[1:])


@pytest.mark.parametrize('mode', MODES)
def test_the_stamp_of_a_file_says_whether_it_was_altered(plain, master, mode):
    copied = copy_for('Bolt', lock(plain.state_dict(), plain, master), master)
    how = Sealing(master.licensee('Bolt'), mode=mode)
    content = seal_checkpoint({'state_dict': copied}, how)['state_dict']
    assert by_stamp(content, master, NAMES) == ('Bolt', True)
    assert by_stamp(content, master, ['ACME Ltd']) is None
    bias = content['decode_head.conv_seg.bias'].clone()
    bias.view(torch.int32)[0] ^= 1
    assert by_stamp({**content, 'decode_head.conv_seg.bias': bias}, master, NAMES) == ('Bolt', False)
    assert by_stamp({n: v for n, v in content.items() if n != 'decode_head.conv_seg.bias'}, master, NAMES)[1] is False


def test_what_has_no_trace_is_not_traced(plain, key, master):
    state = plain.state_dict()
    owners = lock(state, plain, master)
    unlocked = unlock(copy_for('Bolt', owners, master), master.licensee('Bolt'))
    assert by_weights(unlocked, owners, master, NAMES)[0].name == PLAIN
    strangers = {n: v for n, v in lock(state, plain, key).items() if n in state}
    assert not by_weights(strangers, owners, master, NAMES)[0].is_certain
    with pytest.raises(LockError, match='another model'):
        by_weights({'x.weight': torch.ones(4, 32)}, owners, master, NAMES)


def test_a_licensee_gets_another_salt_for_each_model(plain, master):
    state = plain.state_dict()
    owners = lock(state, plain, master)
    assert licensee_salt(master, 'Bolt', state) == licensee_salt(master, 'Bolt', owners)
    assert licensee_salt(master, 'Bolt', state) != licensee_salt(master, 'ACME Ltd', state)
    release = {**state, 'decode_head.conv_seg.bias': torch.ones(19)}
    assert licensee_salt(master, 'Bolt', release) != licensee_salt(master, 'Bolt', state)
