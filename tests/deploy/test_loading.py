"""What a customer's machine runs: no torch, no host, and nothing opened on its disk."""

from __future__ import annotations

import json
import subprocess
import sys

import onnxruntime
import pytest

from keyseg_mm.deploy import load, read_exported
from keyseg_mm.errors import IntegrityError, KeysegError, SecretExposedError

# what a machine with numpy, cryptography and onnxruntime has not
ABSENT = ('torch', 'mmengine', 'mmcv', 'mmseg', 'scipy', 'jinja2', 'tqdm', 'onnx', 'cv2')
WALK = f"""
import json, os, sys
for name in {ABSENT!r}:
    sys.modules[name] = None
before = set(os.listdir('.'))
import keyseg_mm
from keyseg_mm import Identity, KeysegError, read_key_file
import numpy as np
from keyseg_mm.deploy import load
found = {{'id': read_key_file('customer.key').id}}
image = np.load('image.npy')
for path, runtime in (('model.onnx.sealed', 'onnxruntime'), ('model.onnx.sealed', 'openvino')):
    try:
        session = load(path, key='file:customer.key', runtime=runtime)
    except KeysegError as error:
        found[runtime] = str(error)
        continue
    result = session.run(None, {{'image': image}})[0] if runtime == 'onnxruntime' else session([image])[0]
    found[runtime] = float(np.linalg.norm(result - np.load('scores.npy')) / np.linalg.norm(result))
found['written'] = sorted(set(os.listdir('.')) - before)
from keyseg_mm.cli import main
found['keygen'] = main(['keygen', '--identity', '--out', 'own.key'])
found['lock'] = main(['lock', 'x.pth', '--key', 'file:customer.key', '--out', 'y.pth'])
print(json.dumps(found))
"""


def walked(folder, sealed, photo, scores, shop, more=''):
    import numpy as np

    np.save(folder / 'image.npy', photo)
    np.save(folder / 'scores.npy', scores)
    for path in (sealed, shop.folder / 'customer.key'):
        (folder / path.name).write_bytes(path.read_bytes())
    done = subprocess.run([sys.executable, '-c', more + WALK], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_a_machine_without_torch_runs_a_sealed_graph(tmp_path, sealed, photo, scores, shop):
    found, said = walked(tmp_path, sealed, photo, scores, shop)
    assert found['id'] == shop.customer.id
    assert found['onnxruntime'] < 1e-5 and found['openvino'] < 1e-2
    assert found['written'] == [] and found['keygen'] == 0
    assert found['lock'] == 1 and "pip install 'keyseg-mm[torch]'" in said


def test_a_missing_runtime_is_named(tmp_path, sealed, photo, scores, shop):
    more = "import sys; sys.modules['onnxruntime'] = sys.modules['openvino'] = None\n"
    found, _ = walked(tmp_path, sealed, photo, scores, shop, more)
    assert "pip install 'keyseg-mm[onnx]'" in found['onnxruntime']
    assert "pip install 'keyseg-mm[openvino]'" in found['openvino']


def optimised(path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = path
    return options


def with_context():
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry('ep.context_enable', '1')
    return options


@pytest.mark.parametrize(
    ('runtime', 'options'),
    [
        ('onnxruntime', dict(sess_options=with_context())),
        ('onnxruntime', dict(sess_options=optimised('plain.onnx'))),
        ('onnxruntime', dict(providers=[('TensorrtExecutionProvider', {'trt_engine_cache_enable': True})])),
        ('onnxruntime', dict(providers=['X'], provider_options=[{'ep.context_enable': '1'}])),
        ('openvino', dict(config={'CACHE_DIR': 'cache'})),
    ],
)
def test_an_option_that_would_write_the_graph_is_refused(runtime, options, sealed, shop, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SecretExposedError, match='to a disk'):
        load(sealed, shop.key, runtime, **options)
    assert not list(tmp_path.iterdir())


def test_options_go_to_the_runtime(sealed, shop):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = load(sealed.read_bytes(), shop.key, sess_options=options, providers=['CPUExecutionProvider'])
    assert session.get_session_options().intra_op_num_threads == 1
    with pytest.raises(KeysegError, match='no runtime'):
        load(sealed, shop.key, 'tensorflow')
    with pytest.raises(KeysegError, match='torch takes graphs of the format torch-export'):
        load(sealed, shop.key, 'torch')


@pytest.mark.parametrize('place', [0.001, 0.2, 0.5, 0.9999])
def test_an_altered_byte_is_an_error(place, sealed, shop):
    content = bytearray(sealed.read_bytes())
    content[int(place * len(content))] ^= 1
    with pytest.raises((IntegrityError, KeysegError)):
        read_exported(bytes(content), shop.key)


@pytest.mark.parametrize('content', [b'', b'PK', b'PK\x03\x04 no zip', b'{', b'\x08\x01' * 9, b'\xff' * 99, bytes(99)])
def test_what_is_no_graph_is_said_to_be_none(content, shop, tmp_path):
    (tmp_path / 'a.onnx').write_bytes(content)
    with pytest.raises(KeysegError, match=r'a\.onnx is cut short, or is no graph'):
        load(tmp_path / 'a.onnx', shop.key)
    with pytest.raises(KeysegError, match='could not be read: No such file'):
        load(tmp_path / 'none.onnx', shop.key)


def test_a_sealed_checkpoint_is_no_graph(shop):
    with pytest.raises(KeysegError, match='no graph'):
        load(shop.folder / 'sealed.pth', shop.key)
