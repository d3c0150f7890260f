"""The states of a protection, as a table of what leads where; and copies, which share the key and nothing else."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from keyseg_mm import Trace, detach, lock, plan_lock, protections, resolve, save, unlock_model
from keyseg_mm.errors import (
    KeyMismatchError,
    KeysegError,
    LockError,
    NotFiredError,
    PlainCheckpointError,
    PlanMismatchError,
)
from keyseg_mm.keys.key import SecretKey
from keyseg_mm.runtime.attach import await_checkpoint, protection_of, run_without_key
from keyseg_mm.runtime.protection import Rules, State
from tests.support.layers import KEY, SALTS, encryptors, keyed_layers, layers, pictures, sites_in

OTHER = SecretKey(bytes(range(1, 33)))


def keyed(salt, seed=5, rules=Rules()):  # noqa: B008
    """At points whose maps linear layers read, so that it can be opened."""
    return keyed_layers(salt, points=('in:2', 'in:4'), seed=seed, rules=rules)


def find_sites(model, stamp):
    plain = copy.deepcopy(model)
    detach(plain)
    return sites_in(plain, [entry.point for entry in stamp.maps])


def trace(model):
    return Trace.of(model, {'test': lambda: model(pictures())})


def locked(seed=0, key=KEY, salt=SALTS[1]):
    model = layers(seed)
    return lock(model.state_dict(), model, key, salt=salt, trace=trace(model))


def waiting(seed=5, **rules):
    model = layers(seed)
    await_checkpoint(model, rules.pop('key', KEY), Rules(find_sites=find_sites, **rules))
    return model


def without_key():
    model = layers(5)
    run_without_key(model)
    return model


MODELS = {
    'waiting': waiting,
    'waiting to unlock': lambda: waiting(unlock=True),
    'waiting, plain allowed': lambda: waiting(takes_plain=True),
    'keyed': lambda: keyed(SALTS[2]),
    'keyed, plain allowed': lambda: keyed(SALTS[2], rules=Rules(takes_plain=True)),
    'keyed, salt fixed': lambda: keyed(SALTS[2], rules=Rules(fixed_salt=True)),
    'keyed by a checkpoint': lambda: loaded(waiting(), locked(3, salt=SALTS[3])),
    'plain': lambda: loaded(waiting(unlock=True), locked(3, salt=SALTS[3])),
    'without key': without_key,
}
FILES = {
    'plain': lambda: dict(layers(1).state_dict()),
    'locked': lambda: locked(1),
    'trained with the key': lambda: dict(keyed(SALTS[1], seed=1).state_dict()),
    'of another key': lambda: locked(1, OTHER),
    'two stamps': lambda: locked(1, OTHER) | locked(1),
}
W, K, P, N = State.WAITING, State.KEYED, State.PLAIN, State.WITHOUT
REFUSED, WRONG_KEY, DIFFERS = PlainCheckpointError, KeyMismatchError, PlanMismatchError
#: By model and file: the state that follows, or the error after which everything is as it was.
TABLE = {
    #                          plain    locked   trained  other key  two stamps
    'waiting':                 [REFUSED, K,      K,       WRONG_KEY, KeysegError],
    'waiting to unlock':       [REFUSED, P,      P,       WRONG_KEY, KeysegError],
    'waiting, plain allowed':  [REFUSED, K,      K,       WRONG_KEY, KeysegError],
    'keyed':                   [REFUSED, DIFFERS, K,      WRONG_KEY, KeysegError],
    'keyed, plain allowed':    [K,       DIFFERS, K,      WRONG_KEY, KeysegError],
    'keyed, salt fixed':       [REFUSED, DIFFERS, DIFFERS, WRONG_KEY, KeysegError],
    'keyed by a checkpoint':   [REFUSED, K,      K,       WRONG_KEY, KeysegError],
    'plain':                   [REFUSED, P,      P,       WRONG_KEY, KeysegError],
    'without key':             [N,       N,      N,       N,         KeysegError],
}  # fmt: skip


def loaded(model, state_dict):
    model.load_state_dict(state_dict, strict=False)
    return model


@pytest.fixture(autouse=True)
def _dry_run(monkeypatch):
    """The weights that read a map are found by running the model, and this one is not the host's."""
    monkeypatch.setattr(Trace, 'by_dry_run', classmethod(lambda cls, model: trace(bare(model))))


def bare(model):
    plain = copy.deepcopy(model)
    detach(plain)
    return plain


def outcome(model):
    """What a model gives, or why it does not."""
    try:
        return model(pictures())
    except NotFiredError as error:
        return str(error)


@pytest.mark.parametrize('before', MODELS)
@pytest.mark.parametrize('column', range(len(FILES)))
def test_what_is_loaded_leads_where(before, column):
    model, expected = MODELS[before](), TABLE[before][column]
    name = list(FILES)[column]
    content = FILES[name]()
    state, stamp, given = protection_of(model).state, protection_of(model).stamp, outcome(model)
    if not isinstance(expected, State):
        with pytest.raises(expected):
            loaded(model, content)
        after = outcome(model)
        assert (protection_of(model).state, protection_of(model).stamp) == (state, stamp)
        assert torch.equal(after, given) if torch.is_tensor(given) else after == given
        return
    loaded(model, content)
    protection = protection_of(model)
    assert protection.state is expected
    assert bool(protection.encryptors) == (expected is K)
    plain = layers(1)(pictures())
    if expected is W:
        assert outcome(model) == given
    elif name == 'locked':
        assert torch.allclose(outcome(model), plain, atol=1e-5) == (expected in (K, P))
    elif name == 'trained with the key':
        assert torch.allclose(outcome(model), keyed(SALTS[1], seed=1)(pictures()), atol=1e-5) == (expected != N)


@pytest.mark.parametrize('before', MODELS)
def test_what_each_state_saves(before):
    model = MODELS[before]()
    protection = protection_of(model)
    assert isinstance(protection.stamp.key_id, str) and protection.public_id
    if protection.state is W:
        with pytest.raises(NotFiredError, match='no protected checkpoint'):
            protection.check(model)
    else:
        protection.check(model)
    stamps = [name for name in model.state_dict() if name.startswith('keyseg_stamp')]
    assert bool(stamps) == (protection.state is K)


def test_a_waiting_model_runs_by_no_way_at_all():
    model, x = waiting(), pictures()
    for run in (model, model.forward, model[0], model[1], model[0].forward, model[4]):
        with pytest.raises(NotFiredError, match='no protected checkpoint'):
            run(x)
    assert detach(model) == 1
    model(x)


NOT_TO_BE_WRITTEN = {
    'waiting': (waiting, NotFiredError, 'no protected checkpoint'),
    'given parameters by hand': (lambda: filled(waiting()), NotFiredError, 'no protected checkpoint'),
    'without key': (lambda: loaded(without_key(), locked()), KeyMismatchError, 'nothing is written'),
    'with a wrong key': (lambda: keyed(SALTS[1], rules=Rules(deliberate=True)), KeyMismatchError, 'nothing is written'),
}


def filled(model):
    with torch.no_grad():
        for mine, theirs in zip(model.parameters(), layers(1).parameters()):
            mine.copy_(theirs)
    return model


@pytest.mark.parametrize('name', NOT_TO_BE_WRITTEN)
def test_what_would_not_be_what_it_is_called_is_not_written(name, tmp_path):
    make, error, words = NOT_TO_BE_WRITTEN[name]
    model = make()
    found = model.state_dict()
    for content in (found, {'state_dict': found}, copy.copy(found), copy.deepcopy(found), found.copy()):
        with pytest.raises(error, match=words):
            torch.save(content, tmp_path / 'model.pth')
        with pytest.raises(error, match=words):
            pickle.dumps(content)
    with pytest.raises(error, match=words):
        save(model, tmp_path / 'sealed.pth')
    assert not (tmp_path / 'sealed.pth').exists()
    twin = layers(7)
    weights = {name: value for name, value in found.items() if not name.startswith('keyseg_stamp')}
    twin.load_state_dict(weights)
    assert torch.equal(twin[4].weight, model[4].weight) and not torch.equal(layers(7)[4].weight, model[4].weight)
    torch.save(loaded(waiting(), locked()).state_dict(), tmp_path / 'model.pth')


def test_a_model_without_key_puts_no_stamp_on_its_weights():
    assert not [name for name in loaded(without_key(), locked()).state_dict() if name.startswith('keyseg_stamp')]


def test_a_copy_shares_the_key_and_nothing_else():
    first = keyed(SALTS[1], seed=1)
    second = copy.deepcopy(first)
    assert protections(first)[0].key is protections(second)[0].key
    assert protections(first)[0] is not protections(second)[0]
    assert not set(map(id, encryptors(first))) & set(map(id, encryptors(second)))
    x = pictures()
    before = first(x)
    assert torch.equal(second(x), before)
    assert [e.calls for e in encryptors(second)] == [1, 1] == [e.calls for e in encryptors(first)]
    other = keyed(SALTS[2], seed=2)
    loaded(second, other.state_dict())
    assert not torch.allclose(other(x), before, atol=1e-3)
    assert torch.equal(second(x), other(x)) and torch.equal(first(x), before)
    for model, want in ((first, before), (second, other(x))):
        protections(model)[0].check(model)
        assert torch.equal(loaded(keyed(SALTS[0]), model.state_dict())(x), want)
    detach(second)
    assert torch.equal(first(x), before)


def test_copies_made_before_the_load():
    """Of an EMA or a teacher: each takes its own checkpoint, and one that got only parameters does not run."""
    model = waiting()
    teacher, left_behind = copy.deepcopy(model), copy.deepcopy(model)
    loaded(model, locked(1))
    loaded(teacher, locked(2, salt=SALTS[2]))
    x = pictures()
    for student, seed in ((model, 1), (teacher, 2)):
        assert torch.allclose(student(x), layers(seed)(x), atol=1e-5)
    with torch.no_grad():
        for mine, theirs in zip(left_behind.parameters(), model.parameters()):
            mine.copy_(theirs)
    for use in (lambda: left_behind(x), lambda: left_behind[4](x)):
        with pytest.raises(NotFiredError):
            use()
    assert not any(name.startswith('keyseg_stamp') for name in left_behind.state_dict())


def test_a_copied_part_runs_alone():
    model, x = keyed(SALTS[0]), torch.rand(1, 32, 8, 8)
    part = copy.deepcopy(model[2])
    want = model[2](x)
    loaded(model, keyed(SALTS[3]).state_dict())
    assert torch.equal(part(x), want) and not torch.equal(model[2](x), want)


def test_unlock_model_opens_what_is_keyed_and_only_that():
    x = pictures()
    model = loaded(waiting(), locked(1))
    unlock_model(model)
    assert torch.equal(model(x), layers(1)(x)) and not protections(model)
    for made, error, words in (
        (layers, LockError, 'not protected'),
        (without_key, LockError, 'on purpose'),
        (waiting, NotFiredError, 'no protected checkpoint'),
    ):
        with pytest.raises(error, match=words):
            unlock_model(made())


def test_attach_takes_an_entry_for_each_site():
    from keyseg_mm import attach, entries_at

    model = layers()
    sites = sites_in(model)
    signs, turns = (
        entries_at(sites, 'SignedChannelPermutation'),
        entries_at(sites, {'type': 'ChannelRotation', 'block': 4}),
    )
    for wrong in (signs[:2], signs[::-1]):
        with pytest.raises(PlanMismatchError, match='one entry for each site'):
            attach(model, KEY, sites, wrong)
    mixed = (signs[0], turns[1], signs[2])
    attach(model, KEY, sites, mixed, salt=SALTS[0])
    assert [type(e.map).__name__ for e in encryptors(model)] == [entry.transform['type'] for entry in mixed]


def test_plans_of_keyed_models_see_the_plain_one():
    plan = plan_lock(layers(), trace=trace(layers()))
    assert {entry.point for entry in plan.entries} == {'in:0', 'in:2', 'in:4'}
    assert resolve('linear', layers(), trace(layers()))
