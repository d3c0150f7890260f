"""What `keyseg export` makes computes what the model does, with the key alone, and tells nothing without it."""

from __future__ import annotations

import io
import pickle
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from keyseg_mm import find_leaks, stamps_of
from keyseg_mm.checkpoint.files import read_checkpoint
from keyseg_mm.checkpoint.rekeying import rekey_file
from keyseg_mm.cli.status import FOUND
from keyseg_mm.deploy import load, read_exported
from keyseg_mm.deploy.container import archive_of, members_of
from keyseg_mm.deploy.graph import Graph
from keyseg_mm.deploy.loading import ready
from keyseg_mm.errors import IntegrityError, KeyFileError, KeyMismatchError, KeysegError
from keyseg_mm.wrapping import open_envelope
from tests.support.cli import keyseg
from tests.support.exports import export, gap
from tests.support.tracebacks import shown

CLOSE = 1e-5


def test_a_sealed_graph_is_the_model_for_its_recipients_alone(shop, sealed, photo, scores, other_key):
    for key in (shop.key, shop.customer, f'file:{shop.folder}/customer.key'):
        session = load(sealed, key)
        assert type(session) is onnxruntime.InferenceSession
        assert [found.shape for found in session.get_inputs()] == [[1, 64, 96, 3]]
        assert gap(session.run(None, {'image': photo})[0], scores) < CLOSE
    with pytest.raises(KeyMismatchError, match=other_key.id):
        load(sealed, other_key)
    for locator in ('none', None):
        with pytest.raises(KeyFileError):
            load(sealed, locator)


def test_a_sealed_graph_tells_nothing(shop, sealed):
    content = sealed.read_bytes()
    opened = bytes(read_exported(sealed, shop.key).graph)
    weight = shop.model.decode_head.conv_seg.weight.detach().numpy().tobytes()
    for part in (b'Conv', weight[:32]):
        assert part in opened and part not in content
    assert len(content) - len(opened) < 20_000


def test_a_sealed_graph_says_what_it_is(shop, sealed):
    meta = read_exported(sealed, shop.key).meta
    assert meta['classes'] == list('abcde') and meta['size'] == [64, 96]
    assert meta['image'].startswith('uint8') and 'logits' in meta


def test_scan_looks_for_the_key_of_a_sealed_graph(shop, sealed, tmp_path, capsys):
    (tmp_path / sealed.name).write_bytes(sealed.read_bytes())
    given = ('scan', tmp_path, '--key', f'file:{shop.folder}/my.key')
    assert keyseg(*given) == 0
    (stamp,) = stamps_of(read_checkpoint(sealed)['state_dict']).values()
    (tmp_path / 'log').write_text(f'content key {open_envelope(shop.key, stamp).content.material.hex()}')
    assert keyseg(*given) == FOUND and 'log' in capsys.readouterr().out


def test_the_graph_names_no_file_of_this_machine(shop, sealed):
    opened = bytes(read_exported(sealed, shop.key).graph)
    assert b'.py' not in opened and str(shop.folder).encode() not in opened


@pytest.mark.parametrize('reseal', [False, True])
def test_a_sealed_graph_is_given_to_others_as_checkpoints_are(reseal, shop, sealed, other_key, tmp_path, photo, scores):
    rekey_file(sealed, shop.key, [other_key], tmp_path / 'theirs.onnx.sealed', reseal=reseal)
    graphs = [read_checkpoint(path)['state_dict']['graph'] for path in (sealed, tmp_path / 'theirs.onnx.sealed')]
    assert torch.equal(*graphs) != reseal
    assert gap(load(tmp_path / 'theirs.onnx.sealed', other_key).run(None, {'image': photo})[0], scores) < CLOSE
    with pytest.raises(KeyMismatchError):
        load(tmp_path / 'theirs.onnx.sealed', shop.key)
    assert stamps_of(read_checkpoint(sealed)['state_dict'])['']


def test_openvino_computes_the_same(shop, sealed, keyed, photo, image, scores):
    config = {'INFERENCE_PRECISION_HINT': 'f32'}
    assert gap(load(sealed, shop.key, 'openvino', config=config)([photo])[0], scores) < CLOSE
    model = load(keyed, shop.key, 'openvino', config=config)
    assert gap(model([image])[0], scores) < CLOSE and gap(model({'image': image})[0], scores) < CLOSE
    assert gap(load(keyed, 'none', 'openvino', config=config)([image])[0], scores) > 0.1


def test_a_keyed_graph_is_the_model_with_its_tables_alone(shop, keyed, image, scores, other_key):
    assert gap(load(keyed, shop.key).run(None, {'image': image})[0], scores) < CLOSE
    assert gap(load(keyed, 'none').run(None, {'image': image})[0], scores) > 0.1
    with pytest.raises(KeyMismatchError):
        load(keyed, other_key)
    bare = onnxruntime.InferenceSession(keyed.read_bytes())
    tables = read_exported(keyed, shop.key).tables
    assert [found.name for found in bare.get_inputs()] == ['image', *tables]
    assert len(tables) == 2 * len({name.partition('/')[0] for name in tables}) > 8
    assert gap(bare.run(None, {'image': image, **tables})[0], scores) < CLOSE


def test_no_table_is_in_a_keyed_graph(shop, keyed, tmp_path):
    stamps = stamps_of(read_checkpoint(shop.folder / 'locked.pth')['state_dict'])
    table = max(read_exported(keyed, shop.key).tables.values(), key=len)
    (tmp_path / 'planted').write_bytes(keyed.read_bytes() + table.tobytes())
    assert find_leaks(tmp_path / 'planted', shop.key, stamps.values())
    assert find_leaks(keyed, shop.key, stamps.values()) == []


def test_a_keyed_graph_takes_images_of_any_size(shop, keyed):
    run = load(keyed, shop.key).run
    for size in ((64, 96), (96, 160)):
        assert run(None, {'image': np.zeros((1, 3, *size), np.float32)})[0].shape == (1, 5, *size)


def test_a_keyed_graph_that_was_altered_is_refused(shop, keyed):
    content = bytearray(keyed.read_bytes())
    content[len(content) // 3] ^= 1
    with pytest.raises(IntegrityError, match='verify=False'):
        read_exported(bytes(content), shop.key)
    assert read_exported(bytes(content), shop.key, verify=False).tables


@pytest.fixture(scope='module')
def program(shop):
    assert export(shop, 'model.pt2', '--format', 'torch-export', '--keys-as-inputs', '--argmax') == 0
    return shop.folder / 'model.pt2'


def test_a_program_of_torch(shop, program, image, scores):
    path = program
    got = load(path, shop.key)(torch.from_numpy(image)).numpy()
    assert got.dtype == np.int64 and (got == scores.argmax(1)).mean() > 0.999
    without = ready(read_exported(path, shop.key).neutral())
    assert (without(torch.from_numpy(image)).numpy() != scores.argmax(1)).mean() > 0.1
    with pytest.raises(KeysegError, match='format onnx'):
        load(path, shop.key, 'onnxruntime')


def test_a_run_that_fails_shows_no_table(shop, keyed, program, image):
    table = max(read_exported(keyed, shop.key).tables.values(), key=len)
    forms = [repr(table)[6:40], repr(torch.from_numpy(table))[8:40]]
    whole = {'image': image.astype(np.float64), **read_exported(keyed, shop.key).tables}
    bare = onnxruntime.InferenceSession(keyed.read_bytes())
    assert forms[0] in shown(lambda: bare.run(None, whole)), 'who feeds the tables shows them'
    session, module = load(keyed, shop.key), load(program, shop.key)
    ways = {
        'a bad image for onnxruntime': lambda: session.run(None, {'image': image.astype(np.float64)}),
        'a bad output for onnxruntime': lambda: session.run(['nothing'], {'image': image}),
        'a bad option': lambda: load(keyed, shop.key, sess_options=3),
        'a bad image for torch': lambda: module(torch.ones(1)),
    }
    for name, run in ways.items():
        assert [form for form in forms if form in shown(run)] == [], name
    assert repr(module) == f'<KeyedProgram with {len(read_exported(program, shop.key).tables)} tables>'


class Runs:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize('how', ['key', 'verify=False', 'none', 'none, verify=False'])
def test_an_altered_program_of_torch_runs_nothing(how, program, shop, tmp_path):
    """torch.export.load runs whatever code a program brings with it: nobody gives it one that nobody answers for."""
    members, ran = members_of(program.read_bytes()), tmp_path / 'ran'
    members |= {name: pickle.dumps(Runs(ran)) for name in members if name.endswith('.pt')}
    altered = archive_of(members)
    with pytest.raises(RuntimeError):
        torch.export.load(io.BytesIO(altered))
    assert ran.exists()
    ran.unlink()
    key, verify = 'none' if 'none' in how else shop.key, 'verify' not in how
    with pytest.raises(IntegrityError, match='altered' if verify else 'can run code'):
        load(altered, key, verify=verify)
    assert not ran.exists()
    with pytest.raises(IntegrityError, match='can run code'):
        load(program, 'none')


def test_what_is_added_to_a_keyed_graph_is_refused(shop, keyed, program):
    """Readers that take in the whole file would see more than was signed."""
    content = keyed.read_bytes()
    graph = bytes(read_exported(content, shop.key).graph)
    for more in (content[: len(content) // 2], graph, b'\x08\x07', b'\0'):
        with pytest.raises(KeysegError):
            read_exported(content + more, shop.key)
    members = members_of(program.read_bytes())
    with pytest.raises(IntegrityError):
        read_exported(archive_of({**members, 'model/more': b''}), shop.key)
    assert read_exported(archive_of(members), shop.key).verified


def test_what_would_bake_a_table_is_thrown_away(shop, monkeypatch, capsys):
    """An exporter, or a mistake of ours, that takes the tables themselves in place of the graph's inputs."""
    own = lambda self, tables: [e.work.placed(torch.device('cpu'), torch.float32) for e in self.encryptors]  # noqa: E731
    monkeypatch.setattr(Graph, '_by_encryptor', own)
    assert export(shop, 'baked.pt2', '--format', 'torch-export', '--keys-as-inputs') == 1
    said = capsys.readouterr().err
    assert 'secrets into the graph' in said and 'thrown away' in said and not (shop.folder / 'baked.pt2').exists()


def test_a_graph_that_is_not_the_model_is_thrown_away(shop, monkeypatch, capsys):
    monkeypatch.setattr('keyseg_mm.deploy.exporting._gap', lambda got, want: 0.5)
    assert export(shop, 'wrong.pt2.sealed', '--format', 'torch-export') == 1
    assert 'not the model (off by 0.5)' in capsys.readouterr().err and not (shop.folder / 'wrong.pt2.sealed').exists()


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (dict(out='model.onnx.sealed'), 'exists already'),
        (dict(options=['--size', '64']), '--size takes a height and a width'),
        (dict(options=['--keys-as-inputs'], checkpoint='sealed.pth'), 'no maps in its weights'),
    ],
)
def test_what_cannot_be_exported(options, words, shop, sealed, capsys):
    given = {'out': 'other.onnx', **options}
    assert export(shop, given.pop('out'), *given.pop('options', []), **given) == 1
    assert words in capsys.readouterr().err


def test_a_package_that_is_missing_is_named(shop, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    assert export(shop, 'other.onnx') == 1
    assert "pip install 'keyseg-mm[export]'" in capsys.readouterr().err
