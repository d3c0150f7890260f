"""The example for Triton, with a stand-in of the module that the server brings."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / 'examples' / 'triton' / 'keyseg'


class Tensor:
    def __init__(self, name, data):
        self.name, self.data = name, data

    def as_numpy(self):
        return self.data


def parameters():
    text = (FOLDER / 'config.pbtxt').read_text()
    return dict(re.findall(r'key: "(\w+)", value: \{ string_value: "([^"]+)" \}', text))


@pytest.fixture
def server(tmp_path, monkeypatch, sealed):
    """Loads the model of the folder, for a key."""
    backend = ModuleType('triton_python_backend_utils')
    backend.Tensor, backend.TritonError, backend.TritonModelException = Tensor, str, type('Refused', (Exception,), {})
    backend.get_input_tensor_by_name = lambda request, name: next(t for t in request if t.name == name)
    backend.InferenceResponse = lambda output_tensors=(), error=None: SimpleNamespace(out=output_tensors, error=error)
    monkeypatch.setitem(sys.modules, 'triton_python_backend_utils', backend)
    shutil.copytree(FOLDER, tmp_path / 'keyseg')
    shutil.copy(sealed, tmp_path / 'keyseg' / '1' / parameters()['graph'])

    def start(locator):
        spec = importlib.util.spec_from_file_location('model', tmp_path / 'keyseg' / '1' / 'model.py')
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        model = module.TritonPythonModel()
        said = {name: {'string_value': value} for name, value in {**parameters(), 'key': locator}.items()}
        config = json.dumps({'parameters': said})
        model.initialize({'model_config': config, 'model_repository': str(tmp_path / 'keyseg'), 'model_version': '1'})
        return model

    return start, backend.TritonModelException


def test_the_model_answers_requests(server, shop, photo, scores):
    start, _ = server
    model = start(f'file:{shop.folder}/customer.key')
    good, bad = model.execute([[Tensor('image', photo)], [Tensor('image', photo[:, :9])]])
    assert good.error is None and np.allclose(good.out[0].data, scores, atol=1e-3)
    assert bad.out == () and 'invalid dimensions' in bad.error
    model.finalize()


def test_another_key_ends_the_start_in_its_words(server, other_key_file):
    start, refused = server
    with pytest.raises(refused, match='protected with key'):
        start(f'file:{other_key_file}')


def test_the_config_names_a_key_and_holds_none():
    assert parameters()['key'].startswith('file:')
