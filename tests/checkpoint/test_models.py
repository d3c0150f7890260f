"""keyseg_mm.save and keyseg_mm.load: live models, from and to files that are sealed."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch
from mmseg.registry import MODELS
from torch import nn

import keyseg_mm
from keyseg_mm import (
    Identity,
    SecretKey,
    Stamp,
    Trace,
    attach,
    deploy,
    entries_at,
    lock,
    protections,
    seal_file,
    stamps_of,
)
from keyseg_mm.checkpoint.files import read_checkpoint, stamps_in, write_checkpoint
from keyseg_mm.envelope import MODES, SEALED, SIGNED
from keyseg_mm.errors import (
    IntegrityError,
    KeyFileError,
    KeyMismatchError,
    KeysegError,
    LockError,
    NotFiredError,
    PlainCheckpointError,
    PlanMismatchError,
)
from keyseg_mm.runtime.attach import await_checkpoint
from keyseg_mm.runtime.protection import Rules, State
from keyseg_mm.seal.sections import Sealing, seal_checkpoint
from tests.support.audits import small_model_cfg
from tests.support.configs import keyed_cfg
from tests.support.files import SUFFIXES, opened_weights, weights_in
from tests.support.layers import KEY, SALTS, keyed_layers, layers, pictures, sites_in

OTHER = SecretKey(bytes(range(1, 33)))
CUSTOMER, THIRD = Identity(bytes(range(2, 34))), Identity(bytes(range(3, 35)))
META = {'classes': ['road', 'sky'], 'epoch': 3}
SOURCES = {
    'path': lambda path: path,
    'text': str,
    'bytes': lambda path: path.read_bytes(),
    'open file': lambda path: open(path, 'rb'),  # noqa: SIM115
    'memory': lambda path: io.BytesIO(path.read_bytes()),
    'bytearray': lambda path: bytearray(path.read_bytes()),
    'memoryview': lambda path: memoryview(path.read_bytes()),
}


def plain_runtime(**rules) -> nn.Module:
    model = layers(9)
    await_checkpoint(model, KEY, Rules(unlock=True, **rules))
    return model


def locked(seed: int = 0) -> dict:
    model = layers(seed)
    return lock(model.state_dict(), model, KEY, trace=Trace.of(model, {'test': lambda: model(pictures())}))


@pytest.fixture(params=SUFFIXES)
def path(request, tmp_path):
    return tmp_path / f'model{request.param}'


@pytest.fixture
def saved(path):
    """The file of a keyed model, and what it computes."""
    model = keyed_layers(rules=Rules(recipients=(CUSTOMER.recipient,)))
    keyseg_mm.save(model, path, META)
    return path, model(pictures())


@pytest.fixture
def sealed(path, tmp_path):
    """A plain model's file that was sealed, and what it computes."""
    model = layers()
    write_checkpoint(tmp_path / f'plain{path.suffix}', model.state_dict(), META)
    seal_file(tmp_path / f'plain{path.suffix}', Sealing(KEY, (KEY, CUSTOMER.recipient)), path)
    return path, model(pictures())


def test_meta_that_are_no_dict_are_none(tmp_path):
    torch.save({'state_dict': layers().state_dict(), 'meta': 5}, tmp_path / 'a.pth')
    assert keyseg_mm.load(layers(), tmp_path / 'a.pth') == {}


# ---- keyed models


@pytest.mark.parametrize('source', SOURCES)
def test_a_keyed_model_goes_round(source, saved):
    path, expected = saved
    model = keyed_layers(SALTS[1], seed=5)
    assert keyseg_mm.load(model, SOURCES[source](path)) == META
    assert torch.equal(model(pictures()), expected)
    assert protections(model)[0].stamp.salt == SALTS[0]


def test_what_is_written_is_sealed(saved):
    path, _ = saved
    stamp = stamps_in(path)['']
    assert stamp.seal.mode == SEALED and stamp.key_ids == (KEY.id, CUSTOMER.id)
    live = keyed_layers().state_dict()
    raw = path.read_bytes()
    assert all(t.numpy().tobytes() not in raw for n, t in live.items() if 'keyseg' not in n)
    assert not any(torch.equal(t, live[n]) for n, t in weights_in(path).items())
    for key in (KEY, CUSTOMER):
        opened = opened_weights(path, key)
        assert all(torch.equal(opened[n], t) for n, t in live.items() if 'keyseg' not in n)


def test_it_is_decrypted_straight_into_the_parameters(saved):
    path, expected = saved
    model = keyed_layers(seed=5)
    before = {n: (id(p), p.data_ptr()) for n, p in model.named_parameters()}
    keyseg_mm.load(model, path)
    assert {n: (id(p), p.data_ptr()) for n, p in model.named_parameters()} == before
    assert torch.equal(model(pictures()), expected)
    model(pictures()).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_signed_files(path):
    model = keyed_layers(rules=Rules(mode=SIGNED))
    keyseg_mm.save(model, path, META)
    assert stamps_in(path)[''].seal.mode == SIGNED
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in weights_in(path).items())
    twin = keyed_layers(seed=5)
    keyseg_mm.load(twin, path)
    assert torch.equal(twin(pictures()), model(pictures()))


def test_wrong_keys(saved):
    path, _ = saved
    model = layers(4)
    sites = sites_in(model)
    attach(model, OTHER, sites, entries_at(sites, 'SignedChannelPermutation'))
    before = {n: t.clone() for n, t in model.named_parameters()}
    with pytest.raises(KeyMismatchError, match=f'{KEY.id} or {CUSTOMER.id}.*{OTHER.id}'):
        keyseg_mm.load(model, path)
    assert all(torch.equal(t, before[n]) for n, t in model.named_parameters())


def test_a_recipients_model_runs_keyed_with_the_same_maps(saved):
    path, expected = saved
    model = layers(4)
    sites = sites_in(model)
    attach(model, CUSTOMER, sites, entries_at(sites, 'SignedChannelPermutation'))
    keyseg_mm.load(model, path)
    assert torch.equal(model(pictures()), expected)
    onward = path.with_name(f'onward{path.suffix}')
    keyseg_mm.save(model, onward)
    assert stamps_in(onward)[''].key_ids == (CUSTOMER.id,)
    with pytest.raises(KeyMismatchError):
        keyseg_mm.load(keyed_layers(), onward)


def test_plain_files_into_keyed_models(tmp_path):
    write_checkpoint(tmp_path / 'plain.pth', layers().state_dict(), {})
    with pytest.raises(PlainCheckpointError):
        keyseg_mm.load(keyed_layers(), tmp_path / 'plain.pth')
    model = keyed_layers(rules=Rules(takes_plain=True))
    assert keyseg_mm.load(model, tmp_path / 'plain.pth') == {}


# ---- plain models, and plain at run time


@pytest.mark.parametrize('source', SOURCES)
@pytest.mark.parametrize('key', [KEY, CUSTOMER], ids=['owner', 'customer'])
def test_a_plain_model_gets_the_plain_weights_of_a_sealed_file(source, key, sealed):
    path, expected = sealed
    model = layers(5)
    pointers = {n: p.data_ptr() for n, p in model.named_parameters()}
    assert keyseg_mm.load(model, SOURCES[source](path), key) == META
    assert torch.equal(model(pictures()), expected) and not protections(model)
    assert {n: p.data_ptr() for n, p in model.named_parameters()} == pointers


@pytest.mark.parametrize('mode', MODES)
def test_a_plain_model_gets_the_plain_weights_of_a_locked_file(mode, path):
    content = seal_checkpoint({'state_dict': locked(), 'meta': META}, Sealing(KEY, (KEY, CUSTOMER.recipient), mode))
    write_checkpoint(path, content['state_dict'], META)
    for key in (KEY, CUSTOMER):
        model = layers(5)
        keyseg_mm.load(model, path, key)
        assert torch.allclose(model(pictures()), layers()(pictures()), atol=1e-6)
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), layers().parameters())), 'bit for bit'


def test_a_plain_file_into_a_plain_model(path):
    write_checkpoint(path, layers().state_dict(), META)
    model = layers(5)
    assert keyseg_mm.load(model, path) == META
    assert torch.equal(model(pictures()), layers()(pictures()))


def test_a_plain_model_needs_a_key_of_a_recipient(sealed):
    path, _ = sealed
    model = layers(5)
    before = {n: t.clone() for n, t in model.named_parameters()}
    with pytest.raises(KeyFileError, match=f'protected with key {KEY.id} or {CUSTOMER.id}; give key='):
        keyseg_mm.load(model, path)
    for key in (OTHER, THIRD):
        with pytest.raises(KeyMismatchError, match=key.id):
            keyseg_mm.load(model, path, key)
    assert all(torch.equal(t, before[n]) for n, t in model.named_parameters())


@pytest.mark.parametrize('what', ['sealed', 'locked'])
def test_runtime_plain_opens_and_writes_sealed(what, path, tmp_path):
    weights = layers().state_dict() if what == 'sealed' else locked()
    content = seal_checkpoint({'state_dict': weights}, Sealing(KEY))
    write_checkpoint(path, content['state_dict'], {})
    model = plain_runtime(recipients=(CUSTOMER.recipient,))
    keyseg_mm.load(model, path)
    assert protections(model)[0].state is State.PLAIN
    assert torch.equal(model(pictures()), layers()(pictures()))
    again = tmp_path / f'again{path.suffix}'
    keyseg_mm.save(model, again, META)
    stamp = stamps_in(again)['']
    assert stamp.seal.mode == SEALED and stamp.key_ids == (KEY.id, CUSTOMER.id)
    assert bool(stamp.maps) == (what == 'locked')
    assert not any(torch.equal(t, model.state_dict()[n]) for n, t in weights_in(again).items())
    for key in (KEY, CUSTOMER):
        twin = layers(6)
        keyseg_mm.load(twin, again, key)
        assert torch.equal(twin(pictures()), layers()(pictures()))


@pytest.mark.parametrize('what', ['sealed', 'locked'])
def test_a_wrong_key_on_purpose_runs_on_noise(what, path):
    """And writes nothing; whether its points come from a checkpoint, are its own, or it was to be opened."""
    weights = layers().state_dict() if what == 'sealed' else locked()
    write_checkpoint(path, seal_checkpoint({'state_dict': weights}, Sealing(KEY))['state_dict'], {})

    def follows(**rules):
        model = layers(9)
        await_checkpoint(model, OTHER, Rules(deliberate=True, **rules))
        return model

    for model in (follows(unlock=True), follows(find_sites=lambda model, stamp: sites_in(layers(9)))):
        keyseg_mm.load(model, path)
        found = model(pictures())
        assert not torch.allclose(found.nan_to_num(), layers()(pictures()), atol=0.1)
        assert all(not torch.equal(p, q) for p, q in zip(model.parameters(), layers().parameters()))
        with pytest.raises(KeyMismatchError, match='without its key'):
            keyseg_mm.save(model, path.with_name('out.pth'))


@pytest.mark.parametrize('points', ['linear', 'in:decode_head.convs.1.conv'])
@pytest.mark.parametrize('seal', [True, False])
def test_an_opened_model_that_lacks_what_carries_its_maps_is_not_written(seal, points, key_file, tmp_path):
    """Of a file of another head: its stamp names weights that are not there, and the others would be written plain."""
    larger = small_model_cfg()
    larger.decode_head.num_convs = 2
    first = MODELS.build(keyed_cfg(larger, f'file:{key_file}', points=points))
    keyseg_mm.save(first, tmp_path / 'larger.pth')
    opened = MODELS.build(keyed_cfg(small_model_cfg(), f'file:{key_file}', runtime='plain', seal=seal))
    keyseg_mm.load(opened, tmp_path / 'larger.pth', strict=False)
    with pytest.raises(LockError, match='carried by decode_head.convs.1.conv.weight, which it does not have'):
        keyseg_mm.save(opened, tmp_path / 'opened.pth')
    assert not (tmp_path / 'opened.pth').exists()


@pytest.mark.parametrize('build', [keyed_layers, plain_runtime, layers])
def test_a_file_of_another_model_is_told_by_name(build, path):
    key = [KEY] if build is layers else []
    weights = keyed_layers().state_dict() if build is keyed_layers else locked()
    weights['4.bias'] = torch.zeros(99)
    write_checkpoint(path, seal_checkpoint({'state_dict': weights}, Sealing(KEY))['state_dict'], {})
    with pytest.raises(KeysegError, match='4.bias'):
        keyseg_mm.load(build(), path, *key)
    model = nn.Sequential(layers(), nn.Linear(2, 2))
    write_checkpoint(path, layers().state_dict(), {}, overwrite=True)
    with pytest.raises(PlanMismatchError, match='of another model(.|\n)*strict=False'):
        keyseg_mm.load(model, path)


# ---- altered files


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('build', [keyed_layers, plain_runtime, layers])
def test_nothing_of_an_altered_file_is_left(build, mode, path):
    weights = keyed_layers().state_dict() if build is keyed_layers else locked()
    content = seal_checkpoint({'state_dict': weights}, Sealing(KEY, mode=mode))['state_dict']
    bias = content['4.bias'].clone()
    bias.view(torch.int32)[-1] ^= 1
    content['4.bias'] = bias
    write_checkpoint(path, content, {})
    model = build()
    before = {n: p.clone() for n, p in model.named_parameters()}
    with pytest.raises(IntegrityError, match='4.bias in state_dict was altered'):
        keyseg_mm.load(model, path, *([KEY] if build is layers else []))
    for name, parameter in model.named_parameters():
        assert not parameter.any() if mode == SEALED else torch.equal(parameter, before[name]), name


@pytest.mark.parametrize('what', ['saved', 'sealed'])
def test_altered_meta(what, path, request):
    request.getfixturevalue(what)
    model, key = keyed_layers() if what == 'saved' else layers(), KEY
    content = read_checkpoint(path)
    write_checkpoint(path, content['state_dict'], {**META, 'classes': ['sky', 'road']}, overwrite=True)
    before = {n: p.clone() for n, p in model.named_parameters()}
    with pytest.raises(IntegrityError, match='meta'):
        keyseg_mm.load(model, path, key)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_a_stamp_that_promises_less_than_the_file_had(saved):
    """The seal taken off, and the envelope too: no key's holder wrote that."""
    path, _ = saved
    content = read_checkpoint(path)['state_dict']
    stamp = stamps_of(content)['']
    for bare in (replace(stamp, seal=None), Stamp(stamp.key_id, stamp.salt, stamp.entries)):
        write_checkpoint(path, {**content, stamp.name: keyseg_mm.bind.stamp_tensor(bare)}, {}, overwrite=True)
        with pytest.raises(IntegrityError):
            keyseg_mm.load(keyed_layers(), path)
        with pytest.raises(IntegrityError):
            keyseg_mm.load(layers(), path, KEY)


@pytest.mark.parametrize('bad', [b'', b'x', b'PK\x03\x04' + bytes(100), b'\x10' + bytes(7) + b'{' + bytes(20)])
def test_what_is_no_checkpoint(bad):
    for source in (bad, io.BytesIO(bad)):
        with pytest.raises(KeysegError, match='this checkpoint'):
            keyseg_mm.load(layers(), source, KEY)


# ---- what is not saved


def test_what_is_not_saved(tmp_path):
    out = tmp_path / 'out.pth'
    with pytest.raises(LockError, match='not protected'):
        keyseg_mm.save(layers(), out)
    waiting = layers()
    await_checkpoint(waiting, KEY, Rules(unlock=True))
    with pytest.raises(NotFiredError):
        keyseg_mm.save(waiting, out)
    with pytest.raises(KeyMismatchError, match='without its key'):
        keyseg_mm.save(keyed_layers(rules=Rules(deliberate=True)), out)
    bypassed = keyed_layers()
    bypassed[2] = nn.Conv2d(32, 32, 3)
    with pytest.raises(NotFiredError):
        keyseg_mm.save(bypassed, out)
    assert list(tmp_path.iterdir()) == []
    keyseg_mm.save(keyed_layers(), out)
    before = out.read_bytes()
    with pytest.raises(KeysegError, match='exists already'):
        keyseg_mm.save(keyed_layers(), out)
    assert out.read_bytes() == before
    keyseg_mm.save(keyed_layers(), out, overwrite=True)
    assert out.read_bytes() != before


def test_strict_loads(sealed):
    path, _ = sealed
    model = nn.Sequential(*layers(5), nn.Conv2d(4, 4, 1))
    with pytest.raises(RuntimeError, match='Missing key'):
        keyseg_mm.load(model, path, KEY)
    assert keyseg_mm.load(model, path, KEY, strict=False) == META
    assert torch.equal(model[:5](pictures()), layers()(pictures()))


class _Doubles(nn.Conv2d):
    """A layer with a way of its own to load its weights."""

    def _load_from_state_dict(self, state_dict, prefix, *args):
        state_dict[f'{prefix}weight'] = 2 * state_dict[f'{prefix}weight']
        super()._load_from_state_dict(state_dict, prefix, *args)


class _Asks(nn.Sequential):
    asked = 0

    def load_state_dict(self, *args, **kwargs):
        self.asked += 1
        return super().load_state_dict(*args, **kwargs)


def test_modules_that_load_in_their_own_way_do(sealed):
    """Weights that were opened in their place need no copying, but whoever wants to see them does."""
    path, expected = sealed
    seen, plain = [], layers(5)
    plain.register_load_state_dict_post_hook(lambda *_: seen.append('after'))
    plain[0]._register_load_state_dict_pre_hook(lambda *_: seen.append('before'))
    keyseg_mm.load(plain, path, KEY)
    assert seen == ['before', 'after'] and torch.equal(plain(pictures()), expected)
    asks = _Asks(*layers(5))
    keyseg_mm.load(asks, path, KEY)
    assert asks.asked == 1 and torch.equal(asks(pictures()), expected)
    doubles = layers(5)
    doubles[0].__class__ = _Doubles
    keyseg_mm.load(doubles, path, KEY)
    assert torch.equal(doubles[0].weight, 2 * asks[0].weight) and torch.equal(doubles[4].weight, asks[4].weight)


def test_buffers_that_no_file_holds_stay(tmp_path):
    model = layers(5)
    model.register_buffer('steps', torch.ones(2), persistent=False)
    write_checkpoint(tmp_path / 'plain.pth', {**layers().state_dict()}, {})
    seal_file(tmp_path / 'plain.pth', Sealing(KEY), tmp_path / 'sealed.pth')
    keyseg_mm.load(model, tmp_path / 'sealed.pth', KEY)
    assert torch.equal(model(pictures()), layers()(pictures())) and torch.equal(model.steps, torch.ones(2))


@pytest.mark.parametrize('source', [{}, None, 3, io.StringIO('text')], ids=lambda source: type(source).__name__)
def test_what_is_no_file_is_told_so(source):
    with pytest.raises(
        KeysegError, match=r'path, an open binary file or bytes, and this is a (dict|NoneType|int|str)$'
    ):
        keyseg_mm.load(layers(), source, KEY)
    with pytest.raises(KeysegError, match='from a path or from bytes, and this is a '):
        deploy.load(source, KEY)
