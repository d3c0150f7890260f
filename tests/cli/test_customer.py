"""A customer's walk by the command line: their own identity, a model sealed to it, and what others get of it."""

from __future__ import annotations

import re
import stat

import pytest
import torch
from mmengine.config import Config
from mmseg.registry import MODELS

import keyseg_mm
from keyseg_mm import find_leaks, read_key_file
from keyseg_mm.checkpoint import opened, operations
from keyseg_mm.checkpoint.files import read_checkpoint, stamps_in
from keyseg_mm.stamp import is_stamp
from tests.support.cli import keyseg
from tests.support.configs import keyed_cfg, tiny_model_cfg
from tests.support.files import opened_weights, same, weights_in

IMAGE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
KINDS = pytest.mark.parametrize('kind', [[], ['--post-quantum']], ids=['x25519', 'post-quantum'])


@pytest.fixture
def shop(tmp_path, monkeypatch, capsys):
    """The owner's folder: a key, a config and a plain checkpoint."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    Config(dict(model=tiny_model_cfg().to_dict())).dump('config.py')
    torch.save({'meta': {'epoch': 3}, 'state_dict': MODELS.build(tiny_model_cfg()).state_dict()}, 'plain.pth')
    assert keyseg('keygen', '--out', 'owner.key') == 0
    capsys.readouterr()
    return tmp_path


def customer(name: str, capsys, *kind: str) -> str:
    """Make an identity, as a customer does at home; gives the line that they mail."""
    assert keyseg('keygen', '--identity', *kind, '--out', f'{name}.identity') == 0
    printed = capsys.readouterr().out
    identity = read_key_file(f'{name}.identity')
    assert identity.id in printed and identity.to_text() not in printed
    return re.search(r'KEYSEG-RECIPIENT-1-\S+', printed)[0]


def unlocked(path: str, who: str, *more: str) -> int:
    return keyseg('unlock', path, '--key', f'file:{who}', '--out', f'{who}.{path}', *more)


@KINDS
def test_a_customers_walk(kind, shop, capsys, monkeypatch):
    acme, bolt = customer('acme', capsys, *kind), customer('bolt', capsys, *kind)
    customer('third', capsys, *kind)
    (shop / 'bolt.recipient').write_text(f'# Bolt, by mail\n{bolt}\n')
    owner, ids = ['--key', 'file:owner.key'], {n: read_key_file(f'{n}.identity').id for n in ('acme', 'bolt', 'third')}

    # locked to the customer, and to the owner
    assert keyseg('lock', 'plain.pth', '--config', 'config.py', *owner, '--to', acme, '--out', 'locked.pth') == 0
    assert keyseg('show', 'locked.pth') == 0
    said = capsys.readouterr().out
    assert ids['acme'] in said and read_key_file('owner.key').id in said and 'AES-256-GCM' in said
    plain = weights_in('plain.pth')
    long = [t.numpy().tobytes() for t in plain.values() if t.nbytes >= 256 and len(t.unique()) > 1]
    assert long and not any(data in (shop / 'locked.pth').read_bytes() for data in long)

    # opened by both, refused to a third, who is told for whom it is
    for who in ('owner.key', 'acme.identity'):
        assert unlocked('locked.pth', who) == 0
        assert same(weights_in(f'{who}.locked.pth'), plain)
        assert stat.S_IMODE((shop / f'{who}.locked.pth').stat().st_mode) == 0o600
    for who in ('third', 'bolt'):
        assert unlocked('locked.pth', f'{who}.identity') == 1
        error = capsys.readouterr().err
        assert ids['acme'] in error and ids[who] in error and len(error.splitlines()) == 1
        assert not (shop / f'{who}.identity.locked.pth').exists()

    # for another customer: nothing is opened, nothing but the envelope is written
    def never(*args, **kwargs):
        raise AssertionError('weights were opened')

    with monkeypatch.context() as patch:
        for room in (operations, opened):
            patch.setattr(room, 'unseal_checkpoint', never, raising=False)
        assert keyseg('rekey', 'locked.pth', *owner, '--to', 'file:bolt.recipient', '--out', 'bolts.pth') == 0
    one, two = (bits(weights_in(name)) for name in ('locked.pth', 'bolts.pth'))
    assert one == two, 'the same ciphertext'
    assert stamps_in('bolts.pth')[''].key_ids == (ids['bolt'],)
    assert unlocked('bolts.pth', 'bolt.identity') == 0 and same(weights_in('bolt.identity.bolts.pth'), plain)
    for who in ('owner.key', 'acme.identity', 'third.identity'):
        assert unlocked('bolts.pth', who) == 1

    # the same maps, whoever opens it
    behind = [opened_weights(*pair) for pair in (('locked.pth', key('owner.key')), ('bolts.pth', key('bolt.identity')))]
    names = [n for n in plain if plain[n].dim() > 1 and plain[n].shape[1] > 4]
    assert all(torch.equal(behind[0][n], behind[1][n]) for n in plain)
    assert names and not any(torch.equal(behind[0][n], plain[n]) for n in names)
    for name in ('acme.identity', 'bolt.identity', 'third.identity', 'owner.key'):
        mine = [stamp for file in ('locked.pth', 'bolts.pth') for stamp in stamps_in(file).values()]
        for file in ('locked.pth', 'bolts.pth'):
            assert find_leaks(shop / file, key(name), [s for s in mine if key(name).id in s.key_ids]) == []


def key(name: str):
    return read_key_file(name)


def bits(weights: dict) -> dict:
    return {n: t.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for n, t in weights.items()}


@KINDS
@pytest.mark.parametrize('how', [dict(points='checkpoint'), dict(runtime='plain')], ids=['keyed', 'plain'])
def test_a_customers_model_runs_in_the_host(how, kind, shop, capsys):
    acme = customer('acme', capsys, *kind)
    lock = ['lock', 'plain.pth', '--config', 'config.py', '--key', 'file:owner.key', '--to', acme]
    assert keyseg(*lock, '--out', 'locked.pth') == 0
    expected = MODELS.build(tiny_model_cfg()).eval()
    expected.load_state_dict(read_checkpoint('plain.pth')['state_dict'])
    wanted = expected(IMAGE, mode='tensor')
    for locator in ('file:acme.identity', 'file:owner.key'):
        model = MODELS.build(keyed_cfg(tiny_model_cfg(), locator, **how)).eval()
        assert keyseg_mm.load(model, 'locked.pth') == {'epoch': 3}
        assert torch.allclose(model(IMAGE, mode='tensor'), wanted, atol=1e-4)
    onward = shop / 'onward.pth'
    model = MODELS.build(keyed_cfg(tiny_model_cfg(), 'file:acme.identity', **how)).eval()
    keyseg_mm.load(model, 'locked.pth')
    keyseg_mm.save(model, onward)
    assert stamps_in(onward)[''].key_ids == (key('acme.identity').id,), 'what a customer writes is theirs'


@KINDS
def test_a_file_alone(kind, shop, capsys):
    """Without a config: any state_dict of any framework, sealed and opened bit for bit."""
    acme = customer('acme', capsys, *kind)
    torch.save({'w': torch.randn(100), 'half': torch.randn(50).half(), 'n': torch.tensor(3)}, 'any.pth')
    assert keyseg('lock', 'any.pth', '--key', 'file:owner.key', '--to', acme, '--out', 'sealed.pth') == 0
    printed = capsys.readouterr().out
    assert 'bit for bit' in printed and key('acme.identity').id in printed
    assert not any(is_stamp(n) for n in weights_in('sealed.pth')) and list(weights_in('sealed.pth')) == [
        'w',
        'half',
        'n',
    ]
    assert unlocked('sealed.pth', 'acme.identity') == 0
    assert same(weights_in('acme.identity.sealed.pth'), weights_in('any.pth'))
    assert keyseg('lock', 'sealed.pth', '--key', 'file:owner.key', '--out', 'twice.pth') == 1
    assert 'sealed already' in capsys.readouterr().err
    assert (
        keyseg('rekey', 'sealed.pth', '--key', 'file:acme.identity', '--to', acme, '--reseal', '--out', 'mine.pth') == 0
    )
    assert stamps_in('mine.pth')[''].key_ids == (key('acme.identity').id,)
    assert bits(weights_in('mine.pth')) != bits(weights_in('sealed.pth'))


def test_what_is_no_recipient(shop, capsys):
    acme = customer('acme', capsys)
    identity, owner = key('acme.identity').to_text(), key('owner.key').to_text()
    lock = ['lock', 'plain.pth', '--key', 'file:owner.key', '--out', 'x.pth', '--to']
    for bad in (acme[:-1], 'Bolt', 'file:nowhere', 'file:acme.identity', 'file:owner.key', identity, owner):
        assert keyseg(*lock, bad) == 1
        said = ''.join(capsys.readouterr())
        assert identity[-16:] not in said and owner[-16:] not in said
    assert not (shop / 'x.pth').exists()


def test_an_identity_is_no_master(shop, capsys):
    customer('acme', capsys)
    master = ['--master', 'file:acme.identity', '--licensee', 'X']
    assert keyseg('keygen', *master, '--out', 'x.key') == 1
    assert 'an identity has no licensees' in capsys.readouterr().err
    assert keyseg('keygen', '--identity', '--master', 'file:owner.key', '--licensee', 'X', '--out', 'x.key') == 1
    assert keyseg('keygen', '--post-quantum', '--out', 'x.key') == 1
    assert not (shop / 'x.key').exists()
    assert keyseg('show', 'acme.identity') == 0
    assert key('acme.identity').recipient.to_text() in capsys.readouterr().out
