"""Files whose envelope alone is exchanged: patched in place, and still what zip and safetensors say they are."""

from __future__ import annotations

import errno
import os
import struct
import zipfile

import pytest
import torch

from keyseg_mm import Identity, rekey_file, seal_file, unlock_file
from keyseg_mm.checkpoint import onepass, patching, rekeying
from keyseg_mm.checkpoint.files import read_checkpoint, stamps_in, write_checkpoint
from keyseg_mm.checkpoint.patching import ForeignFileError, patch
from keyseg_mm.checkpoint.rekeying import change_maps_file
from keyseg_mm.entries import MapEntry
from keyseg_mm.errors import IntegrityError, KeyMismatchError, KeysegError
from keyseg_mm.locking import Plan, lock_in_place
from keyseg_mm.maps import order
from keyseg_mm.seal.nested import tensors_of
from keyseg_mm.seal.sections import Sealing, seal_checkpoint, sealed_stamp, unseal_checkpoint
from keyseg_mm.stamp import is_stamp
from keyseg_mm.tracing import Fingerprint
from tests.support.files import KEY, META, OTHER, SUFFIXES, opened_weights, weights_in
from tests.support.layers import layers

CUSTOMER, SALT = Identity(bytes(range(2, 34))), bytes([1]) * 16


@pytest.fixture
def plain(tmp_path):
    weights = {n: t.clone() for n, t in layers().state_dict().items()}
    content = {
        'ema_state_dict': {f'module.{n}': t + 1 for n, t in weights.items()},
        'optimizer': {'state': [weights['0.bias'] * 2]},
    }
    write_checkpoint(tmp_path / 'plain.pth', weights, META, others=content)
    write_checkpoint(tmp_path / 'plain.safetensors', weights, META)
    return weights


@pytest.fixture(params=SUFFIXES)
def sealed(request, plain, tmp_path):
    path = tmp_path / f'sealed{request.param}'
    seal_file(tmp_path / f'plain{request.param}', Sealing(KEY), path)
    return path


@pytest.fixture
def patched(monkeypatch):
    """Tells which files were patched, not written anew."""
    seen = []

    def watching(module, name):
        run = getattr(module, name)

        def watched(source, out, *args):
            run(source, out, *args)
            seen.append(out)

        monkeypatch.setattr(module, name, watched)

    watching(rekeying, 'patch')
    watching(rekeying, 'patch_anew')
    watching(onepass, 'patch_anew')
    return seen


def alike(one: dict, other: dict) -> bool:
    """Whether two are the same; a .safetensors file has no order of its names."""
    return sorted(one) == sorted(other) and all(bits(t) == bits(other[n]) for n, t in one.items())


def bits(tensor: torch.Tensor) -> tuple:
    """Of noise too, which may be no number and then is not even itself."""
    return tensor.dtype, tensor.shape, tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def is_whole(path) -> bool:
    """Whether a file is what its format says, by readers that know nothing of us."""
    if path.suffix == '.pth':
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None and all(archive.read(name) is not None for name in archive.namelist())
    from safetensors import safe_open

    with safe_open(path, 'pt') as file:
        return all(file.get_tensor(name) is not None for name in file.keys())  # noqa: SIM118


def test_the_envelope_alone_is_exchanged(sealed, plain, patched, tmp_path):
    out, before = tmp_path / f'out{sealed.suffix}', sealed.read_bytes()
    assert is_whole(sealed)
    assert rekey_file(sealed, KEY, [CUSTOMER.recipient, OTHER], out) == ()
    assert patched == [out] and sealed.read_bytes() == before
    assert is_whole(out) and out.stat().st_size == len(before)
    old, new = read_checkpoint(sealed), read_checkpoint(out)
    assert list(old) == list(new) and new['meta'] == old['meta']
    assert alike(weights_in(sealed), weights_in(out)), 'not one bit of a weight was touched'
    assert stamps_in(out)[''].key_ids == (CUSTOMER.id, OTHER.id)
    for key in (CUSTOMER, OTHER):
        content = unseal_checkpoint(key, new)
        assert alike(content['state_dict'], plain)
        if sealed.suffix == '.pth':
            assert torch.equal(content['ema_state_dict']['module.0.bias'], plain['0.bias'] + 1)
            assert torch.equal(content['optimizer']['state'][0], plain['0.bias'] * 2)
            assert all(sealed_stamp(new[n]).key_ids == (CUSTOMER.id, OTHER.id) for n in ('ema_state_dict', 'optimizer'))
    with pytest.raises(KeyMismatchError):
        opened_weights(out, KEY)
    assert KEY.id.encode() not in out.read_bytes(), 'nothing of the old envelope is left'


def test_back_and_forth(sealed, plain, patched, tmp_path):
    here = sealed
    for turn, (key, to) in enumerate([(KEY, CUSTOMER), (CUSTOMER, OTHER), (OTHER, KEY)]):
        out = tmp_path / f'turn{turn}{sealed.suffix}'
        rekey_file(here, key, [to.recipient], out)
        assert is_whole(out) and alike(opened_weights(out, to), plain)
        here = out
    assert len(patched) == 3 and here.stat().st_size == sealed.stat().st_size


def test_the_very_file_may_be_patched(sealed, plain, patched):
    rekey_file(sealed, KEY, [OTHER], sealed, overwrite=True)
    assert patched == [sealed] and is_whole(sealed) and alike(opened_weights(sealed, OTHER), plain)


def test_more_than_there_is_room_for_is_sealed_anew(sealed, plain, patched, tmp_path):
    crowd = [Identity(bytes([number]) * 32) for number in range(60)]
    out = tmp_path / f'out{sealed.suffix}'
    rekey_file(sealed, KEY, [one.recipient for one in crowd], out)
    assert patched == [] and is_whole(out)
    assert stamps_in(out)[''].key_ids == tuple(one.id for one in crowd)
    assert not any(torch.equal(t, weights_in(out)[n]) for n, t in weights_in(sealed).items()), 'a fresh content key'
    for one in (crowd[0], crowd[-1]):
        assert alike(opened_weights(out, one), plain)
    few = tmp_path / f'few{sealed.suffix}'
    rekey_file(out, crowd[7], [OTHER], few)
    assert patched == [few] and is_whole(few) and alike(opened_weights(few, OTHER), plain), 'less always fits'


def test_resealed_in_its_place(sealed, plain, patched, tmp_path):
    """Every tensor of every section is encrypted under a fresh content key, and the rest of the file is as it was."""
    out, before = tmp_path / f'out{sealed.suffix}', sealed.read_bytes()
    assert rekey_file(sealed, KEY, [CUSTOMER.recipient, OTHER], out, reseal=True) == ()
    assert patched == [out] and sealed.read_bytes() == before
    assert is_whole(out) and out.stat().st_size == len(before)
    old, new = read_checkpoint(sealed), read_checkpoint(out)
    assert list(old) == list(new) and new['meta'] == old['meta']
    for name in old.keys() - {'meta'}:
        one, other = (tensors_of(content[name]) for content in (old, new))
        same = [n for n, t in one.items() if not is_stamp(n) and t.numel() and torch.equal(t, other[n])]
        assert len(one) > 1 and not same
    shared = {before[at : at + 16] for at in range(0, len(before), 16)}
    weights = [bits(t)[2] for n, t in weights_in(out).items() if not is_stamp(n)]
    assert not any(data[at : at + 16] in shared for data in weights for at in range(0, len(data) - 15))
    for key in (CUSTOMER, OTHER):
        content = unseal_checkpoint(key, read_checkpoint(out))
        assert alike(content['state_dict'], plain)
        if sealed.suffix == '.pth':
            assert torch.equal(content['ema_state_dict']['module.0.bias'], plain['0.bias'] + 1)
            assert torch.equal(content['optimizer']['state'][0], plain['0.bias'] * 2)
    with pytest.raises(KeyMismatchError):
        opened_weights(out, KEY)
    rekey_file(out, OTHER, [KEY], sealed, reseal=True, overwrite=True)
    assert len(patched) == 2 and is_whole(sealed) and alike(opened_weights(sealed, KEY), plain)


def test_other_formats_are_written_anew(plain, patched, tmp_path):
    """From .safetensors; what else a .pth holds fits into none."""
    seal_file(tmp_path / 'plain.safetensors', Sealing(KEY), tmp_path / 'sealed.safetensors')
    rekey_file(tmp_path / 'sealed.safetensors', KEY, [OTHER], tmp_path / 'other.pth')
    assert is_whole(tmp_path / 'other.pth') and alike(opened_weights(tmp_path / 'other.pth', OTHER), plain)
    old, new = weights_in(tmp_path / 'sealed.safetensors'), weights_in(tmp_path / 'other.pth')
    assert not any(torch.equal(t, new[n]) for n, t in old.items() if not is_stamp(n))
    assert patched == []


@pytest.mark.parametrize('mode', ['sealed', 'signed'])
@pytest.mark.parametrize('suffix', SUFFIXES)
def test_resealed_whatever_lies_in_it(suffix, mode, patched, tmp_path):
    """Tensors of all kinds, empty, of several chunks, and the very same twice; signed ones, which stay readable."""
    large = torch.arange(2**21 + 3, dtype=torch.float32)
    weights = {
        **{f'{dtype}'[6:]: torch.ones(5, 3).to(dtype) for dtype in (torch.bool, torch.bfloat16, torch.int64)},
        **{'large': large, 'again': large, 'empty': torch.empty(0, 4), 'scalar': torch.tensor(7.0)},
    }
    source, sealed, out = tmp_path / 'plain.pth', tmp_path / f'sealed{suffix}', tmp_path / f'out{suffix}'
    write_checkpoint(source, weights, META)
    seal_file(source, Sealing(KEY, mode=mode), sealed)
    rekey_file(sealed, KEY, [OTHER], out, reseal=True)
    assert patched == [out] and is_whole(out) and alike(opened_weights(out, OTHER), weights)
    seals = [stamps_in(path)[''].seal for path in (sealed, out)]
    assert [seal.mode for seal in seals] == [mode, mode] and seals[0].shared == seals[1].shared
    assert seals[0].tags != seals[1].tags and len(seals[0].tags) == len(seals[1].tags) == 16 * 7
    for content in (weights_in(sealed), weights_in(out)):
        assert (bits(content['large']) == bits(large)) == (mode == 'signed')
        assert bits(content['large']) == bits(content['again'])


def test_resealed_of_what_was_altered(sealed, tmp_path):
    content = bytearray(sealed.read_bytes())
    where = content.index(bits(weights_in(sealed)['0.weight'])[2])
    content[where] ^= 1
    sealed.write_bytes(content)
    out = tmp_path / f'out{sealed.suffix}'
    with pytest.raises(IntegrityError, match='0.weight in state_dict was altered'):
        rekey_file(sealed, KEY, [OTHER], out, reseal=True)
    assert not out.exists()
    rekey_file(sealed, KEY, [OTHER], out)  # opens nothing, and so finds nothing; whoever opens it does
    with pytest.raises(IntegrityError, match='0.weight in state_dict was altered'):
        opened_weights(out, OTHER)


def test_sections_of_several_files_are_not_made_one(tmp_path, plain):
    """Two sections of one name under one content key would be encrypted with the same nonces."""
    for name in 'ab':
        seal_file(tmp_path / 'plain.pth', Sealing(KEY), tmp_path / f'{name}.pth')
    a, b = (torch.load(tmp_path / f'{name}.pth', weights_only=True) for name in 'ab')
    bare = {'state_dict': plain, 'meta': a['meta'], 'optimizer': a['optimizer']}
    mixtures = [
        ({**a, 'optimizer': b['optimizer']}, 'put together from several files'),
        ({**a, 'ema_state_dict': a['state_dict']}, 'sealed as something else'),
        ({**a, 'more': {'w': torch.ones(3)}}, 'put there later'),
        (bare, 'has no seal'),
    ]
    for number, (mixture, words) in enumerate(mixtures):
        torch.save(mixture, tmp_path / f'{number}.pth')
        with pytest.raises(KeysegError, match=words):
            rekey_file(tmp_path / f'{number}.pth', KEY, [OTHER], tmp_path / 'out.pth', reseal=True)
        assert not (tmp_path / 'out.pth').exists()


def test_tensors_that_share_bytes_are_not_written_twice(tmp_path, patched, plain):
    """A tool that saves views of one memory: what lies in it is sealed anew elsewhere, or refused."""
    seal_file(tmp_path / 'plain.pth', Sealing(KEY), tmp_path / 'sealed.pth')
    content = torch.load(tmp_path / 'sealed.pth', weights_only=True)
    weights = {n: t for n, t in content['state_dict'].items() if not is_stamp(n)}
    room = torch.cat([t.view(-1) for t in weights.values()])
    at = 0
    for name, t in weights.items():
        content['state_dict'][name] = room[at : at + t.numel()].view(t.shape)
        at += t.numel()
    content['state_dict']['0.weight'] = content['state_dict']['0.weight'].transpose(0, 1).contiguous().transpose(0, 1)
    torch.save(content, tmp_path / 'views.pth')
    rekey_file(tmp_path / 'views.pth', KEY, [OTHER], tmp_path / 'out.pth', reseal=True)
    assert patched == [] and alike(opened_weights(tmp_path / 'out.pth', OTHER), plain)


def test_no_room_on_the_disk(sealed, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    out = tmp_path / f'out{sealed.suffix}'
    monkeypatch.setattr(os, 'pwrite', full)
    with pytest.raises(KeysegError, match='No space left'):
        rekey_file(sealed, KEY, [OTHER], out, reseal=True)
    assert not out.exists()


def test_files_of_other_tools(plain, patched, tmp_path):
    """Saved again by hand, in each of torch's formats, or with compressed members."""
    seal_file(tmp_path / 'plain.pth', Sealing(KEY), tmp_path / 'sealed.pth')
    content = torch.load(tmp_path / 'sealed.pth', weights_only=True)
    for name, zipped in (('zip.pth', True), ('old.pth', False)):
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
        rekey_file(tmp_path / name, KEY, [OTHER], tmp_path / f'out_{name}')
        assert alike(opened_weights(tmp_path / f'out_{name}', OTHER), plain)
    packed, out = tmp_path / 'packed.pth', tmp_path / 'out_packed.pth'
    with zipfile.ZipFile(tmp_path / 'sealed.pth') as a, zipfile.ZipFile(packed, 'w', zipfile.ZIP_DEFLATED) as b:
        for name in a.namelist():
            b.writestr(name, a.read(name))
    assert patched == [tmp_path / 'out_zip.pth'], 'the other is sealed anew'
    with pytest.raises(KeysegError):  # torch does not map what is compressed
        rekey_file(packed, KEY, [OTHER], out)
    assert not out.exists()


def test_bytes_that_look_like_a_stamp_elsewhere(patched, tmp_path):
    """The id of a key as a text in the meta is none of the stamp's."""
    weights = {'w': torch.randn(100)}
    write_checkpoint(tmp_path / 'plain.pth', weights, {'note': 'needs ' + KEY.id})
    seal_file(tmp_path / 'plain.pth', Sealing(KEY), tmp_path / 'sealed.pth')
    rekey_file(tmp_path / 'sealed.pth', KEY, [OTHER], tmp_path / 'out.pth')
    assert alike(opened_weights(tmp_path / 'out.pth', OTHER), weights)
    assert read_checkpoint(tmp_path / 'out.pth')['meta'] == {'note': 'needs ' + KEY.id}


# ---- copies with other weights


def made_copy(source, out, mark=None):
    """A licensee's copy; its salt is always the same, so that two are the same but for their seals."""
    change_maps_file(source, KEY, OTHER, out, salt=lambda _: bytes(range(16)), mark=mark)
    return opened_weights(out, OTHER)


def locked_file(path, weights):
    """With a map at each layer; a weight that has two names carries one."""
    names: dict[int, list[str]] = {}
    for name, t in weights.items():
        if name.endswith('weight') and t.dim() > 1 and t.shape[1] > 1:
            names.setdefault(t.data_ptr(), []).append(name)
    kind = {'type': 'SignedChannelPermutation'}
    entries = tuple(
        MapEntry(f'in:{same[0].removesuffix(".weight")}', weights[same[0]].shape[1], kind, tuple(same))
        for same in names.values()
    )
    locked = dict(weights)
    lock_in_place(locked, Plan('features', entries), KEY, SALT)
    sealed = seal_checkpoint({'state_dict': locked, 'meta': META}, Sealing(KEY))
    write_checkpoint(path, sealed['state_dict'], META)
    return entries


@pytest.mark.parametrize('suffix', SUFFIXES)
@pytest.mark.parametrize('maps', [True, False], ids=['maps', 'sealed'])
@pytest.mark.parametrize('marked', [True, False], ids=['fingerprint', 'exact'])
def test_copies_made_in_one_pass_are_those_made_whole(suffix, maps, marked, plain, patched, tmp_path, monkeypatch):
    plain = {**plain, 'again.weight': plain['0.weight'], 'again.bias': plain['0.bias']}
    source, out, anew = (tmp_path / f'{name}{suffix}' for name in ('source', 'out', 'anew'))
    if maps:
        assert any(len(entry.weights) > 1 for entry in locked_file(source, plain))
    else:
        write_checkpoint(tmp_path / 'bare.pth', plain, META)
        seal_file(tmp_path / 'bare.pth', Sealing(KEY), source)
    assert len(stamps_in(source)[''].seal.shared) == 2
    mark = Fingerprint(KEY, 'acme') if marked else None
    with monkeypatch.context() as small:
        small.setattr(order, '_BLOCK', 1)  # in parts, which tensors of this size are not
        found = made_copy(source, out, mark)
    assert patched == [out] and is_whole(out) and out.stat().st_size == source.stat().st_size

    def refuse(*args):
        raise ForeignFileError('as if')

    monkeypatch.setattr(onepass, 'patch_anew', refuse)
    expected = made_copy(source, anew, mark)
    assert patched == [out] and read_checkpoint(out)['meta'] == META
    assert alike(
        {n: t for n, t in found.items() if not is_stamp(n)}, {n: t for n, t in expected.items() if not is_stamp(n)}
    )
    assert (bits(found['0.weight']) != bits(opened_weights(source, KEY)['0.weight'])) == (maps or marked)
    new, old = stamps_in(out)[''], stamps_in(anew)['']
    assert new.fingerprint == old.fingerprint == (0.001 if marked else 0.0) and new.key_ids == old.key_ids == (
        OTHER.id,
    )
    unlocked = [tmp_path / f'plain_{name}{suffix}' for name in ('out', 'anew')]
    for path, to in zip((out, anew), unlocked):
        unlock_file(path, OTHER, to)
    assert alike(*(weights_in(path) for path in unlocked))
    assert alike(weights_in(unlocked[0]), plain) != marked


def test_what_is_not_to_be_copied_is_not(plain, patched, tmp_path):
    """Other sections hold the weights as they were: such a file is written anew, without them."""
    seal_file(tmp_path / 'plain.pth', Sealing(KEY), tmp_path / 'sealed.pth')
    _, dropped = change_maps_file(tmp_path / 'sealed.pth', KEY, OTHER, tmp_path / 'out.pth')
    assert patched == [] and sorted(dropped) == ['ema_state_dict', 'optimizer']
    assert sorted(read_checkpoint(tmp_path / 'out.pth')) == ['meta', 'state_dict']
    assert alike(opened_weights(tmp_path / 'out.pth', OTHER), plain)


@pytest.mark.parametrize('marked', [True, False], ids=['fingerprint', 'exact'])
def test_nothing_readable_is_written_on_the_way(marked, plain, tmp_path, monkeypatch):
    """Neither of the plain weights nor of the copy's, not even for the moment before the file is whole."""
    locked_file(tmp_path / 'source.pth', plain)
    written, write = [], patching._write_at

    def watched(file, data, start):
        written.append(bytes(data))
        write(file, data, start)

    monkeypatch.setattr(patching, '_write_at', watched)
    found = made_copy(tmp_path / 'source.pth', tmp_path / 'out.pth', Fingerprint(KEY, 'acme') if marked else None)
    readable = [t for weights in (plain, found) for n, t in weights.items() if not is_stamp(n)]
    secret = {bits(t)[2][at : at + 16] for t in readable for at in range(0, t.nbytes - 15, 16)}
    assert len(secret) > 100 and sum(map(len, written)) == (tmp_path / 'out.pth').stat().st_size
    assert not any(one in data for data in written for one in secret)


def test_a_copy_of_an_altered_file(plain, tmp_path):
    locked_file(tmp_path / 'source.pth', plain)
    content = bytearray((tmp_path / 'source.pth').read_bytes())
    for name, words in (('0.weight', '0.weight in state_dict was altered'), ('0.bias', '0.bias in state_dict was')):
        bad = bytearray(content)
        bad[content.index(bits(weights_in(tmp_path / 'source.pth')[name])[2])] ^= 1
        (tmp_path / 'bad.pth').write_bytes(bad)
        with pytest.raises(IntegrityError, match=words):
            made_copy(tmp_path / 'bad.pth', tmp_path / 'out.pth')
        assert not (tmp_path / 'out.pth').exists()


# ---- the patch itself


MEMBERS = {'x/data/0': b'x' * 50, 'x/data.pkl': b'one and one', 'x/data/1': b'one', 'x/data/2': b'weights: one'}
CHANGED = {**MEMBERS, 'x/data.pkl': b'two and two', 'x/data/1': b'two'}  # numbers of weights are left alone


def archive(path, file=None):
    with zipfile.ZipFile(file or path, 'w', zipfile.ZIP_STORED) as zipped:
        for name, data in MEMBERS.items():
            zipped.writestr(name, data)
    return path


def members(path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as zipped:
        assert zipped.testzip() is None
        return {name: zipped.read(name) for name in zipped.namelist()}


def test_checksums_are_mended(tmp_path):
    patch(archive(tmp_path / 'a.zip'), tmp_path / 'b.zip', {b'one': b'two'})
    assert members(tmp_path / 'a.zip') == MEMBERS and members(tmp_path / 'b.zip') == CHANGED


def test_checksums_behind_the_data_are_mended(tmp_path):
    """Who writes to a pipe cannot go back: lengths and checksum follow the data (flag 8 of the format)."""
    source, out = tmp_path / 'a.zip', tmp_path / 'b.zip'

    class Pipe:
        """A file that goes forward only."""

        def __init__(self, file):
            self.write, self.flush = file.write, file.flush

    with open(source, 'wb') as file:
        archive(source, Pipe(file))
    with zipfile.ZipFile(source) as zipped:
        assert all(info.flag_bits & 8 for info in zipped.infolist())
    patch(source, out, {b'one': b'two'})
    assert members(out) == CHANGED
    crc = struct.pack('<4sL', b'PK\x07\x08', zipfile.crc32(b'two and two'))
    assert out.read_bytes().count(crc) == 1, 'the one behind the data, too'


def test_without_the_systems_own_copy(tmp_path, monkeypatch):
    archive(tmp_path / 'a.zip')
    patch(tmp_path / 'a.zip', tmp_path / 'b.zip', {b'one': b'two'})

    def fails(*args):
        raise OSError('not here')

    monkeypatch.setattr(os, 'copy_file_range', fails, raising=False)
    patch(tmp_path / 'a.zip', tmp_path / 'c.zip', {b'one': b'two'})
    monkeypatch.delattr(os, 'copy_file_range')
    patch(tmp_path / 'a.zip', tmp_path / 'd.zip', {b'one': b'two'})
    assert len({(tmp_path / f'{n}.zip').read_bytes() for n in 'bcd'}) == 1


def test_what_is_not_there_is_an_error_and_leaves_nothing(tmp_path):
    source = archive(tmp_path / 'a.zip')
    with pytest.raises(ForeignFileError, match='does not hold its stamp'):
        patch(source, tmp_path / 'b.zip', {b'one': b'two', b'nowhere': b'nothere'})
    with pytest.raises(ValueError, match='length'):
        patch(source, tmp_path / 'b.zip', {b'one': b'three'})
    (tmp_path / 'taken').write_bytes(b'mine')
    with pytest.raises(KeysegError, match='exists already'):
        patch(source, tmp_path / 'taken', {b'one': b'two'})
    (tmp_path / 'odd').write_bytes(bytes(range(256)) * 20)
    with pytest.raises(ForeignFileError):
        patch(tmp_path / 'odd', tmp_path / 'b.zip', {b'one': b'two'})
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.zip', 'odd', 'taken']
    assert (tmp_path / 'taken').read_bytes() == b'mine'
