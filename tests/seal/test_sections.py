"""Whole checkpoints: each section is sealed for itself, for several recipients, and opened by them alone."""

from __future__ import annotations

import copy
import itertools
from collections import OrderedDict, namedtuple
from dataclasses import replace

import pytest
import torch

from keyseg_mm import Identity, SecretKey, Trace, attach, entries_at, resolve, stamps_of
from keyseg_mm.bind import stamp_tensor
from keyseg_mm.entries import MapEntry
from keyseg_mm.envelope import MODES, SEALED, SIGNED
from keyseg_mm.errors import IntegrityError, KeyMismatchError, LockError, StampError
from keyseg_mm.keys.identity import HYBRID, X25519
from keyseg_mm.seal.nested import tensors_of, with_tensors
from keyseg_mm.seal.sections import (
    WEIGHTS,
    Sealing,
    check_meta_of,
    covered,
    rewrap,
    seal_checkpoint,
    sealed_stamp,
    trusted_stamp,
    unseal_checkpoint,
    unseal_section,
)
from keyseg_mm.stamp import Stamp, is_stamp
from keyseg_mm.wrapping import memory_stamp, open_envelope
from tests.support.layers import layers

KEY, OTHER = SecretKey(bytes(range(32))), SecretKey(bytes(range(1, 33)))
CUSTOMER, QUANTUM = Identity(bytes(range(2, 34)), X25519), Identity(bytes(range(3, 35)), HYBRID)
THIRD = Identity(bytes(range(4, 36)))
Pair = namedtuple('Pair', 'mean var')
SALT = bytes(range(16))


class Curve:
    """An object that a message hub holds."""

    def __init__(self):
        self.values = [1.5, 2.5]


def weights(seed: int = 0) -> OrderedDict:
    found = layers(seed).state_dict()
    found['norm.count'] = torch.tensor(7)
    found['norm.half'] = torch.randn(100).half()
    found['norm.empty'] = torch.ones(0, 3)
    found['extra'] = {'_extra_state': 3}  # what get_extra_state may give
    return found


def training() -> dict:
    """A training checkpoint of the host: weights in more places than one, nested, and objects beside them."""
    curve = Curve()
    return {
        'meta': {'epoch': 3, 'iter': 12, 'cfg': 'model = 1', 'dataset_meta': {'classes': ('road', 'sky')}},
        'state_dict': weights(),
        'ema_state_dict': {f'module.{n}': t for n, t in weights(1).items()},
        'optimizer': {
            'state': {0: {'step': 5, 'momentum_buffer': torch.randn(50)}, 1: {'pair': Pair(torch.randn(40), 2)}},
            'param_groups': [{'lr': 0.1, 'params': [0, 1]}],
        },
        'message_hub': {'log_scalars': {'loss': curve}, 'runtime_info': {'best': torch.randn(30), 'iter': 12}},
        'param_schedulers': [{'last_step': 3}],
        'queue': [torch.randn(33), (torch.randn(34), 'text')],
    }


SECTIONS = ('state_dict', 'ema_state_dict', 'optimizer', 'message_hub', 'queue')


def numbers(value) -> list[bytes]:
    return [
        t.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for t in tensors_of(value).values() if t.numel()
    ]


def alike(one, other) -> bool:
    """Whether two nested values are the same, to the type and bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(alike(one[n], other[n]) for n in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(alike, one, other))
    return one == other


@pytest.fixture
def sealed():
    return seal_checkpoint(training(), Sealing(KEY))


# ---- there and back


@pytest.mark.parametrize('mode', MODES)
def test_a_training_checkpoint_goes_round(mode):
    before = training()
    curve = before['message_hub']['log_scalars']['loss']
    wanted = copy.deepcopy({n: v for n, v in before.items() if n != 'message_hub'})
    content = seal_checkpoint(before, Sealing(KEY, mode=mode))
    assert alike({n: v for n, v in before.items() if n != 'message_hub'}, wanted), 'what is given stays as it is'
    assert list(content) == list(before)
    assert content['meta'] is before['meta'] and content['param_schedulers'] is before['param_schedulers']
    assert content['message_hub']['log_scalars']['loss'] is curve
    for name in SECTIONS:
        stamp = sealed_stamp(content[name])
        assert stamp.seal.section == name and stamp.seal.mode == mode
        plain, written = numbers(before[name]), b''.join(numbers(content[name]))
        long = [t for t in plain if len(t) >= 32]
        assert long and all((t in written) == (mode == SIGNED) for t in long)
    opened = unseal_checkpoint(KEY, content)
    assert opened['message_hub']['log_scalars']['loss'] is curve
    assert torch.equal(opened['message_hub']['runtime_info']['best'], before['message_hub']['runtime_info']['best'])
    assert alike({n: v for n, v in opened.items() if n != 'message_hub'}, wanted)
    assert not any(is_stamp(n) for name in SECTIONS[:3] for n in opened[name])


def test_what_torch_hangs_on_a_state_dict_stays(sealed):
    before = weights()
    before._metadata = layers().state_dict()._metadata
    content = seal_checkpoint({WEIGHTS: before}, Sealing(KEY))[WEIGHTS]
    assert content._metadata == before._metadata
    assert unseal_section(KEY, content)._metadata == before._metadata


def test_own_memory_may_be_overwritten():
    before = training()
    wanted = copy.deepcopy(before[WEIGHTS])
    content = seal_checkpoint(before, Sealing(KEY), own=True)
    assert alike(unseal_checkpoint(KEY, content, own=True)[WEIGHTS], wanted)


def test_memory_of_two_sections_is_not_overwritten_for_the_first_one():
    """As where a file was saved with its weights under two names."""
    weights = {'a': torch.arange(8.0), 'b': torch.ones(3)}
    content = {'state_dict': weights, 'model': weights, 'ema': {'a': weights['a'][:4]}}
    sealed = seal_checkpoint(content, Sealing(KEY), own=True)
    assert not torch.equal(sealed['state_dict']['a'], torch.arange(8.0))
    opened = unseal_checkpoint(KEY, sealed)
    for section in ('state_dict', 'model'):
        assert torch.equal(opened[section]['a'], torch.arange(8.0)) and torch.equal(opened[section]['b'], torch.ones(3))
    assert torch.equal(opened['ema']['a'], torch.arange(4.0))


@pytest.mark.parametrize('section', ['', ' ', 'ä', 'a' * 129, 1, None, '\n'])
def test_sections_whose_names_cannot_be_kept(section):
    with pytest.raises(LockError, match='cannot be sealed'):
        seal_checkpoint({'state_dict': {}, section: {'a': torch.ones(1)}}, Sealing(KEY))


@pytest.mark.parametrize('name', ['', '\x1b', 'a' * 513])
def test_names_of_one_tensor_that_cannot_be_kept(name):
    one = torch.ones(1)
    with pytest.raises(LockError, match='cannot be sealed'):
        seal_checkpoint({'state_dict': {'b': one, name: one}}, Sealing(KEY))


def test_no_content_key_twice(sealed):
    """One key for a file, fresh for each; a section has a key of its own, so the same tensor gives no same bytes."""
    same = torch.ones(1000)
    one, two = (seal_checkpoint({WEIGHTS: {'a': same}, 'ema_state_dict': {'a': same}}, Sealing(KEY)) for _ in range(2))
    secrets = [open_envelope(KEY, sealed_stamp(c[n])).content for c in (one, two) for n in (WEIGHTS, 'ema_state_dict')]
    assert secrets[0] == secrets[1] != secrets[2] == secrets[3]
    texts = [t for c in (one, two) for n in (WEIGHTS, 'ema_state_dict') for t in numbers({'a': c[n]['a']})]
    blocks = [{t[i : i + 16] for i in range(0, len(t), 16)} for t in texts]
    assert not any(a & b for a, b in itertools.combinations(blocks, 2))


def test_only_some_sections_are_opened(sealed):
    opened = unseal_checkpoint(KEY, sealed, but=(WEIGHTS,))
    assert opened[WEIGHTS] is sealed[WEIGHTS] and alike(opened['optimizer'], training()['optimizer'])
    assert sealed_stamp(opened['optimizer']) is None and sealed_stamp(opened[WEIGHTS])


def test_tensors_are_taken_out_and_put_back():
    value = {'a': [torch.ones(2), (torch.zeros(1), Pair(torch.ones(3), 'x'))], 5: {'b': torch.ones(4)}, 'c': 1}
    found = tensors_of(value)
    assert len(found) == 4
    twin = with_tensors(value, {name: t + 1 for name, t in found.items()})
    assert isinstance(twin['a'][1][1], Pair) and twin['a'][1][1].var == 'x' and twin['c'] == 1
    assert all(torch.equal(t, found[name] + 1) for name, t in tensors_of(twin).items())
    assert torch.equal(value['a'][0], torch.ones(2))


def test_names_of_nested_tensors_are_none_of_others():
    """A name that looks like a path is another tensor's; neither takes the place of the other."""
    value = {'["a", 0]': torch.ones(3), 'a': [torch.zeros(3)], '[': torch.ones(1), 1: torch.ones(4), '1': torch.ones(5)}
    content = seal_checkpoint({WEIGHTS: {'w': torch.ones(2)}, 'x': value}, Sealing(KEY))
    assert alike(unseal_checkpoint(KEY, content)['x'], value)
    with pytest.raises(LockError, match='keys are texts and numbers'):
        seal_checkpoint({WEIGHTS: {'w': torch.ones(2)}, 'x': {object(): torch.ones(3)}}, Sealing(KEY))


# ---- what is dropped, swapped, altered


@pytest.mark.parametrize('dropped', SECTIONS[1:])
def test_a_file_without_a_section_opens(dropped, sealed):
    del sealed[dropped]
    opened = unseal_checkpoint(KEY, sealed)
    assert dropped not in opened and alike(opened[WEIGHTS], weights())


def test_weights_alone_open(sealed):
    assert alike(unseal_checkpoint(KEY, {WEIGHTS: sealed[WEIGHTS]})[WEIGHTS], weights())
    assert alike(unseal_section(KEY, sealed[WEIGHTS]), unseal_checkpoint(KEY, sealed)[WEIGHTS])


@pytest.mark.parametrize('names', list(itertools.combinations(SECTIONS, 2)), ids='-'.join)
def test_swapped_sections_are_errors(names, sealed):
    one, two = names
    with pytest.raises(IntegrityError):
        unseal_checkpoint(KEY, {**sealed, one: sealed[two], two: sealed[one]})
    with pytest.raises(IntegrityError):
        unseal_checkpoint(KEY, {**sealed, one: sealed[two]})


@pytest.mark.parametrize('mode', MODES)
def test_parts_of_two_files_are_errors(mode):
    one, two = (seal_checkpoint({WEIGHTS: weights(i), 'meta': {}}, Sealing(KEY, mode=mode)) for i in range(2))
    name = sealed_stamp(one[WEIGHTS]).name
    with pytest.raises(IntegrityError):
        unseal_checkpoint(KEY, {**one, WEIGHTS: {**one[WEIGHTS], name: two[WEIGHTS][name]}})
    for weight in ('0.weight', '4.bias'):
        with pytest.raises(IntegrityError, match=weight):
            unseal_checkpoint(KEY, {**one, WEIGHTS: {**one[WEIGHTS], weight: two[WEIGHTS][weight]}})


ALTERED = {
    'a bit': lambda w: w.update({'0.weight': w['0.weight'].clone().view(torch.int32).__ixor__(1).view(torch.float32)}),
    'a tensor less': lambda w: w.pop('0.bias'),
    'a tensor more': lambda w: w.update(more=torch.ones(3)),
    'renamed': lambda w: w.update({'2.bais': w.pop('2.bias')}),
    'two exchanged': lambda w: w.update({'0.bias': w['2.bias'], '2.bias': w['0.bias']}),
    'another type': lambda w: w.update({'0.weight': w['0.weight'].view(torch.int32)}),
    'another shape': lambda w: w.update({'0.weight': w['0.weight'].reshape(-1)}),
    'an empty one, of another shape': lambda w: w.update({'norm.empty': torch.ones(0, 4)}),
}


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('how', ALTERED)
def test_altered_sections_are_errors(how, mode):
    content = seal_checkpoint({WEIGHTS: weights(), 'meta': {}}, Sealing(KEY, mode=mode))
    before = dict(content[WEIGHTS])
    ALTERED[how](content[WEIGHTS])
    for act in (
        lambda: unseal_checkpoint(KEY, content),
        lambda: unseal_section(KEY, content[WEIGHTS]),
        lambda: trusted_stamp(KEY, content[WEIGHTS]),
    ):
        with pytest.raises(IntegrityError):
            act()
    if mode == SIGNED:
        assert len(unseal_checkpoint(KEY, content, verify=False)[WEIGHTS]) in range(len(before) - 2, len(before) + 1)
    else:
        with pytest.raises(IntegrityError):
            unseal_checkpoint(KEY, content, verify=False)


def test_what_was_opened_of_an_altered_section_is_zeros():
    content = seal_checkpoint({WEIGHTS: weights()}, Sealing(KEY))[WEIGHTS]
    own = {n: torch.full_like(t, 9) for n, t in weights().items() if isinstance(t, torch.Tensor)}
    ALTERED['a bit'](content)
    with pytest.raises(IntegrityError, match='0.weight'):
        unseal_section(KEY, content, into=own)
    assert not any(t.any() for t in own.values())


def test_meta_are_checked_where_they_are_there(sealed):
    check_meta_of(KEY, sealed)
    for meta in ({}, {**sealed['meta'], 'epoch': 4}, {**sealed['meta'], 'cfg': 'model = 2'}):
        for act in (unseal_checkpoint, check_meta_of):
            if not meta and act is unseal_checkpoint:
                continue  # tools that drop them are many
            if not meta:
                act(KEY, {**sealed, 'meta': meta})
                continue
            with pytest.raises(IntegrityError, match='meta'):
                act(KEY, {**sealed, 'meta': meta})
    unseal_checkpoint(KEY, {n: v for n, v in sealed.items() if n != 'meta'})


def test_a_seal_that_was_taken_off_is_missed(sealed):
    """A stamp without its seal is none for memory: its envelope holds a content key."""
    section = dict(sealed[WEIGHTS])
    stamp = sealed_stamp(section)
    del section[stamp.name]
    bare = replace(stamp, seal=None)
    section[bare.name] = stamp_tensor(replace(bare, entries=(MapEntry('in:0', 3, {'type': 'ChannelPermutation'}),)))
    assert sealed_stamp(section) is None
    with pytest.raises((IntegrityError, StampError)):
        trusted_stamp(KEY, section)
    with pytest.raises(IntegrityError, match='seal'):
        open_envelope(KEY, bare)


def test_a_second_stamp_is_refused(sealed):
    other = memory_stamp(
        OTHER, Stamp(OTHER.id, SALT, (MapEntry('in:0', 3, {'type': 'ChannelPermutation'}),)), KEY.features(SALT)
    )
    both = {**sealed, WEIGHTS: {**sealed[WEIGHTS], other.name: stamp_tensor(other)}}
    for act in (lambda: unseal_checkpoint(KEY, both), lambda: rewrap(KEY, both, [OTHER])):
        with pytest.raises(StampError):
            act()


def test_what_cannot_be_sealed_is_refused():
    for bad in (torch.eye(3).to_sparse(), torch.ones(3, device='meta')):
        with pytest.raises(LockError, match='cannot be sealed'):
            seal_checkpoint({WEIGHTS: {'w': bad}}, Sealing(KEY))


# ---- recipients


EVERYBODY = (KEY, CUSTOMER, QUANTUM)


@pytest.mark.parametrize('mode', MODES)
def test_every_recipient_opens_it_and_nobody_else(mode):
    content = seal_checkpoint(training(), Sealing(KEY, (KEY, CUSTOMER.recipient, QUANTUM.recipient), mode))
    stamp = sealed_stamp(content[WEIGHTS])
    assert stamp.key_ids == tuple(k.id for k in EVERYBODY) and stamp.key_id == KEY.id
    assert [line.kind for line in stamp.recipients] == ['key', X25519, HYBRID]
    secrets = [open_envelope(key, stamp) for key in EVERYBODY]
    assert all(s == secrets[0] for s in secrets), 'all of them open the same model'
    for key in EVERYBODY:
        assert alike(unseal_checkpoint(key, content)['ema_state_dict'], training_of(content, key))
    for key in (OTHER, THIRD, Identity(bytes(range(2, 34)), HYBRID)):
        with pytest.raises(KeyMismatchError, match=f'{KEY.id} or {CUSTOMER.id} or {QUANTUM.id}.*{key.id}'):
            unseal_checkpoint(key, content)


def training_of(content: dict, key) -> dict:
    return unseal_section(key, content['ema_state_dict'], 'ema_state_dict')


def test_files_of_a_customer_for_the_owner():
    """Whoever has an identity can write for others, too; the owner need not be among them."""
    content = seal_checkpoint({WEIGHTS: weights()}, Sealing(CUSTOMER, (CUSTOMER.recipient, KEY)))
    assert sealed_stamp(content[WEIGHTS]).key_ids == (CUSTOMER.id, KEY.id)
    assert alike(unseal_checkpoint(KEY, content)[WEIGHTS], weights())
    alone = seal_checkpoint({WEIGHTS: weights()}, Sealing(KEY, (CUSTOMER.recipient,)))
    with pytest.raises(KeyMismatchError):
        unseal_checkpoint(KEY, alone)
    assert alike(unseal_checkpoint(CUSTOMER, alone)[WEIGHTS], weights())


def test_another_recipients_line_is_of_no_use():
    """Under a name that was put in its place, or in the place of its neighbour."""
    content = seal_checkpoint({WEIGHTS: weights()}, Sealing(KEY, (KEY, CUSTOMER.recipient)))
    stamp = sealed_stamp(content[WEIGHTS])
    one, two = stamp.recipients
    for lines in (
        (replace(one, data=two.data), two),
        (one, replace(two, data=one.data)),
        (one, replace(two, id=THIRD.id)),
    ):
        forged = replace(stamp, recipients=lines)
        for key in (KEY, CUSTOMER, THIRD):
            section = {n: t for n, t in content[WEIGHTS].items() if n != stamp.name}
            section[forged.name] = stamp_tensor(forged)
            with pytest.raises((IntegrityError, KeyMismatchError)):
                unseal_section(key, section)


# ---- maps, and other recipients later


@pytest.fixture
def locked():
    model = layers()
    from keyseg_mm import Trace, plan_lock
    from keyseg_mm.locking.engine import lock_in_place
    from tests.support.layers import pictures

    state = dict(model.state_dict())
    plan = plan_lock(model, trace=Trace.of(model, {'test': lambda: model(pictures())}))
    lock_in_place(state, plan, KEY, SALT)
    return state


def test_sealed_maps_have_a_stamp_for_memory_again(locked):
    before = stamps_of(locked)['']
    content = seal_checkpoint({WEIGHTS: locked}, Sealing(KEY, (KEY, CUSTOMER.recipient)))
    for key in (KEY, CUSTOMER):
        opened = unseal_checkpoint(key, content)[WEIGHTS]
        stamp = stamps_of(opened)['']
        assert (stamp.key_ids, stamp.seal) == ((key.id,), None)
        assert (stamp.entries, stamp.salt) == (before.entries, before.salt)
        assert open_envelope(key, stamp).features == KEY.features(SALT) and open_envelope(key, stamp).content is None
        assert all(torch.equal(opened[n], t) for n, t in locked.items() if not is_stamp(n))
    again = seal_checkpoint({WEIGHTS: opened}, Sealing(CUSTOMER, (CUSTOMER.recipient, KEY)))
    assert open_envelope(KEY, sealed_stamp(again[WEIGHTS])).features == KEY.features(SALT), 'the same tables go on'


@pytest.mark.parametrize('mode', MODES)
def test_rewrapped_for_others(mode, locked):
    before = {**training(), WEIGHTS: locked}
    content = seal_checkpoint(before, Sealing(KEY, (KEY, CUSTOMER.recipient), mode))
    stamps = rewrap(CUSTOMER, content, [QUANTUM.recipient, OTHER])
    assert len(stamps) == len(SECTIONS)
    changed = dict(content)
    for old, new in stamps:
        assert new.key_ids == (QUANTUM.id, OTHER.id) and (new.entries, new.salt) == (old.entries, old.salt)
        assert new.seal.tags == old.seal.tags and new.seal.tag != old.seal.tag
        section = {n: v for n, v in content[old.seal.section].items() if n != old.name}
        changed[old.seal.section] = {**section, new.name: stamp_tensor(new)}
    for key in (QUANTUM, OTHER):
        opened = unseal_checkpoint(key, changed)
        assert alike(opened['ema_state_dict'], dict(before['ema_state_dict']))
        assert all(torch.equal(opened[WEIGHTS][n], t) for n, t in locked.items() if not is_stamp(n))
        assert open_envelope(key, stamps_of(opened[WEIGHTS])['']).features == KEY.features(SALT)
    for key in (KEY, CUSTOMER):
        with pytest.raises(KeyMismatchError):
            unseal_checkpoint(key, changed)
    with pytest.raises(KeyMismatchError):
        rewrap(THIRD, content, [THIRD.recipient])


def test_what_was_altered_is_not_rewrapped(sealed):
    ALTERED['renamed'](sealed[WEIGHTS])
    with pytest.raises(IntegrityError):
        rewrap(KEY, sealed, [OTHER])


@pytest.mark.parametrize('mode', MODES)
def test_every_bit_of_a_stamp_counts(mode):
    section = {'w': torch.arange(8.0)}
    sealed = seal_checkpoint({WEIGHTS: section, 'meta': {'epoch': 1}}, Sealing(KEY, mode=mode))[WEIGHTS]
    name = next(filter(is_stamp, sealed))
    content = bytes(sealed[name].tolist())
    assert torch.equal(unseal_section(KEY, sealed, meta={'epoch': 1})['w'], section['w'])
    for bit in range(0, 8 * (len(content.rstrip()) + 2), 1 if mode == SEALED else 7):  # two of the blanks behind it too
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        altered = {**sealed, name: torch.frombuffer(changed, dtype=torch.uint8)}
        with pytest.raises((StampError, IntegrityError, KeyMismatchError)):
            unseal_section(KEY, altered, meta={'epoch': 1})


# ---- one file, one seal


@pytest.mark.parametrize('mode', MODES)
def test_sections_of_two_files_are_errors(mode):
    """They are of one key, and each for itself is what was sealed; but not together."""
    one, two = (seal_checkpoint({WEIGHTS: weights(i), 'ema': weights(i + 2)}, Sealing(KEY, mode=mode)) for i in (0, 1))
    assert unseal_checkpoint(KEY, one) and unseal_checkpoint(KEY, two)
    with pytest.raises(IntegrityError, match='put together from several files'):
        unseal_checkpoint(KEY, {**one, 'ema': two['ema']})
    with pytest.raises(IntegrityError, match='put together from several files'):
        unseal_checkpoint(KEY, {**one, 'ema': two['ema']}, but=(WEIGHTS,))  # as a run that goes on reads it
    with pytest.raises(IntegrityError, match='ema in this file has no seal, and the rest has'):
        unseal_checkpoint(KEY, {**one, 'ema': weights(1)})
    with pytest.raises(IntegrityError, match='state_dict in this file has no seal, and the rest has'):
        unseal_checkpoint(KEY, {**one, WEIGHTS: weights(1)})
    assert covered({**one, 'step': 3, 'meta': {}}) == ({WEIGHTS: 9, 'ema': 9}, ['step'])


PARTS = ('0', '2')


def of_parts(seed):
    """A model of which two parts are protected alone, and one layer is not at all."""
    model = layers(seed)
    for name in PARTS:
        part = model.get_submodule(name)
        x = torch.zeros(1, part.in_channels, 5, 5)
        sites = resolve('in:.', part, Trace.of(part, {'test': lambda part=part, x=x: part(x)}))
        attach(part, KEY, sites, entries_at(sites), salt=SALT)
    return model.state_dict()


@pytest.mark.parametrize('mode', MODES)
def test_a_file_of_protected_parts_is_under_one_seal(mode):
    """A keyed backbone, a neck alone: no part can be exchanged with its stamp, nor what is not protected."""
    files = [seal_checkpoint({WEIGHTS: of_parts(seed), 'meta': {'a': 1}}, Sealing(KEY, mode=mode)) for seed in (0, 1)]
    assert set(stamps_of(files[0][WEIGHTS])) == {'', *PARTS}
    opened = unseal_checkpoint(KEY, files[0])[WEIGHTS]
    assert all(torch.equal(opened[name], value) for name, value in layers(0).state_dict().items())
    for part in (*PARTS, '4'):
        theirs = {name: value for name, value in files[1][WEIGHTS].items() if name.startswith(f'{part}.')}
        assert len(theirs) == (3 if part in PARTS else 2)
        with pytest.raises(IntegrityError):
            unseal_checkpoint(KEY, {**files[0], WEIGHTS: {**files[0][WEIGHTS], **theirs}})
    swapped = dict(files[0][WEIGHTS])
    stamp = next(name.partition('.')[2] for name in swapped if name.startswith('0.keyseg'))
    swapped[f'0.{stamp}'], swapped[f'2.{stamp}'] = swapped[f'2.{stamp}'], swapped[f'0.{stamp}']
    with pytest.raises(IntegrityError):
        unseal_checkpoint(KEY, {**files[0], WEIGHTS: swapped})
