"""Files and stamps that were damaged or altered: each is an error that says so, and nothing of it is used."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from keyseg_mm import lock_file, rekey_file, stamps_of, unlock_file
from keyseg_mm.bind import stamp_tensor
from keyseg_mm.checkpoint.files import read_checkpoint, stamps_in, write_checkpoint
from keyseg_mm.checkpoint.rekeying import change_maps_file
from keyseg_mm.errors import IntegrityError, KeysegError, LockError, StampError
from keyseg_mm.seal.sections import Sealing, seal_checkpoint
from keyseg_mm.stamp import Stamp
from keyseg_mm.wrapping import memory_stamp
from tests.support.cli import keyseg
from tests.support.files import KEY, META, OTHER, SUFFIXES, VERBS, arguments, opened_weights, same, weights_in

# ---- files


def try_all(path: Path, out: Path, model, plan) -> list[KeysegError]:
    """What lock, rekey and unlock say of a file; what they write is looked at by the caller."""
    errors = []
    for act in (
        lambda: lock_file(path, model, plan, KEY, out, overwrite=True),
        lambda: rekey_file(path, KEY, [OTHER], out, overwrite=True),
        lambda: rekey_file(path, KEY, [OTHER], out, reseal=True, overwrite=True),
        lambda: change_maps_file(path, KEY, OTHER, out, overwrite=True),
        lambda: unlock_file(path, KEY, out, overwrite=True),
        lambda: unlock_file(path, KEY, out, keep_maps=True, overwrite=True),
    ):
        with pytest.raises(KeysegError) as caught:
            act()
        errors.append(caught.value)
    assert not out.exists()
    return errors


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_files_cut_short(suffix, made, model, plan, tmp_path, capsys):
    whole = (made / f'locked{suffix}').read_bytes()
    bad = tmp_path / f'bad{suffix}'
    for length in (0, 1, 7, 8, 100, 2000, len(whole) // 2, len(whole) - 1000, len(whole) - 1):
        bad.write_bytes(whole[:length])
        for error in try_all(bad, tmp_path / 'out.pth', model, plan):
            assert 'cut short' in str(error) and str(bad) in str(error), length
    for verb in VERBS:
        assert keyseg(*arguments(verb, made, bad, tmp_path / 'out.pth')) == 1
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert keyseg(*arguments('unlock', made, tmp_path / 'none.pth', tmp_path / 'out.pth')) == 1
    assert 'no such file' in capsys.readouterr().err


@pytest.mark.parametrize('name', ['locked', 'signed'])
@pytest.mark.parametrize('suffix', SUFFIXES)
def test_a_flipped_bit_of_a_weight(suffix, name, made, tmp_path):
    """Anywhere in a weight or statistic, of carried weights and others: its tag does not fit."""
    whole = (made / f'{name}{suffix}').read_bytes()
    tensors = weights_in(made / f'{name}{suffix}')
    names = [n for n, t in tensors.items() if t.numel() > 3]
    rng = np.random.default_rng(0)
    out, bad = tmp_path / 'out.pth', tmp_path / f'bad{suffix}'
    for weight in rng.choice(names, 12, replace=False):
        data = tensors[weight].contiguous().numpy().tobytes()
        start = whole.index(data)
        content = bytearray(whole)
        content[start + rng.integers(len(data))] ^= 1 << rng.integers(8)
        bad.write_bytes(content)
        said = weight if name == 'locked' else '[a-z0-9_.]+'  # fresh norms are alike: it may be another's bytes
        for keep_maps in (False, True):
            with pytest.raises(IntegrityError, match=f'{said} in state_dict was altered'):
                unlock_file(bad, KEY, out, keep_maps=keep_maps)
        with pytest.raises(IntegrityError):
            rekey_file(bad, KEY, [OTHER], out, reseal=True)
        with pytest.raises(IntegrityError):
            change_maps_file(bad, KEY, OTHER, out)
        assert not out.exists()
    rekeyed = tmp_path / f'rekeyed{suffix}'
    rekey_file(bad, KEY, [OTHER], rekeyed)  # opens nothing, and so finds nothing; whoever opens it does
    with pytest.raises(IntegrityError, match=f'{said} in state_dict was altered'):
        unlock_file(rekeyed, OTHER, out)
    if name == 'locked':
        with pytest.raises(IntegrityError):
            unlock_file(bad, KEY, out, check=False)
        assert not out.exists()
    else:
        unlock_file(bad, KEY, out, check=False)
        assert not same(weights_in(out), weights_in(made / f'plain{suffix}'))


@pytest.mark.parametrize('name', ['locked', 'signed'])
@pytest.mark.parametrize('suffix', SUFFIXES)
def test_flipped_bits_anywhere(suffix, name, made, tmp_path):
    """In the heads of the files too: an error of the package, or else the flip was of no account."""
    whole = (made / f'{name}{suffix}').read_bytes()
    wanted = weights_in(made / f'plain{suffix}')
    out, bad = tmp_path / 'out.pth', tmp_path / f'bad{suffix}'
    rng = np.random.default_rng(1)
    regions = ((0, 16_000), (len(whole) - 16_000, len(whole)), (0, len(whole)))
    said = []
    for index in range(150):
        content = bytearray(whole)
        for _ in range(1 if index % 2 else 20):
            content[rng.integers(*regions[index % 3])] ^= 1 << rng.integers(8)
        bad.write_bytes(content)
        try:
            unlock_file(bad, KEY, out, overwrite=True)
        except KeysegError as error:
            said.append(error)
        else:
            assert same(weights_in(out), wanted)
            assert read_checkpoint(out)['meta'] in (META, {})
    assert len(said) > 75
    assert any(isinstance(e, IntegrityError) for e in said) and any('restore it from a copy' in str(e) for e in said)


class Malicious:
    """Its pickle creates a file when it is read by an unguarded reader."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), 'w'))


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('place', ['beside', 'in the state_dict', 'in meta'])
def test_code_in_a_pickle_is_never_run(place, zipped, made, model, plan, tmp_path):
    witness, bad = tmp_path / 'witness', tmp_path / 'bad.pth'
    content = torch.load(made / 'locked.pth', weights_only=True)
    {'beside': content, 'in the state_dict': content['state_dict'], 'in meta': content['meta']}[place]['x'] = Malicious(
        witness
    )
    torch.save(content, bad, _use_new_zipfile_serialization=zipped)
    try_all(bad, tmp_path / 'out.pth', model, plan)
    assert not witness.exists()
    torch.load(bad, weights_only=False)
    assert witness.exists(), 'it would have worked'


def test_what_is_no_state_dict(model, plan, tmp_path):
    bad = tmp_path / 'bad.pth'
    good = model.state_dict()
    for content in (
        [1, 2],
        {1: torch.ones(2)},
        {'state_dict': {**good, 1: torch.ones(2)}},
        {'state_dict': {**good, 'x': torch.eye(3).to_sparse()}},
        {'state_dict': {**good, 'x': torch.ones(3, device='meta')}},
        {},
    ):
        torch.save(content, bad)
        try_all(bad, tmp_path / 'out.pth', model, plan)


# ---- stamps


def restamped(made: Path, path: Path, change, rename: str | None = None, of: str = 'locked.pth') -> Path:
    """A copy of a protected checkpoint with another text in its stamp."""
    content = torch.load(made / of, weights_only=True)
    name = next(n for n in content['state_dict'] if 'keyseg_stamp' in n)
    stamp = content['state_dict'].pop(name)
    text = change(bytes(stamp.tolist()).decode().rstrip()) if change else None
    value = stamp if change is None else text
    if isinstance(text, (str, dict)):
        text = text if isinstance(text, str) else json.dumps(text, separators=(',', ':'))
        value = torch.tensor(list(text.encode()), dtype=torch.uint8)
    content['state_dict'][rename or name] = value
    torch.save(content, path)
    return path


def without(text: str, *names: str) -> dict:
    return {name: value for name, value in json.loads(text).items() if name not in names}


DAMAGES = {
    'empty': lambda text: '',
    'cut': lambda text: text[: len(text) // 2],
    'a letter': lambda text: text.replace('{', '(', 1),
    'another format': lambda text: text.replace('keyseg_mm stamp', 'keyseg_mm stomp'),
    'a list': lambda text: '[1]',
    'deep': lambda text: '[' * 100_000,
    'endless channels': lambda text: text.replace('"channels":3', '"channels":1e999'),
    'no point': lambda text: text.replace('in:backbone', 'on:backbone', 1),
    'short salt': lambda text: {**json.loads(text), 'salt': 'ab'},
    'odd commitment': lambda text: {**json.loads(text), 'commitment': 'xyz'},
    'odd seal': lambda text: {**json.loads(text), 'seal': 'xyz'},
    'no recipients': lambda text: {**json.loads(text), 'recipients': []},
    'a seal without an envelope': lambda text: without(text, 'recipients', 'commitment'),
    'spaces': lambda text: json.dumps(json.loads(text)),
    'a float tensor': lambda text: torch.ones(5),
    'no tensor': lambda text: None,
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_damaged_stamps(damage, made, model, plan, tmp_path, capsys):
    content = read_checkpoint(made / 'locked.pth')['state_dict']
    text = bytes(next(t for n, t in content.items() if 'keyseg_stamp' in n).tolist()).decode().rstrip()
    changed = DAMAGES[damage](text)
    assert not isinstance(changed, (str, dict)) or changed not in (text, json.loads(text)), 'it changes something'
    bad = restamped(made, tmp_path / 'bad.pth', DAMAGES[damage])
    assert {type(error) for error in try_all(bad, tmp_path / 'out.pth', model, plan)} == {StampError}
    assert keyseg(*arguments('unlock', made, bad, tmp_path / 'out.pth'), '--no-verify') == 1
    assert 'stamp' in capsys.readouterr().err


def test_a_stamp_with_a_transform_that_is_not_known_here(made, tmp_path, capsys):
    """Whoever has the key may have a newer release: it is whole, shows what it is, and can be rekeyed."""
    weights = opened_weights(made / 'locked.pth')
    stamp = stamps_of(weights)['']
    first = replace(stamp.entries[0], transform={'type': 'PermutationOfTomorrow'})
    newer = memory_stamp(KEY, replace(stamp, entries=(first, *stamp.entries[1:])), KEY.features(stamp.salt))
    weights[newer.name] = stamp_tensor(newer)  # in the place of the other: one key, one name
    bad = tmp_path / 'bad.pth'
    write_checkpoint(bad, seal_checkpoint({'state_dict': weights}, Sealing(KEY))['state_dict'], {})
    assert keyseg('show', bad) == 0
    assert 'PermutationOfTomorrow' in capsys.readouterr().out
    for verb, more in (('rekey', '--new-maps'), ('unlock', '--no-verify')):
        assert keyseg(*arguments(verb, made, bad, tmp_path / 'out.pth'), more) == 1
        assert 'PermutationOfTomorrow' in capsys.readouterr().err
    with pytest.raises(StampError, match='not known here'):
        unlock_file(bad, KEY, tmp_path / 'out.pth')
    rekey_file(bad, KEY, [OTHER], tmp_path / 'out.pth')
    found = opened_weights(tmp_path / 'out.pth', OTHER)
    assert stamps_of(found)[''].entries == newer.entries
    assert all(torch.equal(found[n], t) for n, t in weights.items() if n != newer.name)


def test_a_stamp_of_a_later_version(made, tmp_path):
    bad = restamped(made, tmp_path / 'bad.pth', lambda text: text.replace('"version":1', '"version":99'))
    with pytest.raises(StampError, match='newer keyseg_mm'):
        unlock_file(bad, KEY, tmp_path / 'out.pth')


def test_a_stamp_under_another_name_or_twice(made, model, plan, tmp_path):
    plain = read_checkpoint(made / 'locked.pth')['state_dict']
    name = next(n for n in plain if 'keyseg_stamp' in n)
    bad = restamped(made, tmp_path / 'bad.pth', None, name.replace(KEY.id, OTHER.id))
    assert {type(error) for error in try_all(bad, tmp_path / 'out.pth', model, plan)} == {StampError}
    bare = Stamp(OTHER.id, bytes(16), stamps_of(plain)[''].entries)
    for other in (bare, memory_stamp(OTHER, bare, OTHER.features(bare.salt))):
        for both in ({**plain, other.name: stamp_tensor(other)}, {other.name: stamp_tensor(other), **plain}):
            torch.save({'state_dict': both}, bad)
            assert {type(error) for error in try_all(bad, tmp_path / 'out.pth', model, plan)} == {StampError}


def envelope(change):
    """A change of the first line of the envelope, or of what wraps it."""

    def altered(text: str) -> dict:
        rows = json.loads(text)
        change(rows)
        return rows

    return altered


ALTERATIONS = {
    'another point': lambda text: text.replace('in:backbone.layer1.0.conv1', 'in:backbone.layer1.0.conv9', 1),
    'another salt': lambda text: {**json.loads(text), 'salt': '00' * 16},
    'another transform': lambda text: text.replace('SignedChannelPermutation', 'ChannelPermutation', 1),
    'another weight': lambda text: text.replace('layer1.0.conv1.weight', 'layer1.0.conv2.weight', 1),
    'one point less': lambda text: {**json.loads(text), 'entries': json.loads(text)['entries'][1:]},
    'another commitment': lambda text: {**json.loads(text), 'commitment': '00' * 32},
    'another line': envelope(
        lambda rows: rows['recipients'][0].update(data='AAAA' + rows['recipients'][0]['data'][4:])
    ),
    'one line more': envelope(lambda rows: rows['recipients'].append({**rows['recipients'][0], 'id': OTHER.id})),
    'another section': envelope(lambda rows: rows['seal'].update(section='ema_state_dict')),
    'other tags': envelope(lambda rows: rows['seal'].update(tags='AAAA' + rows['seal']['tags'][4:])),
    'less tags': envelope(lambda rows: rows['seal'].update(tags='')),
    'other meta': envelope(lambda rows: rows['seal'].update(meta='A' * 43 + '=')),
    'no meta': envelope(lambda rows: rows['seal'].update(meta='')),
    'another tag': envelope(lambda rows: rows['seal'].update(tag='A' * 43 + '=')),
    'another chunk': envelope(lambda rows: rows['seal'].update(chunk=2**21)),
    'shared': envelope(
        lambda rows: rows['seal'].update(
            shared={'decode_head.convs.0.bn.running_var': 'auxiliary_head.convs.0.bn.running_var'}
        )
    ),
    'no seal': lambda text: without(text, 'seal'),
    'no seal and no envelope': lambda text: without(text, 'seal', 'recipients', 'commitment'),
}
MODES_CHANGED = {
    'locked.pth': envelope(lambda rows: rows['seal'].update(mode='signed')),
    'signed.pth': envelope(lambda rows: rows['seal'].update(mode='sealed')),
}


@pytest.mark.parametrize('of', ['locked.pth', 'signed.pth'])
@pytest.mark.parametrize('alteration', [*ALTERATIONS, 'another mode'])
def test_altered_stamps(alteration, of, made, tmp_path, capsys):
    change = MODES_CHANGED[of] if alteration == 'another mode' else ALTERATIONS[alteration]
    bad = restamped(made, tmp_path / 'bad.pth', change, of=of)
    before, after = stamps_in(made / of)[''], stamps_in(bad)['']
    assert before.to_json() != after.to_json()
    for verb in ('rekey', 'unlock'):
        assert keyseg(*arguments(verb, made, bad, tmp_path / 'out.pth')) == 1
        said = capsys.readouterr().err
        assert re.search('altered|taken off|has no seal|put together|are not in this file', said), said
        assert len(said.splitlines()) == 1
    with pytest.raises(IntegrityError):
        unlock_file(bad, KEY, tmp_path / 'out.pth')
    with pytest.raises(LockError if alteration.startswith('no seal') else IntegrityError):
        unlock_file(bad, KEY, tmp_path / 'out.pth', keep_maps=True)
    with pytest.raises(IntegrityError):
        change_maps_file(bad, KEY, OTHER, tmp_path / 'out.pth')
    with pytest.raises(KeysegError):
        rekey_file(bad, KEY, [OTHER], tmp_path / 'out.pth', reseal=True)
    assert not (tmp_path / 'out.pth').exists()


def test_no_verify_reads_an_intact_file_without_its_envelope(made, tmp_path):
    """Its key is the owner's, from which the tables are derived; and its weights are in the open."""
    change = ALTERATIONS['no seal and no envelope']
    bad = restamped(made, tmp_path / 'bad.pth', change, of='signed.pth')
    assert keyseg(*arguments('unlock', made, bad, tmp_path / 'out.pth'), '--no-verify') == 0
    assert same(weights_in(tmp_path / 'out.pth'), weights_in(made / 'plain.pth'))


def test_meta_are_part_of_what_was_sealed(made, tmp_path):
    content = torch.load(made / 'locked.pth', weights_only=True)
    bad, out = tmp_path / 'bad.pth', tmp_path / 'out.pth'
    for meta in ({**META, 'epoch': 4}, {**META, 'more': 1}, {n: v for n, v in META.items() if n != 'epoch'}):
        torch.save({**content, 'meta': meta}, bad)
        for act in (lambda: unlock_file(bad, KEY, out), lambda: rekey_file(bad, KEY, [OTHER], out)):
            with pytest.raises(IntegrityError, match='meta'):
                act()
    torch.save({'state_dict': content['state_dict']}, bad)  # tools that drop them are many
    unlock_file(bad, KEY, out)
    assert same(weights_in(out), weights_in(made / 'plain.pth'))
